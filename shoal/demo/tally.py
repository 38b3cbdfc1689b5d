"""Results of one mode, or one depth: answers, work and time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .workload import Asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer and its cost; the figures are those of RequestOutput."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    depth: int
    nfe: int
    reused_token_layers: int
    computed_token_layers: int


@dataclass(slots=True)
class Tally:
    """Answers to the questions asked so far, and the seconds they took: wall time, and CPU time of the process.

    Args:
        num_layers: layers of the model, for shares of token-layers.
    """

    num_layers: int
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    asked: list[Asked] = field(default_factory=list)
    outputs: list[Answer] = field(default_factory=list)
    warm_up_token_layers: int = 0

    def add(
        self, asked: Sequence[Asked], outputs: Sequence[Answer], seconds: float, cpu_seconds: float,
        warm_up_token_layers: int = 0,
    ) -> None:  # fmt: skip
        """Add a batch: its questions, their answers in the same order, its wall time and CPU time, and the token-layers
        computed before any question for the shared prefix.
        """
        self.warm_up_token_layers += warm_up_token_layers
        self.asked += asked
        self.outputs += outputs
        self.seconds += seconds
        self.cpu_seconds += cpu_seconds

    @property
    def right(self) -> list[bool]:
        """For each question whether the text is exactly the right answer."""
        return [o.text == a.question.answer for a, o in zip(self.asked, self.outputs, strict=True)]

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return _mean(self.right)

    @property
    def accuracy_by_kind(self) -> dict[str, float]:
        """Share of right answers to each kind of question; `json` and `follow_up` cut across the kinds."""
        groups: dict[str, list[bool]] = {}
        for asked, right in zip(self.asked, self.right, strict=True):
            names = [asked.question.kind, *["json"] * asked.question.json, *["follow_up"] * asked.follow_up]
            for name in names:
                groups.setdefault(name, []).append(right)
        return {name: _mean(group) for name, group in sorted(groups.items())}

    @property
    def completion_tokens(self) -> int:
        """Tokens before EOS, of all answers."""
        return sum(o.completion_tokens for o in self.outputs)

    @property
    def tokens_per_s(self) -> float:
        """Completion tokens a second of wall time."""
        return self.completion_tokens / self.seconds if self.seconds else 0.0

    def agreement(self, other: Tally) -> float:
        """Share of questions that both answered with the same text. They must have been asked the same questions."""
        pairs = zip(self.outputs, other.outputs, strict=True)
        return _mean([mine.text == theirs.text for mine, theirs in pairs])

    def figures(self) -> dict[str, Any]:
        """JSON-able figures.

        `cached_share` is the share of prompt tokens whose KVs came from another request in at least one layer;
        `reused_share` weights them by the layers: reused token-layers over prompt tokens x layers.
        `computed_token_layers` is for a request, over all its forward passes and its share of the warm-ups.
        `cpu_seconds` tells a slow spell of the machine from slow work.
        """
        count = max(1, len(self.outputs))
        prompt = sum(o.prompt_tokens for o in self.outputs)
        by_kind = self.accuracy_by_kind
        computed = sum(o.computed_token_layers for o in self.outputs) + self.warm_up_token_layers
        return {
            "accuracy": self.accuracy,
            "accuracy_by_kind": by_kind,
            "nfe": sum(o.nfe for o in self.outputs) / count,
            "cached_share": sum(o.cached_tokens for o in self.outputs) / max(1, prompt),
            "reused_share": sum(o.reused_token_layers for o in self.outputs) / max(1, prompt * self.num_layers),
            "computed_token_layers": computed / count,
            "prompt_tokens": prompt,
            "completion_tokens": self.completion_tokens,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "tokens_per_s": self.tokens_per_s,
        }


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else 0.0
