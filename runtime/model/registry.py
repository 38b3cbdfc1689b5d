"""The served families, and the lookup of a `config.json`'s family."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelLoadError, shorten
from .a2d_llama import A2D_LLAMA
from .config import ModelConfig
from .config_fields import Fields
from .dream import DREAM
from .family import Family
from .llada import LLADA

FAMILIES: tuple[Family, ...] = (LLADA, DREAM, A2D_LLAMA)
"""If two share a `model_type`, it means the first."""


def family_named(name: str) -> Family:
    """The family whose name is a ModelConfig's `architecture`. Raises: KeyError."""
    return {family.name: family for family in FAMILIES}[name]


def published(name: str) -> dict[str, Any]:
    """Content of the `config.json` of a published checkpoint, such as `llada-8b`. Raises: KeyError."""
    return dict({name: values for family in FAMILIES for name, values in family.published.items()}[name])


def read_config(values: Mapping[str, Any]) -> ModelConfig:
    """Read the parsed content of a `config.json`.

    Raises: ModelLoadError naming the key, its value and what is supported: for a model of an unknown family, a missing
    or ill-typed key, or a feature that the decoder does not have (ALiBi, scaled RoPE, biases beyond q/k/v, sliding
    windows, quantised weights, other block or activation types).
    """
    if not isinstance(values, dict):
        raise ModelLoadError(
            f"config.json = {shorten(values)} in the model's configuration: expected a JSON object",
            field="config.json",
            value=values,
            limit="a JSON object",
        )
    family, fields = _family_of(values), Fields(values)
    shapes = family.read(fields)
    return ModelConfig(architecture=family.name, mask_token_id=fields.token_id("mask_token_id"), **shapes)


def load_config(folder: str | Path) -> ModelConfig:
    """Read `folder/config.json`. Raises: ModelLoadError when it is missing, unreadable or unsupported."""
    path = Path(folder) / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelLoadError(
            f"no config.json in {str(folder)!r}: a model folder holds config.json, safetensors and a tokenizer",
            field="config.json",
            value=str(folder),
            limit="an existing file",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadError(
            f"config.json in {str(folder)!r} can't be read: {error}",
            field="config.json",
            value=str(path),
            limit="a JSON object in UTF-8",
        ) from error
    return read_config(values)


def _family_of(values: Mapping[str, Any]) -> Family:
    """Looks at `architectures` first: families may share a `model_type`."""
    model_type = values.get("model_type")
    if isinstance(model_type, str):
        named = values.get("architectures") or ()
        fitting = [family for family in FAMILIES if model_type.lower() in family.model_types]
        for family in fitting:
            if any(name in family.architectures for name in named if isinstance(name, str)):
                return family
        if fitting:
            return fitting[0]
    served = "; ".join(f"{' or '.join(map(repr, family.model_types))} ({family.models})" for family in FAMILIES)
    raise ModelLoadError(
        f"model_type {shorten(model_type)} is not supported: shoal runs {served}",
        field="model_type",
        value=model_type,
        limit=served,
    )
