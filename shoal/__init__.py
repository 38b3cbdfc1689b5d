"""shoal: a serving runtime for diffusion language models with bidirectional prefix caching.

    import shoal

    with shoal.Engine("shop") as engine:
        print(engine.generate("...", shoal.SamplingParams(max_new_tokens=32)).text)

Programs (`shoal.function`, `shoal.gen`, `shoal.fill` ...) are in `shoal.frontend`; all its names are here too.

Names are loaded on first use: `import shoal` alone imports neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .frontend import (
        BatchResult,
        DuplicateNameError,
        EngineBackend,
        ExpressionError,
        FrontendError,
        HTTPBackend,
        NoBackendError,
        Program,
        ProgramCancelledError,
        ProgramEndedError,
        ProgramError,
        ProgramState,
        ProgramStateGroup,
        RuntimeEndpoint,
        ServerError,
        UnknownVariableError,
        UnsupportedError,
        Usage,
        assistant,
        assistant_begin,
        assistant_end,
        fill,
        flush_cache,
        function,
        gen,
        gen_int,
        gen_string,
        get_server_info,
        greedy_token_selection,
        image,
        json_skeleton,
        one_shot,
        select,
        separate_reasoning,
        set_default_backend,
        system,
        system_begin,
        system_end,
        token_length_normalized,
        unconditional_likelihood_normalized,
        user,
        user_begin,
        user_end,
        video,
    )
    from .radix_cache.depth_profile import DepthProfile
    from .runtime.engine import Engine
    from .runtime.engine_config import EngineConfig
    from .runtime.errors import (
        CacheInUseError,
        ConfigError,
        EngineClosedError,
        EngineError,
        InvalidRequestError,
        ModelLoadError,
        PoolTooSmallError,
        ShoalError,
    )
    from .runtime.request import RequestOutput
    from .runtime.sampling_params import SamplingParams

__version__ = "0.1.0"

_HOME = {
    "CacheInUseError": "runtime.errors",
    "ConfigError": "runtime.errors",
    "DepthProfile": "radix_cache.depth_profile",
    "Engine": "runtime.engine",
    "EngineClosedError": "runtime.errors",
    "EngineConfig": "runtime.engine_config",
    "EngineError": "runtime.errors",
    "InvalidRequestError": "runtime.errors",
    "ModelLoadError": "runtime.errors",
    "PoolTooSmallError": "runtime.errors",
    "RequestOutput": "runtime.request",
    "SamplingParams": "runtime.sampling_params",
    "ShoalError": "runtime.errors",
    **dict.fromkeys(
        (
            "BatchResult",
            "DuplicateNameError",
            "EngineBackend",
            "ExpressionError",
            "FrontendError",
            "HTTPBackend",
            "NoBackendError",
            "Program",
            "ProgramCancelledError",
            "ProgramEndedError",
            "ProgramError",
            "ProgramState",
            "ProgramStateGroup",
            "RuntimeEndpoint",
            "ServerError",
            "UnknownVariableError",
            "UnsupportedError",
            "Usage",
            "assistant",
            "assistant_begin",
            "assistant_end",
            "fill",
            "flush_cache",
            "function",
            "gen",
            "gen_int",
            "gen_string",
            "get_server_info",
            "greedy_token_selection",
            "image",
            "json_skeleton",
            "one_shot",
            "select",
            "separate_reasoning",
            "set_default_backend",
            "system",
            "system_begin",
            "system_end",
            "token_length_normalized",
            "unconditional_likelihood_normalized",
            "user",
            "user_begin",
            "user_end",
            "video",
        ),
        "frontend",
    ),
}

__all__ = [
    "BatchResult",
    "CacheInUseError",
    "ConfigError",
    "DepthProfile",
    "DuplicateNameError",
    "Engine",
    "EngineBackend",
    "EngineClosedError",
    "EngineConfig",
    "EngineError",
    "ExpressionError",
    "FrontendError",
    "HTTPBackend",
    "InvalidRequestError",
    "ModelLoadError",
    "NoBackendError",
    "PoolTooSmallError",
    "Program",
    "ProgramCancelledError",
    "ProgramEndedError",
    "ProgramError",
    "ProgramState",
    "ProgramStateGroup",
    "RequestOutput",
    "RuntimeEndpoint",
    "SamplingParams",
    "ServerError",
    "ShoalError",
    "UnknownVariableError",
    "UnsupportedError",
    "Usage",
    "__version__",
    "assistant",
    "assistant_begin",
    "assistant_end",
    "fill",
    "flush_cache",
    "function",
    "gen",
    "gen_int",
    "gen_string",
    "get_server_info",
    "greedy_token_selection",
    "image",
    "json_skeleton",
    "one_shot",
    "select",
    "separate_reasoning",
    "set_default_backend",
    "system",
    "system_begin",
    "system_end",
    "token_length_normalized",
    "unconditional_likelihood_normalized",
    "user",
    "user_begin",
    "user_end",
    "video",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'shoal' has no attribute {name!r}")
    return getattr(import_module(f"shoal.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
