"""Commits that the host makes for requests on a GPU: of texts under a grammar, of guided ones, and by rules that the
kernels do not have.

The kernels leave such a request alone, as one that has stopped. After each forward the host reads the logits of its
masks, chooses tokens as on a CPU, and writes them to the request's slot.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ....kernels.sampling.canvas_state import STOPPED
from ...request.forward import AddRequest
from ..canvas import Canvas, Tokens
from ..cpu.choice import Chooser
from ..executor import Ran
from ..grammars import Grammars
from .slots import CanvasSlots


@dataclass(frozen=True, slots=True)
class _Held:
    chooser: Chooser
    prompt: Tensor


class HostCommits:
    """Requests with a grammar, with guidance, or with `entropy_bound`, `threshold_decay` or `kl_threshold`.

    Args:
        slots: their tokens and masks.
        eos: EOS as config.json has it.
        grammars: of the model.
    """

    def __init__(self, slots: CanvasSlots, eos: int, grammars: Grammars):
        self._slots, self._eos, self._grammars = slots, eos, grammars
        self._held: dict[int, _Held] = {}

    def open(self, canvas: Canvas, message: AddRequest) -> None:
        """Take over a canvas that has its slot, if the kernels can't choose its tokens."""
        sampling = message.sampling
        rules = (sampling.entropy_bound, sampling.kl_threshold, sampling.threshold_decay or None)
        if message.grammar is None and not sampling.cfg_scale and all(rule is None for rule in rules):
            return
        prompt = torch.from_numpy(message.prompt.copy()).to(self._slots.state.device)
        self._held[canvas.serial] = _Held(Chooser.of(message, self._eos, self._grammars), prompt)
        self._slots.state.stopped[canvas.slot].fill_(STOPPED)

    def close(self, canvas: Canvas) -> None:
        """Forget a canvas."""
        self._held.pop(canvas.serial, None)

    def has(self, canvas: Canvas) -> bool:
        """Whether the host commits for it."""
        return canvas.serial in self._held

    def mask_prompt(self, canvas: Canvas, mask: int | None) -> None:
        """Put the mask token in the place of the prompt's; None: put the prompt back."""
        tokens = self._slots.state.tokens[canvas.slot, : canvas.prompt_length]
        if mask is None:
            tokens.copy_(self._held[canvas.serial].prompt)
        else:
            tokens.fill_(mask)

    def commit(self, canvas: Canvas, positions: Tokens, logits: Tensor) -> Ran:
        """Commit masks of its block; `positions` are all of them, `logits` [masks, vocab] theirs."""
        held = self._held[canvas.serial]
        ran, at, tokens = held.chooser.commit(canvas, positions, logits, held.prompt)
        self._slots.state.tokens[canvas.slot, at] = tokens
        self._slots.state.masked[canvas.slot, at] = 0
        return ran
