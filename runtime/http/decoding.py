"""From the sampling fields of a body to SamplingParams. `fields.py` has already refused unknown fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import InvalidRequestError
from ..request.sampling_params import RULES, SamplingParams
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
    defaults: Mapping[str, Any],
    length_name: str = "max_new_tokens",
) -> SamplingParams:
    """Sampling parameters: the request's fields over the server's defaults. Ignores other fields.

    `temperature` below 1e-5 is greedy; `sampling_seed` is another name of `seed`. Greedy decoding accepts any top_p,
    top_k and min_p, which change nothing there; with a temperature only their neutral values are accepted.
    `defaults` are the sampling parameters of requests that give none.
    Raises ApiError (400) in the client's words: it calls the canvas's length `length_name`.
    """
    values = {name: value for name, value in values.items() if value is not None}
    for name in _NUMBERS:
        value = values.get(name)
        if isinstance(value, int) and abs(value) > _LARGEST:  # may be too large for a float
            raise bad_request(name, f"{name} is {shown(value)}; it must be at most {_LARGEST}")
    chosen = dict(defaults)
    if any(name in values for name in RULES):
        for name in RULES:
            chosen.pop(name, None)
    if config.max_new_tokens_limit is not None:
        chosen["max_new_tokens"] = min(chosen["max_new_tokens"], config.max_new_tokens_limit)
    chosen.update((name, values[name]) for name in _KNOWN if name in values)
    seeds = [values[name] for name in ("seed", "sampling_seed") if name in values]
    if seeds:
        chosen["seed"] = seeds[0]
    if len(seeds) > 1 and seeds[0] != seeds[1]:
        raise bad_request("seed", f"seed is {shown(seeds[0])} and sampling_seed {shown(seeds[1])}; send one of them")
    temperature = chosen.get("temperature", 0.0)
    if isinstance(temperature, int | float) and 0 <= temperature < _GREEDY_BELOW:
        chosen["temperature"] = temperature = 0.0
    _check_truncation(values, greedy=temperature == 0)
    _check_length(chosen["max_new_tokens"], config, length_name)
    try:
        return SamplingParams(**chosen)
    except InvalidRequestError as error:
        names = {"max_new_tokens": length_name, "seed": "seed" if "seed" in values else "sampling_seed"}
        message, field = in_client_words(error, names)
        raise ApiError(400, message, param=field) from error


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
