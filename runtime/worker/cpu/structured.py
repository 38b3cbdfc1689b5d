"""Tokens of a text that must satisfy a grammar: committed from left to right, as far as confidence goes."""

from __future__ import annotations

import torch
from torch import Tensor

from ...grammar.state import GrammarState
from ...request.sampling_params import DEFAULT_THRESHOLD
from ..canvas import Canvas, Tokens
from .sampler import choose_tokens


def choose_run(
    logits: Tensor, canvas: Canvas, positions: Tokens, state: GrammarState, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Tokens (int64 [n], n >= 1) to commit at the first n of `positions`, all masks of the current block in order, and
    their confidences (fp32 [n]).

    Of each position only tokens that the grammar allows behind the one before count; `state` goes on with those that
    are chosen. The run ends where the quota is used up or confidence falls short (at least one token is committed), and
    behind a token that ends the text. Positions further right are proposals of the same forward: a later forward reads
    them again.

    Args:
        logits: [masks, vocab].
        canvas: gives the sampling parameters and the quota.
        state: at the first position.

    Raises EngineError for logits that give no probabilities.
    """
    params, chosen, confidences = canvas.sampling, list[int](), list[float]()
    due = canvas.due(canvas.block_step)
    for row, position in zip(logits, positions.tolist(), strict=True):
        left = params.max_new_tokens - (position - canvas.prompt_length)
        allowed = torch.from_numpy(state.allowed(left)).to(row.device)
        allowed = allowed[allowed < len(row)]  # an end may lie behind the vocabulary
        masked = torch.full_like(row, -torch.inf)
        masked[allowed] = row[allowed]
        token, confidence = choose_tokens(masked[None], params, generator)
        if chosen and not _passes(float(confidence), len(chosen) + 1, due, canvas):
            break
        chosen.append(int(token))
        confidences.append(float(confidence))
        if state.take(chosen[-1]):
            break
    device = logits.device
    return torch.tensor(chosen, dtype=torch.int64, device=device), torch.tensor(confidences, device=device)


def _passes(confidence: float, number: int, due: int | None, canvas: Canvas) -> bool:
    """Whether the `number`-th token of a run is committed, by the rules of `choose_commits`."""
    params = canvas.sampling
    if due is not None:
        return number <= due
    if params.factor is not None:
        return confidence >= 1 - params.factor / (number + 1)
    return confidence >= (DEFAULT_THRESHOLD if params.threshold is None else params.threshold)
