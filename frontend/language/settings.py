"""Decoding settings of a call: SGLang's names, shoal's own, and what a diffusion model can't do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...runtime.errors import InvalidRequestError, shorten
from ...runtime.nearest_name import did_you_mean
from ...runtime.request.sampling_params import RULES, SamplingParams
from ..errors import UnsupportedError

OWN = (
    "max_new_tokens", "block_length", "steps", "threshold", "factor", "strategy", "temperature", "seed", "stop",
    "stop_token_ids", "ignore_eos", "schedule", "eps", "alg_temp", "top_k", "top_p", "min_p", "ranking",
    "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "min_tokens", "eos_penalty",
    "logits_eos_inf", "confidence_eos_eot_inf", "entropy_bound", "threshold_decay", "kl_threshold", "kl_history",
    "canvas_window", "refresh_schedule", "full_refresh_every", "refresh_entropy",
    "cfg_scale", "json_schema", "regex", "choice",
)  # fmt: skip
ALIASES = {"min_new_tokens": "min_tokens"}
"""SGLang's names of settings."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "stop_regex": ((), []), "return_logprob": (False,), "logprob_start_len": (-1, 0), "top_logprobs_num": (0,),
    "return_text_in_logprobs": (False, True), "num_api_spec_tokens": (),
}  # fmt: skip
"""Settings of SGLang that are accepted where they change nothing: None, or one of these values."""
KNOWN = (*OWN, *ALIASES, *NEUTRAL)

_NUMBERS = ("top_p", "top_k", "min_p")

Settings = Mapping[str, Any]


def settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that were given (None: not given), checked.

    Raises UnsupportedError for one of SGLang's that would change the result and can't be had, InvalidRequestError for
    a value out of range and for a name that neither has.
    """
    chosen: dict[str, Any] = {}
    for name, value in values.items():
        if name in NEUTRAL:
            if value is not None and not any(value == neutral for neutral in NEUTRAL[name]):
                message = f"{name} is {shorten(value)}; shoal can't honour it for a diffusion model: leave it out"
                raise UnsupportedError(message, field=name, value=value, limit=NEUTRAL[name])
        elif name not in KNOWN:
            message = f"unknown setting {name!r}{did_you_mean(name, KNOWN)}; known: {', '.join(KNOWN)}"
            raise InvalidRequestError(message, field=name, value=value, limit=KNOWN)
        elif value is not None:
            if name in _NUMBERS and (not isinstance(value, int | float) or isinstance(value, bool)):
                message = f"{name} is {shorten(value)}; it must be a number"
                raise InvalidRequestError(message, field=name, value=value, limit="a number")
            chosen[ALIASES.get(name, name)] = value
    return chosen


def names_given(*sources: Settings) -> tuple[str, ...]:
    """The sampling parameters among settings: those that a request carries."""
    return tuple(name for name in {name: None for source in sources for name in source} if name in OWN)


def sampling_params(defaults: Settings, own: Settings) -> SamplingParams:
    """SamplingParams of a call: its own settings over the program's. Raises InvalidRequestError."""
    merged = {**defaults, **own}
    rules = [name for name in RULES if name in own]
    for name in RULES:
        if rules and name not in rules:
            merged.pop(name, None)
    return SamplingParams(**merged)
