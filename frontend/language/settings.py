"""Decoding settings of a call: SGLang's names, shoal's own, and what a diffusion model can't do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...runtime.errors import shorten
from ...runtime.request.sampling_params import SamplingParams
from ..errors import UnsupportedError

OWN = (
    "max_new_tokens", "block_length", "steps", "threshold", "factor", "strategy", "temperature", "seed", "stop",
    "stop_token_ids", "ignore_eos",
)  # fmt: skip
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "min_tokens": (0,), "min_new_tokens": (0,), "stop_regex": ((), []), "top_p": (1, 1.0), "top_k": (-1,),
    "min_p": (0, 0.0), "frequency_penalty": (0, 0.0), "presence_penalty": (0, 0.0), "return_logprob": (False,),
    "logprob_start_len": (-1, 0), "top_logprobs_num": (0,), "return_text_in_logprobs": (False, True), "regex": (),
    "json_schema": (), "num_api_spec_tokens": (),
}  # fmt: skip
"""Settings of SGLang that are accepted where they change nothing: None, or one of these values."""

_INSTEAD = {
    "regex": "use select for one of several texts, dtype for a number, fill for fixed text around holes",
    "json_schema": "use json_skeleton for JSON whose keys are known",
}

Settings = Mapping[str, Any]


def settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that were given (None: not given), checked.

    Raises UnsupportedError for one of SGLang's that would change the result and can't be had, InvalidRequestError for
    a value out of range, TypeError for a name that neither has.
    """
    chosen: dict[str, Any] = {}
    for name, value in values.items():
        if name in NEUTRAL:
            if value is not None and not any(value == neutral for neutral in NEUTRAL[name]):
                instead = _INSTEAD.get(name, "leave it out")
                message = f"{name} is {shorten(value)}; shoal can't honour it for a diffusion model: {instead}"
                raise UnsupportedError(message, field=name, value=value, limit=NEUTRAL[name])
        elif name not in OWN:
            raise TypeError(f"unknown setting {name!r}; known: {', '.join((*OWN, *NEUTRAL))}")
        elif value is not None:
            chosen[name] = value
    return chosen


def sampling_params(defaults: Settings, own: Settings) -> SamplingParams:
    """SamplingParams of a call: its own settings over the program's. Raises InvalidRequestError."""
    merged = {**defaults, **own}
    rules = [name for name in ("steps", "threshold", "factor") if name in own]
    for name in ("steps", "threshold", "factor"):
        if rules and name not in rules:
            merged.pop(name, None)
    return SamplingParams(**merged)
