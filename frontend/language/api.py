"""The names of the language."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from ...runtime.errors import shorten
from ..errors import ExpressionError, UnsupportedError
from .choices import ChoicesMethod, token_length_normalized
from .expressions import Gen, RoleBegin, RoleEnd, Select, Sequence_, flat
from .settings import settings
from .trim import TYPES


def gen(
    name: str | None = None,
    max_tokens: int | None = None,
    *,
    n: int | None = None,
    stop: str | Sequence[str] | None = None,
    stop_token_ids: Sequence[int] | None = None,
    temperature: float | None = None,
    ignore_eos: bool | None = None,
    seed: int | None = None,
    block_length: int | None = None,
    steps: int | None = None,
    threshold: float | None = None,
    factor: float | None = None,
    strategy: str | None = None,
    dtype: type | str | None = None,
    choices: Sequence[str] | None = None,
    choices_method: ChoicesMethod | None = None,
    **others: Any,
) -> Gen | Select:
    """Generate, into variable `name`.

    max_tokens is the length of the canvas (128 without it). Settings that are not given are the run's, then the
    engine's. `n` answers: the variable is a list, and the first goes on in the text. `dtype` (int, float, bool) cuts
    the text to the value that it begins with. With `choices` it is a `select`. SGLang's other settings are accepted
    where they change nothing, else UnsupportedError names them. Inside `fill` a gen is a hole.
    """
    _check_name(name)
    if choices is not None:
        return select(name, choices, temperature or 0.0, choices_method)
    own = settings(
        {
            "max_new_tokens": max_tokens, "stop": stop, "stop_token_ids": stop_token_ids, "temperature": temperature,
            "ignore_eos": ignore_eos, "seed": seed, "block_length": block_length, "steps": steps,
            "threshold": threshold, "factor": factor, "strategy": strategy, **others,
        }
    )  # fmt: skip
    if n is not None and (not isinstance(n, int) or isinstance(n, bool) or n < 1):
        raise ExpressionError(f"n is {shorten(n)}; it must be at least 1", field="n", value=n, limit=1)
    named = {kind.__name__: kind for kind in TYPES}
    kind = named.get(dtype) if isinstance(dtype, str) else dtype
    if dtype is not None and kind not in TYPES:
        limit = ", ".join(named)
        raise ExpressionError(f"dtype is {shorten(dtype)}; it must be one of {limit}", field="dtype", value=dtype)
    return Gen(name, own, n or 1, kind)


def gen_int(name: str | None = None, max_tokens: int | None = None, **values: Any) -> Gen | Select:
    """`gen` with dtype int: the variable is the integer's text."""
    return gen(name, max_tokens, dtype=int, **values)


def gen_string(name: str | None = None, max_tokens: int | None = None, **values: Any) -> Gen | Select:
    """`gen` with dtype str."""
    return gen(name, max_tokens, dtype=str, **values)


def select(
    name: str | None = None,
    choices: Sequence[str] | None = None,
    temperature: float = 0.0,
    choices_method: ChoicesMethod | None = None,
) -> Select:
    """Append the best of `choices` and set variable `name` to it.

    The default scores each choice by its mean masked pseudo-log-likelihood; `runtime/request/scoring.py` has the
    formulas, choices.py the methods. Raises ExpressionError for no choices, empty or double ones.
    """
    _check_name(name)
    if choices is None or isinstance(choices, str) or not isinstance(choices, Sequence) or not len(choices):
        message = f"choices is {shorten(choices)}; it must be a list of at least one text"
        raise ExpressionError(message, field="choices", value=choices, limit=1)
    for index, choice in enumerate(choices):
        if not isinstance(choice, str) or not choice or choice in choices[:index]:
            message = f"choices[{index}] is {shorten(choice)}; choices must be texts, not empty, each only once"
            raise ExpressionError(message, field="choices", value=choice)
    if temperature > 1e-5:
        raise UnsupportedError(f"temperature is {temperature}; select takes the best choice", field="temperature")
    method = token_length_normalized if choices_method is None else choices_method
    if not isinstance(method, ChoicesMethod):
        message = f"choices_method is {shorten(method)}; it must be one of shoal's (shoal.token_length_normalized ...)"
        raise ExpressionError(message, field="choices_method", value=method)
    return Select(name, tuple(choices), method, temperature)


def _check_name(name: Any) -> None:
    if name is not None and (not isinstance(name, str) or not name):
        raise ExpressionError(f"name is {shorten(name)}; it must be a text", field="name", value=name)


def _role(role: str, expression: Any) -> Sequence_:
    return Sequence_([RoleBegin(role), *flat(expression), RoleEnd(role)])


def system(expression: Any = None) -> Sequence_:
    """A system message."""
    return _role("system", expression)


def user(expression: Any = None) -> Sequence_:
    """A user message."""
    return _role("user", expression)


def assistant(expression: Any = None) -> Sequence_:
    """An assistant message."""
    return _role("assistant", expression)


def system_begin() -> RoleBegin:
    """The header of a system message."""
    return RoleBegin("system")


def system_end() -> RoleEnd:
    """The end of a system message."""
    return RoleEnd("system")


def user_begin() -> RoleBegin:
    """The header of a user message."""
    return RoleBegin("user")


def user_end() -> RoleEnd:
    """The end of a user message."""
    return RoleEnd("user")


def assistant_begin() -> RoleBegin:
    """The header of an assistant message."""
    return RoleBegin("assistant")


def assistant_end() -> RoleEnd:
    """The end of an assistant message."""
    return RoleEnd("assistant")


def image(path: Any) -> NoReturn:
    """SGLang's image in a message. Raises UnsupportedError: the models here read text only."""
    _no_such_input("image", path)


def video(path: Any, num_frames: int = 0) -> NoReturn:
    """SGLang's video in a message. Raises UnsupportedError: the models here read text only."""
    _no_such_input("video", path)


def separate_reasoning(expression: Any = None, model_type: str | None = None) -> NoReturn:
    """SGLang's split of a reasoning model's answer. Raises UnsupportedError: the models here have no such part."""
    raise UnsupportedError("separate_reasoning(...) can't be had: diffusion models here do not mark their reasoning",
                           field="separate_reasoning")  # fmt: skip


def _no_such_input(name: str, path: Any) -> NoReturn:
    raise UnsupportedError(f"{name}({shorten(path)}) can't be had: models here read text only", field=name, value=path)
