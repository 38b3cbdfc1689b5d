"""What a service says about itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..config import EngineConfig
from ..request.facts import Facts


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceInfo:
    """What runs here. Constant once the service is up.

    Attributes:
        model_path: as given; `model_folder` is its folder.
        architecture: name of the model's family; `model` holds every field of ModelConfig.
        engine: every field of EngineConfig, and `device_in_use`, `dtype_in_use`.
        max_tokens: most prompt and canvas tokens of a request: the model's maximum or the pool's.
        block_length: default of the sampling parameter; `block_length_source` says where it comes from, if no flag
            sets it.
        eos_token_id: that of config.json, the first of a list.
        stop_token_ids: all tokens that end a text, sorted.
        generation: sampling parameters that the model's generation_config.json sets.
        depth_profile: as in `depth_profile.json`.
        has_tokenizer, has_chat_template: whether text and chat messages can be given.
        chat_markers: the template's text around each message of a chat, as ChatMarkers gives it.
    """

    model_path: str
    model_folder: str
    architecture: str
    model: dict[str, Any]
    engine: dict[str, Any]
    max_tokens: int
    block_length: int
    block_length_source: str
    vocab_size: int
    mask_token_id: int
    eos_token_id: int
    stop_token_ids: tuple[int, ...]
    generation: dict[str, Any]
    depth_profile: dict[str, Any]
    has_tokenizer: bool
    has_chat_template: bool
    version: str
    chat_markers: dict[str, Any]

    @classmethod
    def of(
        cls,
        config: EngineConfig,
        facts: Facts,
        *,
        has_tokenizer: bool,
        has_chat_template: bool,
        chat_markers: dict[str, Any],
        end_ids: Iterable[int] = (),
    ) -> ServiceInfo:
        """From an engine's options and the facts of its worker and its tokenizer (`end_ids`: see `Tokenizer`)."""
        from ... import __version__

        in_use = {
            "page_size": facts.page_size,
            "layers_per_band": facts.layers_per_band,
            "device_in_use": facts.device,
            "dtype_in_use": facts.dtype,
        }
        return cls(
            model_path=config.model_path,
            model_folder=facts.folder,
            architecture=facts.model.architecture,
            model=dataclasses.asdict(facts.model),
            engine=dataclasses.asdict(config) | in_use,
            max_tokens=facts.max_tokens,
            block_length=facts.block_length,
            block_length_source=facts.block_length_source,
            vocab_size=facts.model.vocab_size,
            mask_token_id=facts.model.mask_token_id,
            eos_token_id=facts.model.eos_token_id,
            stop_token_ids=facts.stop_ids(end_ids),
            generation=facts.generation,
            depth_profile=facts.depth_profile,
            has_tokenizer=has_tokenizer,
            has_chat_template=has_chat_template,
            version=__version__,
            chat_markers=chat_markers,
        )
