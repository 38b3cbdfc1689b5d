"""The language of programs: SGLang's, and what only a diffusion model can do. Imports neither torch nor triton."""

from .backends.default import set_default_backend
from .backends.engine import EngineBackend
from .backends.http import HTTPBackend, RuntimeEndpoint
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
from .language.api import (
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
from .language.choices import (
    greedy_token_selection,
    one_shot,
    token_length_normalized,
    unconditional_likelihood_normalized,
)
from .language.holes import fill, json_skeleton
from .program.batch_run import BatchResult
from .program.group import ProgramStateGroup
from .program.program import Program, function
from .program.state import ProgramState
from .program.usage import Usage

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
