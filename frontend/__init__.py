"""The language of programs: SGLang's, and what only a diffusion model can do. Imports neither torch nor triton.

The imports below are the list of public names: `__all__`, and the names of `shoal` itself, follow from them.
"""

from typing import TYPE_CHECKING

from .backends.default import flush_cache as flush_cache
from .backends.default import get_server_info as get_server_info
from .backends.default import set_default_backend as set_default_backend
from .backends.engine import EngineBackend as EngineBackend
from .backends.http import HTTPBackend as HTTPBackend
from .backends.http import RuntimeEndpoint as RuntimeEndpoint
from .errors import DuplicateNameError as DuplicateNameError
from .errors import ExpressionError as ExpressionError
from .errors import FrontendError as FrontendError
from .errors import NoBackendError as NoBackendError
from .errors import ProgramCancelledError as ProgramCancelledError
from .errors import ProgramEndedError as ProgramEndedError
from .errors import ProgramError as ProgramError
from .errors import ServerError as ServerError
from .errors import UnknownVariableError as UnknownVariableError
from .errors import UnsupportedError as UnsupportedError
from .language.api import assistant as assistant
from .language.api import assistant_begin as assistant_begin
from .language.api import assistant_end as assistant_end
from .language.api import gen as gen
from .language.api import gen_int as gen_int
from .language.api import gen_string as gen_string
from .language.api import image as image
from .language.api import select as select
from .language.api import separate_reasoning as separate_reasoning
from .language.api import system as system
from .language.api import system_begin as system_begin
from .language.api import system_end as system_end
from .language.api import user as user
from .language.api import user_begin as user_begin
from .language.api import user_end as user_end
from .language.api import video as video
from .language.choices import greedy_token_selection as greedy_token_selection
from .language.choices import one_shot as one_shot
from .language.choices import token_length_normalized as token_length_normalized
from .language.choices import unconditional_likelihood_normalized as unconditional_likelihood_normalized
from .language.holes import fill as fill
from .language.holes import json_skeleton as json_skeleton
from .program.batch_run import BatchResult as BatchResult
from .program.group import ProgramStateGroup as ProgramStateGroup
from .program.program import Program as Program
from .program.program import function as function
from .program.state import ProgramState as ProgramState
from .program.usage import Usage as Usage

if not TYPE_CHECKING:
    __all__ = sorted(name for name, value in globals().items() if getattr(value, "__module__", "").startswith(__name__))
