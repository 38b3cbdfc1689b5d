"""The language of programs: SGLang's, and what only a diffusion model can do. Imports neither torch nor triton."""

from .api import (
    assistant,
    assistant_begin,
    assistant_end,
    flush_cache,
    gen,
    gen_int,
    gen_string,
    get_server_info,
    image,
    select,
    separate_reasoning,
    system,
    system_begin,
    system_end,
    user,
    user_begin,
    user_end,
    video,
)
from .batch_run import BatchResult
from .choices import (
    greedy_token_selection,
    one_shot,
    token_length_normalized,
    unconditional_likelihood_normalized,
)
from .default_backend import set_default_backend
from .engine_backend import EngineBackend
from .errors import (
    DuplicateNameError,
    ExpressionError,
    FrontendError,
    NoBackendError,
    ProgramCancelledError,
    ProgramEndedError,
    ProgramError,
    ServerError,
    UnknownVariableError,
    UnsupportedError,
)
from .group import ProgramStateGroup
from .holes import fill, json_skeleton
from .http_backend import HTTPBackend, RuntimeEndpoint
from .program import Program, function
from .state import ProgramState
from .usage import Usage

__all__ = [
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
]
