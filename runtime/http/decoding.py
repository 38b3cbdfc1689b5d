"""From the sampling fields of a body to SamplingParams. `fields.py` has already refused unknown fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import InvalidRequestError
from ..request.sampling_params import SamplingParams, fitting_steps
from .api_error import ApiError, bad_request
from .config import ServerConfig
from .wording import in_client_words, shown

KNOBS = ("steps", "block_length", "threshold", "factor", "strategy")
"""Sampling parameters that only a diffusion model has."""
_KNOWN = ("max_new_tokens", "temperature", "stop", "stop_token_ids", "ignore_eos", "split_special_tokens", *KNOBS)
_NUMBERS = ("max_new_tokens", "temperature", "steps", "block_length", "threshold", "factor", "seed", "sampling_seed")
_LARGEST = 1 << 63
_GREEDY_BELOW = 1e-5


def sampling_params(
    values: Mapping[str, Any],
    config: ServerConfig,
    default_max_new_tokens: int,
    block_length: int,
    length_name: str = "max_new_tokens",
) -> SamplingParams:
    """Sampling parameters: the request's fields over the server's defaults. Ignores other fields.

    `temperature` below 1e-5 is greedy; `sampling_seed` is another name of `seed`. Greedy decoding accepts any top_p,
    top_k and min_p, which change nothing there; with a temperature only their neutral values are accepted.
    `block_length` is the default. Defaults adapt to the rest: a default length to the client's
    block_length, default steps to the canvas.
    Raises ApiError (400) in the client's words: it calls the canvas's length `length_name`.
    """
    values = {name: value for name, value in values.items() if value is not None}
    for name in _NUMBERS:
        value = values.get(name)
        if isinstance(value, int) and abs(value) > _LARGEST:  # may be too large for a float
            raise bad_request(name, f"{name} is {shown(value)}; it must be at most {_LARGEST}")
    chosen = {name: value for name, value in config.decoding_defaults().items() if value is not None}
    if any(name in values for name in ("steps", "threshold", "factor")):
        for name in ("steps", "threshold", "factor"):
            chosen.pop(name, None)
    chosen["max_new_tokens"] = _default_length(values.get("block_length"), default_max_new_tokens, config)
    chosen.update((name, values[name]) for name in _KNOWN if name in values)
    seeds = [values[name] for name in ("seed", "sampling_seed") if name in values]
    if seeds:
        chosen["seed"] = seeds[0]
    if len(seeds) > 1 and seeds[0] != seeds[1]:
        raise bad_request("seed", f"seed is {shown(seeds[0])} and sampling_seed {shown(seeds[1])}; send one of them")
    temperature = chosen["temperature"]
    if isinstance(temperature, int | float) and 0 <= temperature < _GREEDY_BELOW:
        chosen["temperature"] = temperature = 0.0
    _check_truncation(values, greedy=temperature == 0)
    _check_length(chosen["max_new_tokens"], config, length_name)
    if "steps" in chosen and "steps" not in values:
        _fit_steps(chosen, block_length)
    try:
        return SamplingParams(**chosen)
    except InvalidRequestError as error:
        names = {"max_new_tokens": length_name, "seed": "seed" if "seed" in values else "sampling_seed"}
        message, field = in_client_words(error, names)
        raise ApiError(400, message, param=field) from error


def _default_length(block_length: Any, default: int, config: ServerConfig) -> int:
    """The default length as whole blocks of the client's block_length, and within the server's limit."""
    limit = config.max_new_tokens_limit
    length = default if limit is None else min(default, limit)
    if not isinstance(block_length, int) or block_length < 1:
        return length
    return max(length // block_length, 1) * block_length


def _fit_steps(chosen: dict[str, Any], block_length: int) -> None:
    """Fit default steps to the request's canvas."""
    length, own = chosen["max_new_tokens"], chosen.get("block_length", block_length)
    if all(isinstance(value, int) and value >= 1 for value in (length, own)) and length <= _LARGEST:
        chosen["steps"] = fitting_steps(chosen["steps"], length, own)
    else:
        del chosen["steps"]


def _check_truncation(values: Mapping[str, Any], greedy: bool) -> None:
    limits = {"top_p": (0.0, 1.0, (1,)), "min_p": (0.0, 1.0, (0,)), "top_k": (-1, 1 << 62, (-1, 0, 1 << 30))}
    for name, (low, high, neutral) in limits.items():
        if name not in values:
            continue
        value = values[name]
        whole = name == "top_k"
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not low <= value <= high or (whole and value != int(value)):
            kind = "an integer" if whole else "a number"
            limit = f"at least {low}" if whole else f"from {low} to {high}"
            raise bad_request(name, f"{name} is {shown(value)}; it must be {kind} {limit}")
        if not greedy and value not in neutral:
            message = (
                f"{name} is {shown(value)}, which is not supported with a temperature above 0: tokens are drawn from "
                f"the whole distribution; leave it out, send {neutral[0]}, or decode greedily with temperature 0"
            )
            raise ApiError(400, message, param=name, code="unsupported_parameter")


def _check_length(value: Any, config: ServerConfig, name: str) -> None:
    limit = config.max_new_tokens_limit
    if limit is not None and isinstance(value, int) and value > limit:
        raise bad_request(name, f"{name} is {shown(value)}; this server allows at most {limit}")
