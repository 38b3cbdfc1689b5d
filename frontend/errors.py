"""What can go wrong in a program: each error names what it is about."""

from __future__ import annotations

from dataclasses import dataclass

from ..runtime.errors import ShoalError


class FrontendError(ShoalError):
    """Base of the errors of programs."""


class UnknownVariableError(FrontendError, KeyError):
    """A variable is read that nothing has declared."""

    __str__ = Exception.__str__


class DuplicateNameError(FrontendError, ValueError):
    """Two expressions of one state have the same name."""


class UnsupportedError(FrontendError, ValueError):
    """A setting that a diffusion language model, or this runtime, can't honour."""


class ExpressionError(FrontendError, TypeError):
    """An expression is used as if it were text, or appended where it can't be."""


class ProgramEndedError(FrontendError):
    """Something is appended to a state whose program has ended."""


class ProgramCancelledError(FrontendError):
    """A program was ended before its calls were done: by `ProgramState.cancel`, a cancelled task or an interrupt."""


class NoBackendError(FrontendError):
    """There is no backend to run on."""


class ServerError(FrontendError):
    """A server can't be reached, went away, or answered with an error.

    Attributes:
        status: HTTP status of the answer, None when there was none.
    """

    def __init__(self, message: str, *, status: int | None = None, **context: object):
        super().__init__(message, **context)  # type: ignore[arg-type]
        self.status = status


@dataclass(frozen=True, slots=True)
class Location:
    """Where in a program something was appended."""

    filename: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.filename}:{self.line} in {self.function}"


class ProgramError(FrontendError):
    """A call of a program failed; raised wherever its result, or anything behind it, is read.

    Attributes:
        location: the line of the program that asked for the call.
        what: the expression, in words.
    The error itself is the `__cause__`.
    """

    def __init__(self, what: str, location: Location, cause: BaseException):
        self.location = location
        self.what = what
        message = f"{location}: {what} failed: {cause}"
        super().__init__(message, field=getattr(cause, "field", None), value=getattr(cause, "value", None),
                         limit=getattr(cause, "limit", None))  # fmt: skip
        self.__cause__ = cause

    def again(self) -> ProgramError:
        """The same error as a new exception, to be raised once more."""
        assert self.__cause__ is not None
        return ProgramError(self.what, self.location, self.__cause__)
