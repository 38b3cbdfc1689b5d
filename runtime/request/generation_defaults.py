"""Sampling parameters that a model's generation_config.json sets for requests that say nothing about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import InvalidRequestError, ModelLoadError
from ..model.generation_config import FILE, read_generation_config
from .sampling_params import SamplingParams

_SETTINGS = ("max_new_tokens", "steps", "threshold", "factor", "strategy", "temperature")


def sampling_defaults(folder: str | Path) -> dict[str, Any]:
    """Those of the model in `folder`; `block_length` is an option of the engine.

    `do_sample: false` is temperature 0, whatever the file says beside it. Raises ModelLoadError for a value that no
    request could have.
    """
    values = read_generation_config(folder)
    chosen = {name: values[name] for name in _SETTINGS if values.get(name) is not None}
    if values.get("do_sample") is False and "temperature" in chosen:
        chosen["temperature"] = 0.0
    try:
        SamplingParams(**chosen)
    except InvalidRequestError as error:
        message = f"{error.message} (in {FILE} of {str(folder)!r})"
        raise ModelLoadError(message, field=error.field, value=error.value, limit=error.limit) from error
    return chosen
