"""The served families, and the lookup of a `config.json`'s family."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelLoadError, shorten
from .a2d_llama import A2D_LLAMA
from .a2d_qwen2 import A2D_QWEN2
from .a2d_qwen3 import A2D_QWEN3
from .config import ModelConfig
from .config_fields import Fields
from .dream import DREAM
from .family import Family
from .illada import ILLADA
from .llada import LLADA
from .llada_moe import LLADA_MOE
from .mask_token import mask_token_id as find_mask_token_id

FAMILIES: tuple[Family, ...] = (LLADA, LLADA_MOE, ILLADA, DREAM, A2D_LLAMA, A2D_QWEN2, A2D_QWEN3)

# Pieces of architecture names and model types, in lower case without `-` and `_`.
_BLOCK_CAUSAL = {
    "llada2": "LLaDA2.x",
    "sdar": "SDAR",
    "fastdllmqwen": "Fast-dLLM v2",
    "fastdllmv2": "Fast-dLLM v2",
    "stablediffcoder": "Stable-DiffCoder",
    "diffusiongemma": "DiffusionGemma",
}


def family_named(name: str) -> Family:
    """The family whose name is a ModelConfig's `architecture`. Raises: KeyError."""
    return {family.name: family for family in FAMILIES}[name]


def published(name: str) -> dict[str, Any]:
    """Content of the `config.json` of a published checkpoint, such as `llada-8b`. Raises: KeyError."""
    return dict({name: values for family in FAMILIES for name, values in family.published.items()}[name])


def read_config(
    values: Mapping[str, Any], *, mask_token_id: int | None = None, folder: str | Path | None = None
) -> ModelConfig:
    """Read the parsed content of a `config.json`; the mask token as `mask_token.py` finds it.

    Raises: ModelLoadError naming the key, its value and what is supported: for a model of an unknown family, a missing
    or ill-typed key, or a feature that the decoder does not have (ALiBi, RoPE scaled as YaRN does, biases beyond
    q/k/v, sliding windows, quantised weights, other block or activation types).
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
    mask = find_mask_token_id(fields, family, None if folder is None else Path(folder), mask_token_id)
    return ModelConfig(architecture=family.name, mask_token_id=mask, **shapes)


def load_config(folder: str | Path, mask_token_id: int | None = None) -> ModelConfig:
    """Read `folder/config.json`; `mask_token_id` replaces what it says.

    Raises: ModelLoadError when it is missing, unreadable or unsupported.
    """
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
    return read_config(values, mask_token_id=mask_token_id, folder=folder)


def _family_of(values: Mapping[str, Any]) -> Family:
    """Looks at `architectures` first: families may share a `model_type`. A marker decides between several."""
    model_type, named = values.get("model_type"), values.get("architectures")
    architectures = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    kind = model_type if isinstance(model_type, str) else ""
    for name in architectures:
        _refuse_block_causal("architectures", name)
    _refuse_block_causal("model_type", kind)
    fitting = [family for family in FAMILIES if kind.lower() in family.model_types]
    exact = [family for family in fitting if set(architectures) & set(family.architectures)]
    for family in exact or fitting:
        if family.marker in values:
            return family
    if exact or fitting:
        return (exact or fitting)[0]
    served = "; ".join(f"{' or '.join(map(repr, family.model_types))} ({family.models})" for family in FAMILIES)
    others = ", ".join(dict.fromkeys(_BLOCK_CAUSAL.values()))
    raise ModelLoadError(
        f"model_type {shorten(model_type)} is not supported. Served are {served}. Not served are {others}: their "
        "attention is causal between blocks, so that their prefix caches are exact: use engines made for them",
        field="model_type",
        value=model_type,
        limit=served,
    )


def _refuse_block_causal(field: str, name: str) -> None:
    plain = name.lower().replace("-", "").replace("_", "")
    for piece, model in _BLOCK_CAUSAL.items():
        if piece in plain:
            raise ModelLoadError(
                f"{field} names {name!r}: {model}'s attention is causal between blocks, so that its prefix cache is "
                "exact; use an engine made for it. shoal serves models in which every token sees every token",
                field=field,
                value=name,
                limit="a model in which every token sees every token",
            )
