"""Forwards and commits on a CPU, one forward at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ...errors import EngineError
from ...model.decoder import Decoder
from ...request.forward import AddRequest, ForwardItem, Grow
from ..canvas import Canvas, Tokens
from ..executor import Ran
from ..pools import BoundaryPool, KVPool
from .commit_rules import Stability, by_entropy_bound, by_stability, decayed_threshold
from .logit_rules import LogitRules
from .runner import Entry, ModelRunner
from .sampler import choose_commits, choose_tokens, entropies


@dataclass(slots=True)
class _Open:
    """A canvas's tokens (int64 [prompt + canvas]) and page table (int64 [bands, pages]), what it draws from, what
    changes its logits, and how its distributions moved."""

    rules: LogitRules
    tokens: Tensor
    page_table: Tensor
    generator: torch.Generator
    stability: Stability = field(default_factory=Stability)


class CpuExecutor:
    """See `Executor`. In fp32 an item's answers do not depend on the other items of its batch."""

    def __init__(self, decoder: Decoder, kv: KVPool, boundary: BoundaryPool):
        self.decoder, self.kv, self.boundary = decoder, kv, boundary
        self.runner = ModelRunner(decoder, kv, boundary)
        self._shift = int(decoder.config.shift_logits)
        self._held: dict[int, _Open] = {}

    def open(self, canvas: Canvas, message: AddRequest) -> None:
        """Hold a canvas's tokens and page table."""
        device = self.decoder.device
        self._held[canvas.serial] = _Open(
            LogitRules(message.sampling, self.decoder.config.eos_token_id, message.end_ids, message.stop_ids),
            torch.from_numpy(canvas.sequence(message.prompt, self.decoder.config.mask_token_id)).to(device),
            torch.from_numpy(message.page_table.astype(np.int64)).to(device),
            torch.Generator().manual_seed(message.seed),
        )

    def grow(self, canvas: Canvas, message: Grow) -> None:
        """Lengthen a canvas's page table."""
        held = self._held[canvas.serial]
        assert held.page_table.shape[1] == message.held
        pages = torch.from_numpy(message.pages.astype(np.int64)).to(held.page_table.device)
        held.page_table = torch.cat((held.page_table, pages), 1)

    def close(self, canvas: Canvas) -> None:
        """Drop a canvas and the copies of its keys and values."""
        del self._held[canvas.serial]
        self.runner.forget(canvas.rid)

    def audit_inputs(self, canvas: Canvas) -> tuple[Tensor, Tensor]:
        """Tokens and page table."""
        held = self._held[canvas.serial]
        return held.tokens, held.page_table

    def enter(self, canvases: Sequence[Canvas]) -> None:
        """Nothing here depends on the current block."""

    def run(self, items: Sequence[ForwardItem], canvases: Sequence[Canvas], at_most: int) -> tuple[int, list[Ran]]:
        """Run items together, once."""
        positions = [_positions(item, canvas) for item, canvas in zip(items, canvases, strict=True)]
        held = [self._held[canvas.serial] for canvas in canvases]
        hidden = self.runner.forward(
            [
                Entry(item, own.tokens, own.page_table, wanted - self._shift)
                for item, own, wanted in zip(items, held, positions, strict=True)
            ]
        )
        logits = self.runner.logits(hidden) if len(hidden) else hidden
        parts = logits.split([len(wanted) for wanted in positions])
        ran = []
        for item, canvas, own, wanted, part in zip(items, canvases, held, positions, parts, strict=True):
            if item.targets is not None:
                ran.append(Ran(scores=_scores(part, item.targets[:, 1])))
            elif len(wanted):
                ran.append(_commit(canvas, own, wanted, part))
            else:
                ran.append(Ran())
        return 1, ran


def _positions(item: ForwardItem, canvas: Canvas) -> Tokens:
    """Positions whose logits are read: an item's targets, or the masks of its block."""
    if item.targets is not None:
        return item.targets[:, 0]
    return canvas.open_positions(item.block_start, item.block_stop)


def _scores(logits: Tensor, tokens: Tokens) -> list[float]:
    """Natural log-probabilities of tokens [n] by logits [n, vocab]."""
    at = torch.from_numpy(tokens.copy()).to(logits.device)
    scores: list[float] = logits.float().log_softmax(-1).gather(1, at[:, None])[:, 0].tolist()
    return scores


def _commit(canvas: Canvas, held: _Open, positions: Tokens, logits: Tensor) -> Ran:
    """Commit masks at `positions` by their logits [masks, vocab]."""
    try:
        start = canvas.prompt_length
        logits = held.rules.apply(logits, positions - start, held.tokens[:start], canvas.tokens)
        token, confidence = choose_tokens(logits, canvas.sampling, held.generator)
    except EngineError:
        return Ran(finite=False)
    confidence = held.rules.last(token, confidence)
    entropy = entropies(logits) if canvas.sampling.wants_entropy else None
    chosen = _chosen(canvas, held, positions, logits, confidence, entropy)
    tokens, committed = token[chosen], positions[chosen.cpu().numpy()]
    held.tokens[torch.from_numpy(committed).to(held.tokens.device)] = tokens
    block = canvas.block_tokens().copy()
    block[committed - canvas.block[0]] = tokens.cpu().numpy()
    return Ran(
        block=block,
        confidences=confidence[chosen].tolist() if canvas.marks else (),
        entropy=0.0 if entropy is None or not len(chosen) else float(entropy[chosen].max()),
    )


def _chosen(
    canvas: Canvas, held: _Open, positions: Tokens, logits: Tensor, confidence: Tensor, entropy: Tensor | None
) -> Tensor:
    """Indices of the masks to commit, by the request's rule."""
    params, step = canvas.sampling, canvas.block_step
    if params.entropy_bound is not None and entropy is not None:
        return by_entropy_bound(entropy, params.entropy_bound)
    threshold = decayed_threshold(params, len(positions), canvas.block_masks)
    if params.kl_threshold is not None:
        passes = held.stability.passes(canvas.block, positions, logits, params.kl_threshold)
        return by_stability(confidence, passes >= params.kl_history, threshold)
    return choose_commits(confidence, params, canvas.due(step), held.generator, canvas.share(step), threshold)
