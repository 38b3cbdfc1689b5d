"""Sampling parameters of requests that say nothing about them, and where each comes from."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ..config import EngineConfig
from ..request.sampling_params import (
    DEFAULT_MAX_NEW_TOKENS,
    DEFAULT_THRESHOLD,
    RULES,
    STRUCTURES,
    SamplingParams,
)
from ..service.info import ServiceInfo
from .config import ServerConfig
from .cost import bounded

_FILE = "generation_config.json"
_ENGINES = ("canvas_window", "refresh_schedule", "full_refresh_every", "refresh_entropy")
"""Sampling parameters whose defaults are the engine's options of the same names."""
_ENGINE_DEFAULTS = EngineConfig()
_NOT_DEFAULTS = ("seed", "stop", "stop_token_ids", "ignore_eos", "split_special_tokens", "logprobs", *STRUCTURES)


@dataclass(frozen=True, slots=True)
class Defaults:
    """Flags go before generation_config.json, that before what is built in.

    Attributes:
        values: sampling parameters, `max_new_tokens` among them; block_length is the engine's.
        sources: for each a flag, the file's name, or `built-in`.
    """

    values: dict[str, Any]
    sources: dict[str, str]

    @classmethod
    def of(cls, config: ServerConfig, info: ServiceInfo, answers: int = 1) -> Defaults:
        """Those of a server, for a request of so many answers.

        A canvas that grows (`canvas_window`) costs nothing before it is written, so it may become as long as the model
        allows, if the bounds on one request's cost leave that to each of the answers.
        """
        flags = config.decoding_defaults()
        grows = info.engine.get("canvas_window") is not None and bounded(config, answers * info.max_tokens)
        built_in = {"max_new_tokens": info.max_tokens if grows else DEFAULT_MAX_NEW_TOKENS}
        values, sources = dict(built_in), dict.fromkeys(built_in, "built-in")
        layers = [
            (info.generation, dict.fromkeys(info.generation, _FILE)),
            (flags, {name: f"--default-{name.replace('_', '-')}" for name in flags}),
        ]
        for layer, origins in layers:
            if any(name in layer for name in RULES):  # one rule takes the place of another
                for name in RULES:
                    values.pop(name, None)
                    sources.pop(name, None)
            values.update(layer)
            sources.update(origins)
        return cls(values, sources)

    def shown(self, info: ServiceInfo) -> dict[str, dict[str, Any]]:
        """Value and source of every default, for /server_info."""
        shown = {name: {"value": self.values[name], "source": self.sources[name]} for name in self.values}
        source = info.block_length_source if info.engine.get("block_length") is None else "--block-length"
        shown["block_length"] = {"value": info.block_length, "source": source}
        for name in _ENGINES:
            value = info.engine.get(name)
            given = value != getattr(_ENGINE_DEFAULTS, name)
            shown[name] = {"value": value, "source": f"--{name.replace('_', '-')}" if given else "built-in"}
        if not any(name in shown for name in RULES):
            shown["threshold"] = {"value": DEFAULT_THRESHOLD, "source": "built-in"}
        for field in fields(SamplingParams):
            if field.name not in shown and field.name not in (*_NOT_DEFAULTS, *RULES):
                shown[field.name] = {"value": field.default, "source": "built-in"}
        return shown
