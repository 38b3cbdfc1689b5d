"""The worker: owns canvases and audits, runs the scheduler's messages on an executor, and decides nothing."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence

import torch

from ..errors import EngineError
from ..request.forward import AddRequest, Forward, ForwardItem, Grow, MarkedResult, Marks, Release, StepResult
from .audit import AuditPass
from .canvas import Canvas
from .device import on_device
from .executor import NOT_FINITE, Executor, Ran

logger = logging.getLogger(__name__)


class Worker:
    """Executes messages of the scheduler, in order.

    An executor may run several steps of a message without reading the device in between. A request whose block is full,
    or whose text has ended, before the last step still takes part in the rest; once its block is full it commits
    nothing more.

    Args:
        executor: runs forwards on a CPU or a GPU, with the same answers.
    """

    def __init__(self, executor: Executor):
        self.executor = executor
        self._audit = AuditPass(executor.decoder, executor.kv)
        self._canvases: dict[str, Canvas] = {}
        self._serials = itertools.count()

    @property
    def num_requests(self) -> int:
        """Requests that have a canvas."""
        return len(self._canvases)

    def canvas(self, rid: str) -> Canvas:
        """The canvas of a request."""
        return self._canvases[rid]

    @torch.inference_mode()
    def add(self, message: AddRequest) -> None:
        """Create a canvas behind the prompt. Raises EngineError when the executor has no room for it."""
        canvas = Canvas.of(message, next(self._serials))
        with on_device(self.executor.decoder.device):
            self.executor.open(canvas, message)
        self._canvases[message.rid] = canvas

    @torch.inference_mode()
    def grow(self, message: Grow) -> None:
        """Lengthen a request's page table."""
        with on_device(self.executor.decoder.device):
            self.executor.grow(self._canvases[message.rid], message)

    def release(self, message: Release) -> None:
        """Forget canvases; unknown requests are ignored (an abort may come twice)."""
        for rid in message.rids:
            canvas = self._canvases.pop(rid, None)
            self._audit.forget(rid)
            if canvas is not None:
                self.executor.close(canvas)

    @torch.inference_mode()
    def forward(self, message: Forward) -> list[StepResult]:
        """Run a forward, one result an item, in order.

        A failure is reported in the results, never raised; except with ranks, which can't go on together after one has
        failed: then it raises.
        """
        results = {item.rid: self._result(item.rid) for item in message.items}
        audited = [item for item in message.items if item.audit]
        try:
            with on_device(self.executor.decoder.device):
                for item in audited:
                    self._begin_audit(item)
                for number, (part, left) in enumerate(message.parts()):
                    items = list(part) if number == 0 else self._continuing(part)
                    while items and left > 0:
                        left -= self._run(items, left, results)
                        items = self._continuing(items)
            for item in audited:
                self._audit.end(results[item.rid], not self._canvases[item.rid].draws)
        except Exception as error:  # whatever failed, this batch's requests fail and the others go on
            if self.executor.decoder.ranks is not None:
                raise
            logger.exception("a forward of %d requests failed", len(message.items))
            words = error.message if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
            for result in results.values():
                result.error = words
        return list(results.values())

    def _result(self, rid: str) -> StepResult:
        canvas = self._canvases.get(rid)
        return MarkedResult(rid, marks=Marks()) if canvas is not None and canvas.marks else StepResult(rid)

    def enter(self, items: Sequence[ForwardItem]) -> list[Canvas]:
        """The items' canvases, each with its item's block as the current one."""
        canvases = [self._canvases[item.rid] for item in items]
        changed = [
            canvas
            for item, canvas in zip(items, canvases, strict=True)
            if item.block_stop > item.block_start and canvas.enter(item.block_start, item.block_stop)
        ]
        self.executor.enter(changed)
        return canvases

    def _begin_audit(self, item: ForwardItem) -> None:
        canvas = self._canvases[item.rid]
        tokens, page_table = self.executor.audit_inputs(canvas)
        self._audit.begin(item, tokens, page_table, canvas.open_positions(item.block_start, item.block_stop))

    def _continuing(self, items: Sequence[ForwardItem]) -> list[ForwardItem]:
        """Items whose blocks have masks left and whose text has not ended."""
        pairs = ((item, self._canvases[item.rid]) for item in items)
        return [
            item
            for item, canvas in pairs
            if not canvas.stopped and len(canvas.open_positions(item.block_start, item.block_stop))
        ]

    def _run(self, items: Sequence[ForwardItem], at_most: int, results: dict[str, StepResult]) -> int:
        """Run forwards and record their results; returns how many ran."""
        canvases = self.enter(items)
        count, ran = self.executor.run(items, canvases, at_most)
        for item, canvas, each in zip(items, canvases, ran, strict=True):
            self._note(item, canvas, each, results[item.rid])
        return count

    def _note(self, item: ForwardItem, canvas: Canvas, ran: Ran, result: StepResult) -> None:
        if ran.logits is not None:
            self._audit.compare(item.rid, ran.logits)
        passes = ran.nfe * canvas.sampling.passes
        result.nfe += passes
        result.entropy = max(result.entropy, ran.entropy)
        result.token_layers += passes * item.token_layers(self.executor.decoder.num_layers)
        if ran.block is not None:
            positions, tokens = canvas.take(ran.block, ran.nfe)
            result.positions += positions
            result.tokens += tokens
            if isinstance(result, MarkedResult) and result.marks is not None:
                result.marks.confidences += ran.confidences
                late = (ran.nfe - number for number in ran.passes or [ran.nfe] * len(tokens))
                result.marks.passes += [result.nfe - canvas.sampling.passes * number for number in late]
            result.logprobs += [one._replace(step=result.nfe) for one in ran.logprobs]
        if ran.finite and not any(map(math.isnan, ran.scores)):
            result.scores += ran.scores
        else:  # this request's failure alone
            logger.error("request %s: %s", item.rid, NOT_FINITE)
            result.error, canvas.stopped = NOT_FINITE, True
