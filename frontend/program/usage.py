"""What a program cost, and what the cache saved it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any


@dataclass(slots=True)
class Usage:
    """Sums over the calls of a program, its forks and its warm-ups.

    Attributes:
        calls: requests that generated or scored something; `warm_ups` only computed a shared prefix.
        nfe: forward passes that the requests took part in.
        prompt_tokens, completion_tokens: of all calls.
        tokens_reused: prompt tokens whose shallow KVs came from the cache.
        token_layers_saved: token-layers that were not computed because of it; `token_layers_computed` were.
    """

    calls: int = 0
    warm_ups: int = 0
    nfe: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    tokens_reused: int = 0
    token_layers_saved: int = 0
    token_layers_computed: int = 0

    def add(self, meta: dict[str, Any], *, calls: int = 0, warm_ups: int = 0) -> None:
        """Count requests, with the meta info of their reply."""
        self.calls += calls
        self.warm_ups += warm_ups
        self.nfe += meta.get("nfe", 0)
        self.prompt_tokens += meta.get("prompt_tokens", 0)
        self.completion_tokens += meta.get("completion_tokens", 0)
        self.tokens_reused += meta.get("cached_tokens", 0)
        self.token_layers_saved += meta.get("reused_token_layers", 0)
        self.token_layers_computed += meta.get("computed_token_layers", 0)

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Usage)))

    @classmethod
    def total(cls, usages: Iterable[Usage]) -> Usage:
        """Sum of several."""
        return sum(usages, cls())

    def __str__(self) -> str:
        total = self.token_layers_saved + self.token_layers_computed
        return (
            f"{self.calls} calls, {self.nfe} forward passes; {self.tokens_reused:,} of {self.prompt_tokens:,} prompt "
            f"tokens reused, {self.token_layers_saved:,} token-layers saved "
            f"({100 * self.token_layers_saved / max(1, total):.0f}% of what they would have been)"
        )
