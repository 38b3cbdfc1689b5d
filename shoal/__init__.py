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
    from .frontend import *  # noqa: F403
    from .radix_cache.depth_profile import DepthProfile as DepthProfile
    from .runtime.config import EngineConfig as EngineConfig
    from .runtime.engine.engine import Engine as Engine
    from .runtime.errors import CacheInUseError as CacheInUseError
    from .runtime.errors import ConfigError as ConfigError
    from .runtime.errors import EngineClosedError as EngineClosedError
    from .runtime.errors import EngineError as EngineError
    from .runtime.errors import InvalidRequestError as InvalidRequestError
    from .runtime.errors import ModelLoadError as ModelLoadError
    from .runtime.errors import PoolTooSmallError as PoolTooSmallError
    from .runtime.errors import ShoalError as ShoalError
    from .runtime.request.input import Conversation as Conversation
    from .runtime.request.output import RequestOutput as RequestOutput
    from .runtime.request.sampling_params import SamplingParams as SamplingParams

__version__ = "0.1.0"

_HOME = {
    "CacheInUseError": "runtime.errors",
    "ConfigError": "runtime.errors",
    "Conversation": "runtime.text.conversation",
    "DepthProfile": "radix_cache.depth_profile",
    "Engine": "runtime.engine.engine",
    "EngineClosedError": "runtime.errors",
    "EngineConfig": "runtime.config",
    "EngineError": "runtime.errors",
    "InvalidRequestError": "runtime.errors",
    "ModelLoadError": "runtime.errors",
    "PoolTooSmallError": "runtime.errors",
    "RequestOutput": "runtime.request.output",
    "SamplingParams": "runtime.request.sampling_params",
    "ShoalError": "runtime.errors",
}
"""Module of each name that is not of `frontend`."""


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"shoal.{_HOME[name]}"), name)
    if name == "__all__":
        return sorted([*_HOME, *import_module("shoal.frontend").__all__, "__version__"])
    if not name.startswith("_") and name in (frontend := import_module("shoal.frontend")).__all__:
        return getattr(frontend, name)
    raise AttributeError(f"module 'shoal' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__getattr__("__all__"))
