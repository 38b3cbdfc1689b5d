"""Sampling parameters that a model's generation_config.json sets for requests that say nothing about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import InvalidRequestError, ModelLoadError
from ..model.generation_config import FILE, read_generation_config
from .sampling_params import SamplingParams

_SETTINGS = (
    "max_new_tokens", "steps", "threshold", "factor", "strategy", "temperature", "top_p", "top_k", "min_p",
    "repetition_penalty", "schedule", "eps", "alg_temp",
)  # fmt: skip
_ALIASES = {"alg": "strategy", "remasking": "strategy"}
_CUTS = ("top_p", "top_k", "min_p")
_OF_STEPS = ("alg_temp", "schedule", "eps")


def sampling_defaults(folder: str | Path) -> dict[str, Any]:
    """Those of the model in `folder`; `block_length` is an option of the engine.

    `do_sample: false` is temperature 0 without cuts, whatever the file says beside it. What speaks of steps (Dream's
    `alg_temp`, `origin` ...) counts beside `steps` alone. Raises ModelLoadError for a value that no request could have.
    """
    values = read_generation_config(folder)
    for alias, name in _ALIASES.items():
        if values.get(name) is None:
            values[name] = values.get(alias)
    chosen = {name: values[name] for name in _SETTINGS if values.get(name) is not None}
    if values.get("do_sample") is False:
        chosen = {name: value for name, value in chosen.items() if name not in _CUTS}
        if "temperature" in chosen:
            chosen["temperature"] = 0.0
    if "steps" not in chosen:
        chosen = {name: value for name, value in chosen.items() if name not in _OF_STEPS}
        if chosen.get("strategy") == "origin":
            del chosen["strategy"]
    try:
        SamplingParams(**chosen)
    except InvalidRequestError as error:
        message = f"{error.message} (in {FILE} of {str(folder)!r})"
        raise ModelLoadError(message, field=error.field, value=error.value, limit=error.limit) from error
    return chosen
