"""A family of models: how to read its `config.json`, and how its checkpoints name tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .config_fields import Fields
from .weight_names import WeightNames


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Models that one description fits. `registry.py` lists them.

    Attributes:
        name: `ModelConfig.architecture` of its models.
        models: its models in words, for messages.
        architectures: class names under `architectures` of a `config.json` that mean this family.
        model_types: values of `model_type` that its models have, without regard to case.
        never_chosen: texts of tokens that no request is given: they speak to a sampler that shoal does not have.
        marker: a key of `config.json` that tells it from other families of its architecture or `model_type`; "": none.
        read: the fields of ModelConfig, except `architecture` and `mask_token_id`, from a `config.json`. Raises
            ModelLoadError for what the decoder can't run.
        weight_names: of its checkpoints.
        published: name -> content of the `config.json` of published checkpoints: shapes for tests and benchmarks.
        mask_token_id: of its published models, where their `config.json` has none.
        depth_table: the `DepthProfile.builtin` that serves a model without a profile; "": the conservative one.
    """

    name: str
    models: str
    architectures: tuple[str, ...]
    model_types: tuple[str, ...]
    read: Callable[[Fields], dict[str, Any]]
    weight_names: WeightNames
    published: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    mask_token_id: int | None = None
    depth_table: str = ""
    never_chosen: tuple[str, ...] = ()
    marker: str = ""
