"""From the sampling fields of a body to SamplingParams. `fields.py` has already refused unknown fields."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..errors import InvalidRequestError
from ..request.field_names import DEFAULT_NAMES, FieldNames
from ..request.sampling_params import OF_THRESHOLD, RULES, STRUCTURES, SamplingParams
from .api_error import ApiError, bad_request
from .config import ServerConfig
from .wording import in_client_words, shown

KNOBS = (
    "steps", "block_length", "threshold", "factor", "strategy", "schedule", "eps", "alg_temp", "ranking", "eos_penalty",
    "logits_eos_inf", "confidence_eos_eot_inf", "canvas_window", "refresh_schedule", "full_refresh_every",
    "refresh_entropy", "entropy_bound", "threshold_decay", "kl_threshold", "kl_history", "cfg_scale",
)  # fmt: skip
"""Sampling parameters that only a diffusion model has."""
ALIASES = {"alg": "strategy", "remasking": "strategy", "conf_alg": "strategy", "gen_length": "max_new_tokens"}
"""Names of the published generation code of LLaDA, Dream and Fast-dLLM."""
MASKS = ("mask_id", "mask_token_id")
NESTED = (*KNOBS, *ALIASES, *MASKS)
"""What is taken from objects that have other fields too."""
SAMPLING = (
    "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias",
    "min_tokens",
)  # fmt: skip
"""Sampling parameters that other servers have too."""
_KNOWN = (
    "max_new_tokens", "temperature", "stop", "stop_token_ids", "ignore_eos", "split_special_tokens", "logprobs",
    *STRUCTURES,
    *KNOBS, *SAMPLING,
)  # fmt: skip
_NUMBERS = (
    "max_new_tokens", "temperature", "steps", "block_length", "threshold", "factor", "seed", "sampling_seed", "top_k",
    "top_p", "min_p", "min_tokens", "min_new_tokens", "eps", "alg_temp", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "eos_penalty", "canvas_window", "full_refresh_every", "refresh_entropy", "entropy_bound",
    "threshold_decay", "kl_threshold", "kl_history", "cfg_scale", "gen_length",
)  # fmt: skip
_LARGEST = 1 << 63
_GREEDY_BELOW = 1e-5
_TOKEN_ID = re.compile(r"(0|[1-9][0-9]{0,18})")


def sampling_params(
    values: Mapping[str, Any],
    config: ServerConfig,
    defaults: Mapping[str, Any],
    names: FieldNames = DEFAULT_NAMES,
) -> SamplingParams:
    """Sampling parameters: the request's fields over the server's defaults. Ignores other fields.

    `temperature` below 1e-5 is greedy; `sampling_seed` is another name of `seed`, `min_new_tokens` of
    `min_tokens`.
    `defaults` are the sampling parameters of requests that give none.
    Raises ApiError (400) with the client's names `names`.
    """
    values = {name: value for name, value in values.items() if value is not None}
    if values.get("logprobs") is False:  # what routes without them accept
        del values["logprobs"]
    for name in _NUMBERS:
        value = values.get(name)
        if isinstance(value, int) and abs(value) > _LARGEST:  # may be too large for a float
            raise bad_request(name, f"{name} is {shown(value)}; it must be at most {_LARGEST}")
    values, called = _own_names(values, names.length)
    chosen = _fitting(defaults, values)
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
    _check_length(chosen["max_new_tokens"], config, called.get("max_new_tokens", names.length))
    try:
        return SamplingParams(**chosen)
    except InvalidRequestError as error:
        theirs = {"max_new_tokens": names.length, "stop": names.stop, **called}
        theirs["seed"] = "seed" if "seed" in values else "sampling_seed"
        theirs["min_tokens"] = "min_tokens" if "min_tokens" in values else "min_new_tokens"
        if names.structure:
            theirs.update((name, names.structure) for name in STRUCTURES if name in chosen)
        message, field = in_client_words(error, theirs)
        raise ApiError(400, message, param=field) from error


def _own_names(values: Mapping[str, Any], length_name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """`values` under our names, and the client's name for each that had another. ApiError for one with two values."""
    renamed, called = dict(values), dict[str, str]()
    for alias, own in ALIASES.items():
        if alias not in renamed:
            continue
        value, shown_own = renamed.pop(alias), called.get(own, length_name if own == "max_new_tokens" else own)
        if own in renamed and renamed[own] != value:
            message = f"{alias} is {shown(value)} and {shown_own} {shown(renamed[own])}; send one of them"
            raise bad_request(alias, message)
        renamed[own], called[own] = value, called.get(own, alias)
    return renamed, called


def _fitting(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults without those that the request's own fields rule out: other rules, and what needs steps or free text."""
    chosen = dict(defaults)
    named = any(name in values for name in RULES)
    if named or any(values.get(name) for name in OF_THRESHOLD):
        for name in RULES:
            if named or name != "threshold":
                chosen.pop(name, None)
    structured = any(values.get(name) not in (None, [], "") for name in STRUCTURES)
    if structured:
        for name in ("entropy_bound", *OF_THRESHOLD):
            chosen.pop(name, None)
    if structured or ("steps" not in values and "steps" not in chosen):
        chosen.pop("alg_temp", None)
        if chosen.get("strategy") == "origin":
            del chosen["strategy"]
    return chosen


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
