"""From the sampling fields of a body to SamplingParams. `fields.py` has already refused unknown fields."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..errors import InvalidRequestError
from ..request.sampling_params import OF_THRESHOLD, RULES, SamplingParams
from .api_error import ApiError, bad_request
from .config import ServerConfig
from .wording import in_client_words, shown

KNOBS = (
    "steps", "block_length", "threshold", "factor", "strategy", "schedule", "eps", "alg_temp", "ranking", "eos_penalty",
    "logits_eos_inf", "confidence_eos_eot_inf", "canvas_window", "refresh_schedule", "full_refresh_every",
    "refresh_entropy", "entropy_bound", "threshold_decay", "kl_threshold", "kl_history",
)  # fmt: skip
"""Sampling parameters that only a diffusion model has."""
SAMPLING = (
    "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias",
    "min_tokens",
)  # fmt: skip
"""Sampling parameters that other servers have too."""
_KNOWN = (
    "max_new_tokens", "temperature", "stop", "stop_token_ids", "ignore_eos", "split_special_tokens", *KNOBS, *SAMPLING,
)  # fmt: skip
_NUMBERS = (
    "max_new_tokens", "temperature", "steps", "block_length", "threshold", "factor", "seed", "sampling_seed", "top_k",
    "top_p", "min_p", "min_tokens", "min_new_tokens", "eps", "alg_temp", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "eos_penalty", "canvas_window", "full_refresh_every", "refresh_entropy", "entropy_bound",
    "threshold_decay", "kl_threshold", "kl_history",
)  # fmt: skip
_LARGEST = 1 << 63
_GREEDY_BELOW = 1e-5
_TOKEN_ID = re.compile(r"(0|[1-9][0-9]{0,18})")


def sampling_params(
    values: Mapping[str, Any],
    config: ServerConfig,
    defaults: Mapping[str, Any],
    length_name: str = "max_new_tokens",
) -> SamplingParams:
    """Sampling parameters: the request's fields over the server's defaults. Ignores other fields.

    `temperature` below 1e-5 is greedy; `sampling_seed` is another name of `seed`, `min_new_tokens` of
    `min_tokens`.
    `defaults` are the sampling parameters of requests that give none.
    Raises ApiError (400) in the client's words: it calls the canvas's length `length_name`.
    """
    values = {name: value for name, value in values.items() if value is not None}
    for name in _NUMBERS:
        value = values.get(name)
        if isinstance(value, int) and abs(value) > _LARGEST:  # may be too large for a float
            raise bad_request(name, f"{name} is {shown(value)}; it must be at most {_LARGEST}")
    chosen = dict(defaults)
    named = any(name in values for name in RULES)
    if named or any(values.get(name) for name in OF_THRESHOLD):
        for name in RULES:
            if named or name != "threshold":
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
        chosen["temperature"] = 0.0
    if isinstance(chosen.get("top_k"), float) and chosen["top_k"].is_integer():
        chosen["top_k"] = int(chosen["top_k"])
    if "logit_bias" in chosen:
        chosen["logit_bias"] = _logit_bias(chosen["logit_bias"])
    least = [values[name] for name in ("min_tokens", "min_new_tokens") if name in values]
    if least:
        chosen["min_tokens"] = least[0]
    if len(least) > 1 and least[0] != least[1]:
        words = f"min_tokens is {shown(least[0])} and min_new_tokens {shown(least[1])}; send one of them"
        raise bad_request("min_tokens", words)
    _check_length(chosen["max_new_tokens"], config, length_name)
    try:
        return SamplingParams(**chosen)
    except InvalidRequestError as error:
        names = {"max_new_tokens": length_name, "seed": "seed" if "seed" in values else "sampling_seed"}
        names["min_tokens"] = "min_tokens" if "min_tokens" in values else "min_new_tokens"
        message, field = in_client_words(error, names)
        raise ApiError(400, message, param=field) from error


def _logit_bias(value: Any) -> dict[int, Any]:
    """A bias for each token id; JSON has the ids as strings. Raises ApiError (400)."""
    if not isinstance(value, Mapping) or not all(_TOKEN_ID.fullmatch(str(token)) for token in value):
        words = f"logit_bias is {shown(value)}; it must be an object of token ids with a number each"
        raise bad_request("logit_bias", words)
    return {int(token): bias for token, bias in value.items()}


def _check_length(value: Any, config: ServerConfig, name: str) -> None:
    limit = config.max_new_tokens_limit
    if limit is not None and isinstance(value, int) and value > limit:
        raise bad_request(name, f"{name} is {shown(value)}; this server allows at most {limit}")
