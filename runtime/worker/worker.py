"""The worker: owns the model, the pools and the canvases, does what the scheduler says and decides nothing."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import EngineError
from ..request.forward import AddRequest, Forward, ForwardItem, Release, StepResult
from ..request.sampling_params import SamplingParams
from .audit import AuditPass
from .cpu.runner import Entry, ModelRunner
from .cpu.sampler import choose_commits, choose_tokens, finite_scores, quota

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Canvas:
    """A request's tokens on the worker: prompt and canvas, and which canvas positions are still masks.

    A mask is a position that `masked` says is one: a mask token written in the prompt is an ordinary token.
    """

    tokens: Tensor
    prompt_length: int
    masked: npt.NDArray[np.bool_]
    page_table: Tensor
    sampling: SamplingParams
    stop_ids: frozenset[int]
    generator: torch.Generator
    steps_per_block: int | None
    block: tuple[int, int] = (-1, -1)
    block_masks: int = 0
    block_step: int = 0
    frontier: int = 0
    stopped: bool = field(default=False)

    def open_positions(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Masked positions (of the whole sequence) in [start, stop)."""
        canvas = self.masked[start - self.prompt_length : stop - self.prompt_length]
        return np.flatnonzero(canvas) + start

    def enter(self, start: int, stop: int) -> None:
        """Note that block [start, stop) is the current one; its steps are counted from here."""
        if self.block != (start, stop):
            self.block = (start, stop)
            self.block_masks = len(self.open_positions(start, stop))
            self.block_step = 0

    def commit(self, positions: npt.NDArray[np.int64], tokens: Tensor) -> None:
        """Replace masks by tokens, and see whether the text up to the first mask holds a stop token."""
        at = positions - self.prompt_length
        self.tokens[torch.from_numpy(positions).to(self.tokens.device)] = tokens
        self.masked[at] = False
        while self.frontier < len(self.masked) and not self.masked[self.frontier]:
            if self.stop_ids and int(self.tokens[self.prompt_length + self.frontier]) in self.stop_ids:
                self.stopped = True
            self.frontier += 1


class Worker:
    """Executes messages of the scheduler, in order."""

    def __init__(self, runner: ModelRunner):
        self.runner = runner
        self._audit = AuditPass(runner.decoder, runner.kv)
        self._canvases: dict[str, Canvas] = {}

    @property
    def num_requests(self) -> int:
        """Requests that have a canvas."""
        return len(self._canvases)

    def add(self, message: AddRequest) -> None:
        """Create a canvas behind the prompt: masks, and the fixed tokens of a template."""
        config, device = self.runner.decoder.config, self.runner.decoder.device
        tokens = np.full(len(message.prompt) + message.canvas_length, config.mask_token_id, np.int64)
        prompt, done = len(message.prompt), len(message.committed)
        tokens[:prompt] = message.prompt
        tokens[prompt : prompt + done] = message.committed
        masked = np.ones(message.canvas_length, np.bool_)
        masked[:done] = False
        if message.canvas is not None:
            masked = message.canvas < 0
            tokens[prompt:][~masked] = message.canvas[~masked]
        sampling = message.sampling
        whole = sampling.ignore_eos or message.canvas is not None  # decoded to the end of the canvas
        stop_ids = () if whole else (config.eos_token_id, *sampling.stop_token_ids)
        self._canvases[message.rid] = Canvas(
            torch.from_numpy(tokens).to(device),
            len(message.prompt),
            masked,
            torch.from_numpy(message.page_table.astype(np.int64)).to(device),
            sampling,
            frozenset(stop_ids),
            torch.Generator().manual_seed(message.seed),
            message.steps_per_block,
            frontier=done,
        )

    def release(self, message: Release) -> None:
        """Forget canvases; unknown requests are ignored (an abort may come twice)."""
        for rid in message.rids:
            self._canvases.pop(rid, None)
            self._audit.forget(rid)
            self.runner.forget(rid)

    def forward(self, message: Forward) -> list[StepResult]:
        """Run a forward, one result an item, in order. A failure is reported in the results, never raised."""
        results = {item.rid: StepResult(item.rid) for item in message.items}
        audited = [item for item in message.items if item.audit]
        try:
            for item in audited:
                self._begin_audit(item)
            for number, (part, times) in enumerate(message.parts()):
                items = list(part) if number == 0 else [item for item in part if self._continues(item)]
                for _ in range(times):
                    if not items:
                        break
                    self._step(items, results)
                    items = [item for item in items if self._continues(item)]
            for item in audited:
                self._audit.end(results[item.rid], self._canvases[item.rid].sampling.temperature == 0)
        except Exception as error:  # whatever broke, the requests of this batch fail and the others go on
            logger.exception("a forward of %d requests failed", len(message.items))
            for result in results.values():
                result.error = f"{type(error).__name__}: {error}"
        return list(results.values())

    def _begin_audit(self, item: ForwardItem) -> None:
        canvas = self._canvases[item.rid]
        masks = canvas.open_positions(item.block_start, item.block_stop)
        self._audit.begin(item, canvas.tokens, canvas.page_table, masks)

    def _continues(self, item: ForwardItem) -> bool:
        canvas = self._canvases[item.rid]
        return not canvas.stopped and len(canvas.open_positions(item.block_start, item.block_stop)) > 0

    @torch.inference_mode()
    def _step(self, items: list[ForwardItem], results: dict[str, StepResult]) -> None:
        canvases = [self._canvases[item.rid] for item in items]
        positions = [self._positions(item, canvas) for item, canvas in zip(items, canvases, strict=True)]
        shift = int(self.runner.decoder.config.shift_logits)
        layers = self.runner.decoder.num_layers
        hidden = self.runner.forward(
            [
                Entry(item, canvas.tokens, canvas.page_table, wanted - shift)
                for item, canvas, wanted in zip(items, canvases, positions, strict=True)
            ]
        )
        logits = self.runner.logits(hidden) if len(hidden) else hidden
        begin = 0
        for item, canvas, wanted in zip(items, canvases, positions, strict=True):
            result = results[item.rid]
            result.nfe += 1
            result.token_layers += (item.stop - item.start) * layers + (item.start - item.join) * (layers - item.depth)
            own = logits[begin : begin + len(wanted)]
            begin += len(wanted)
            try:
                if item.targets is not None:
                    tokens = torch.from_numpy(item.targets[:, 1].copy()).to(logits.device)
                    scores = own.float().log_softmax(-1).gather(1, tokens[:, None])[:, 0]
                    result.scores += finite_scores(scores.tolist())
                elif len(wanted):
                    self._commit(canvas, wanted, own, result)
            except EngineError as error:  # this request's alone
                logger.error("request %s: %s", item.rid, error.message)
                result.error, canvas.stopped = error.message, True

    @staticmethod
    def _positions(item: ForwardItem, canvas: Canvas) -> npt.NDArray[np.int64]:
        """Positions whose logits are read: an item's targets, or the masks of its block (which it enters)."""
        if item.targets is not None:
            return item.targets[:, 0]
        if item.block_stop == item.block_start:
            return np.empty(0, np.int64)
        canvas.enter(item.block_start, item.block_stop)
        return canvas.open_positions(item.block_start, item.block_stop)

    def _commit(self, canvas: Canvas, positions: npt.NDArray[np.int64], logits: Tensor, result: StepResult) -> None:
        params = canvas.sampling
        token, confidence = choose_tokens(logits, params, canvas.generator)
        count = None
        if canvas.steps_per_block is not None:
            count = quota(canvas.block_masks, canvas.steps_per_block, canvas.block_step)
        canvas.block_step += 1
        chosen = choose_commits(confidence, params, count).cpu()
        committed = positions[chosen.numpy()]
        tokens = token[chosen.to(token.device)]
        canvas.commit(committed, tokens)
        result.positions += committed.tolist()
        result.tokens += tokens.tolist()
