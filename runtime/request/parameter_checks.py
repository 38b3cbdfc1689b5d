"""Checks of single sampling parameters: what each may be, and the form in which it is kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

from ...kernels.sampling.strategies import STRATEGIES as KERNEL_STRATEGIES
from ..checks import MAX_INT, PARAMETER
from ..errors import InvalidRequestError
from ..refresh_schedules import REFRESH_SCHEDULES

STRATEGIES = (*KERNEL_STRATEGIES, "origin")
ALIASES = {"maskgit_plus": "low_confidence", "topk_margin": "margin"}
"""Dream's names of strategies."""
SCHEDULES = ("even", "linear")
RANKINGS = ("model", "sampled")
MAX_LOGIT_BIAS = 1024
LEAST_BIAS = -100.0
"""The lowest bias of a logit; a token with it is not chosen."""
MAX_KL_HISTORY = 1024
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_TOKEN_IDS = 1024
MAX_TEMPERATURE = 1e30
"""Above, noise times temperature overflows fp32. All tokens are equally probable long before."""

Check = Callable[[str, Any], Any]
"""(name, value) -> the value as it is kept. Raises InvalidRequestError."""


def _integer(low: int, high: int = MAX_INT) -> Check:
    def check(name: str, value: Any) -> Any:
        PARAMETER.integer(name, value, low, high)
        return value

    return check


def _number(low: float, high: float = math.inf, *, above: bool = False) -> Check:
    def check(name: str, value: Any) -> Any:
        PARAMETER.number(name, value, low, high, above=above)
        return value

    return check


def _one_of(choices: Iterable[str]) -> Check:
    def check(name: str, value: Any) -> Any:
        PARAMETER.one_of(name, value, choices)
        return value

    return check


def _flag(name: str, value: Any) -> Any:
    PARAMETER.flag(name, value)
    return value


def _string(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        PARAMETER.refuse(name, value, "a string")
    return value


def _strategy(name: str, value: Any) -> Any:
    own = ALIASES.get(value, value) if isinstance(value, str) else value
    if own not in STRATEGIES:
        PARAMETER.refuse(name, value, f"one of {', '.join((*STRATEGIES, *ALIASES))}")
    return own


def _entries(name: str, value: Any, most: int) -> tuple[Any, ...]:
    """A list with at most `most` entries; a string is a list of one, None an empty one."""
    if value is None:
        value = ()
    elif isinstance(value, str):
        value = (value,)
    elif not isinstance(value, Sequence | Set):
        PARAMETER.refuse(name, value, "a list")
    if len(value) > most:
        message = f"{name} has {len(value)} entries; it must have at most {most}"
        raise InvalidRequestError(message, field=name, value=len(value), limit=most)
    return tuple(value)


def _stop(name: str, value: Any) -> Any:
    kept = _entries(name, value, MAX_STOP_STRINGS)
    for text in kept:
        if not isinstance(text, str) or not text:
            PARAMETER.refuse(name, text, "strings of at least one character")
    return kept


def _stop_token_ids(name: str, value: Any) -> Any:
    kept = _entries(name, value, MAX_STOP_TOKEN_IDS)
    for token in kept:
        PARAMETER.integer(name, token, 0)
    return kept


def _logit_bias(name: str, value: Any) -> Any:
    pairs = tuple(value.items()) if isinstance(value, Mapping) else value
    wrong = not isinstance(pairs, Sequence) or isinstance(pairs, str)
    if wrong or any(not isinstance(pair, tuple | list) or len(pair) != 2 for pair in pairs):
        PARAMETER.refuse(name, value, "token ids with a number each")
    if len(pairs) > MAX_LOGIT_BIAS:
        message = f"{name} has {len(pairs)} entries; it must have at most {MAX_LOGIT_BIAS}"
        raise InvalidRequestError(message, field=name, value=len(pairs), limit=MAX_LOGIT_BIAS)
    for token, bias in pairs:
        PARAMETER.integer(name, token, 0)
        PARAMETER.number(name, bias, LEAST_BIAS, -LEAST_BIAS)
    return tuple((token, float(bias)) for token, bias in pairs)


def _choice(name: str, value: Any) -> Any:
    choices: Any = () if value is None else value
    is_list = isinstance(choices, Sequence) and not isinstance(choices, str)
    if not is_list or any(not isinstance(text, str) for text in choices):
        PARAMETER.refuse(name, choices, "a list of strings")
    return tuple(choices)


def _json_schema(name: str, value: Any) -> Any:
    """A schema as JSON, the same for equal ones."""
    try:
        schema = json.loads(value, parse_constant=_no_number) if isinstance(value, str) else value
        return json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        PARAMETER.refuse(name, value, "a JSON schema: an object, or the text of one")


def _no_number(name: str) -> Any:
    raise ValueError(name)


CHECKS: Mapping[str, Check] = {
    "stop": _stop, "stop_token_ids": _stop_token_ids, "max_new_tokens": _integer(0), "block_length": _integer(1),
    "canvas_window": _integer(0), "refresh_schedule": _one_of(REFRESH_SCHEDULES), "full_refresh_every": _integer(1),
    "refresh_entropy": _number(0.0), "steps": _integer(1), "threshold": _number(0.0, 1.0, above=True),
    "factor": _number(0.0, above=True), "entropy_bound": _number(0.0), "threshold_decay": _number(0.0, 1.0),
    "kl_threshold": _number(0.0, above=True), "kl_history": _integer(1, MAX_KL_HISTORY), "strategy": _strategy,
    "schedule": _one_of(SCHEDULES), "eps": _number(0.0, 1.0, above=True), "alg_temp": _number(0.0, MAX_TEMPERATURE),
    "temperature": _number(0.0, MAX_TEMPERATURE), "top_k": _integer(-1), "top_p": _number(0.0, 1.0),
    "min_p": _number(0.0, 1.0), "ranking": _one_of(RANKINGS), "repetition_penalty": _number(0.01, 100.0),
    "presence_penalty": _number(-100.0, 100.0), "frequency_penalty": _number(-100.0, 100.0),
    "logit_bias": _logit_bias, "min_tokens": _integer(0), "eos_penalty": _number(-100.0, 100.0),
    "logits_eos_inf": _flag, "confidence_eos_eot_inf": _flag, "cfg_scale": _number(0.0, 100.0),
    "logprobs": _integer(0, MAX_LOGPROBS), "json_schema": _json_schema, "regex": _string, "choice": _choice,
    "seed": _integer(0), "ignore_eos": _flag, "split_special_tokens": _flag,
}  # fmt: skip
"""The check of each field of SamplingParams."""
