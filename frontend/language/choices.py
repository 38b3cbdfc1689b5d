"""How `select` decides between choices: by a diffusion model's own scores (runtime/request/scoring.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..backend import Backend, Scored

Scores = Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True)
class Decision:
    """Which choice was taken, the figures it was taken by, and what the scoring cost."""

    index: int
    meta: dict[str, Any] = field(default_factory=dict)
    usage: dict[str, Any] = field(default_factory=dict)


class ChoicesMethod:
    """The choice with the highest mean score of its tokens. `score`: which scores, see runtime/request/scoring.py."""

    def __init__(self, name: str, score: str):
        self.name = name
        self.score = score

    def __repr__(self) -> str:
        return self.name

    async def decide(
        self, backend: Backend, tokens: Sequence[int], choices: Sequence[Sequence[int]], shared_prefix: int
    ) -> Decision:
        """Score the choices behind a prompt and take one; of equal ones the first."""
        scored = await backend.score(tokens, choices, self.score, shared_prefix)
        values = self.values(scored.token_scores)
        return Decision(_best(values), _figures(scored, values), scored.meta)

    def values(self, scores: Scores) -> list[float]:
        """A figure for each choice: the largest wins."""
        return [_mean(one) for one in scores]


class Greedy(ChoicesMethod):
    """Token by token: of the choices still in the running keep those whose score at this position is highest.

    With one-shot scores: those of a position come from one distribution. A choice that has no token there counts with
    the mean of its scores.
    """

    def values(self, scores: Scores) -> list[float]:
        """See ChoicesMethod: 1 for the choice that is left, 0 for the others."""
        left = list(range(len(scores)))
        for position in range(max(map(len, scores))):
            at = {i: scores[i][position] if position < len(scores[i]) else _mean(scores[i]) for i in left}
            best = max(at.values())
            left = [i for i in left if at[i] == best]
        return [float(i == left[0]) for i in range(len(scores))]


class Unconditional(ChoicesMethod):
    """Mean over the tokens of score less the score of the same token without the prompt (EOS alone before it)."""

    async def decide(
        self, backend: Backend, tokens: Sequence[int], choices: Sequence[Sequence[int]], shared_prefix: int
    ) -> Decision:
        """See ChoicesMethod."""
        scored = await backend.score(tokens, choices, self.score, shared_prefix)
        alone = await backend.score(await backend.unconditional(), choices, self.score, 0)
        pairs = zip(scored.token_scores, alone.token_scores, strict=True)
        values = [_mean([one - other for one, other in zip(ours, theirs, strict=True)]) for ours, theirs in pairs]
        both = {name: scored.meta.get(name, 0) + alone.meta.get(name, 0) for name in scored.meta}
        return Decision(_best(values), _figures(scored, values), both)


token_length_normalized = ChoicesMethod("token_length_normalized", "pseudo")
greedy_token_selection = Greedy("greedy_token_selection", "one_shot")
unconditional_likelihood_normalized = Unconditional("unconditional_likelihood_normalized", "pseudo")
one_shot = ChoicesMethod("one_shot", "one_shot")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda index: (values[index], -index))


def _figures(scored: Scored, values: Sequence[float]) -> dict[str, Any]:
    return {"values": list(values), "token_scores": [list(one) for one in scored.token_scores]}
