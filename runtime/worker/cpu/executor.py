"""Forwards and commits on a CPU, one forward at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ...grammar.vocabulary import Vocabulary
from ...model.decoder import Decoder
from ...request.forward import AddRequest, ForwardItem, Grow
from ..canvas import Canvas, Tokens
from ..executor import Ran
from ..grammars import Grammars
from ..pools import BoundaryPool, KVPool
from .choice import Chooser, guided
from .runner import Entry, ModelRunner


@dataclass(slots=True)
class _Open:
    """A canvas's tokens (int64 [prompt + canvas]), its page table (int64 [bands, pages]), and its chooser."""

    tokens: Tensor
    page_table: Tensor
    chooser: Chooser


class CpuExecutor:
    """See `Executor`. In fp32 an item's answers do not depend on the other items of its batch."""

    def __init__(
        self, decoder: Decoder, kv: KVPool, boundary: BoundaryPool, vocabulary: Callable[[], Vocabulary] | None = None
    ):
        """`vocabulary` loads the model's tokens, for the first request with a grammar."""
        self.decoder, self.kv, self.boundary = decoder, kv, boundary
        self.runner = ModelRunner(decoder, kv, boundary)
        self._shift = int(decoder.config.shift_logits)
        self._held: dict[int, _Open] = {}
        self._grammars = Grammars(vocabulary)

    def open(self, canvas: Canvas, message: AddRequest) -> None:
        """Hold a canvas's tokens and page table."""
        device = self.decoder.device
        self._held[canvas.serial] = _Open(
            torch.from_numpy(canvas.sequence(message.prompt, self.decoder.config.mask_token_id)).to(device),
            torch.from_numpy(message.page_table.astype(np.int64)).to(device),
            Chooser.of(message, self.decoder.config.eos_token_id, self._grammars),
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
        unguided = self._without_prompts(items, canvases, held, positions)
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
                audited = part.float().clone() if item.compares_predictions else None  # choices may change `part`
                if canvas.serial in unguided:
                    part = guided(part, unguided[canvas.serial], canvas.sampling.cfg_scale)
                result, at, tokens = own.chooser.commit(canvas, wanted, part, own.tokens[: canvas.prompt_length])
                own.tokens[at] = tokens
                ran.append(result if audited is None else replace(result, logits=audited))
            else:
                ran.append(Ran())
        return 1, ran

    def _without_prompts(
        self,
        items: Sequence[ForwardItem],
        canvases: Sequence[Canvas],
        held: Sequence[_Open],
        positions: Sequence[Tokens],
    ) -> dict[int, Tensor]:
        """Logits of the positions with prompts masked, for canvases (by serial) that are guided by them.

        These forwards compute whole sequences, whose keys and values those of the usual ones then replace.
        """
        entries, serials = [], []
        for item, canvas, own, wanted in zip(items, canvases, held, positions, strict=True):
            if canvas.sampling.cfg_scale and len(wanted) and item.targets is None:
                assert item.start == 0 == item.join
                tokens = own.tokens.clone()
                tokens[: canvas.prompt_length] = self.decoder.config.mask_token_id
                entries.append(Entry(item, tokens, own.page_table, wanted - self._shift))
                serials.append(canvas.serial)
        if not entries:
            return {}
        parts = self.runner.logits(self.runner.forward(entries)).split([len(entry.wanted) for entry in entries])
        return dict(zip(serials, parts, strict=True))


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
