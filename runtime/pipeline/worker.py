"""The worker's process: owns model, pools and canvases, and carries out the scheduler's messages in order.

With `tp_size` above 1 there are as many of these, one a rank. Each gets all messages; only rank 0 answers.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, cast

from ..cpu_tuning import return_freed_memory
from ..errors import RankLostError
from ..request.facts import Facts
from ..request.forward import MarkedResult, StepResult
from ..scheduler.worker_link import WorkerLink
from ..worker.trace import WorkerTrace
from .child import Child
from .inbox import Inbox, Outbox
from .messages import (
    Add,
    Committed,
    Drop,
    FromWorker,
    Lengthen,
    MarkedResults,
    Results,
    Run,
    StartTrace,
    StopTrace,
    ToWorker,
)
from .rank_check import digest_of

if TYPE_CHECKING:
    from ..model.ranks import Ranks

logger = logging.getLogger(__name__)
_REST_AFTER_S = 2.0
"""Seconds without a message after which a CPU's worker returns freed memory: the working memory of its largest batch.
"""
_PEER_S = 2.0


class WorkerProcess:
    """Reads the scheduler's messages one by one; answers every `Run` with `Results`, and requests for traces.

    Ranks other than 0 answer with the digest of their results.
    """

    def __init__(self, child: Child):
        self._child = child
        self._inbox: Inbox[ToWorker] = child.inbox(child.spec.name, ToWorker)
        self._outbox: Outbox[FromWorker] = child.outbox("results", FromWorker)
        self._trace = WorkerTrace()
        self._worked = False  # since freed memory was returned

    def run(self) -> None:
        """Serve until the process ends."""
        worker, facts = self._build()
        spec = self._child.spec
        self._child.ready(None if spec.rank else facts)
        logger.info(
            "%s: %s on %s in %s, %d KV pages, %d boundary pages",
            spec.name, spec.engine.model_path, facts.device, facts.dtype, facts.kv_pages, facts.boundary_pages,
        )  # fmt: skip
        on_cpu = facts.device == "cpu"
        while True:
            if on_cpu and self._worked and self._inbox.is_quiet(_REST_AFTER_S):
                return_freed_memory()
                self._worked = False
            self._handle(worker, self._inbox.receive())

    def _handle(self, worker: WorkerLink, message: ToWorker) -> None:
        match message:
            case Add():
                worker.add(message.request)
            case Lengthen():
                worker.grow(message.grow)
            case Drop():
                worker.release(message.release)
            case Run():
                self._worked = True
                results, rank = self._forward(worker, message), self._child.spec.rank
                self._outbox.send(Committed(rank, digest_of(results)) if rank else _answer(results))
                self._trace.step()
            case StartTrace():
                self._child.reply(message.number, lambda: self._trace.start(message.options))
            case StopTrace():
                self._child.reply(message.number, self._trace.stop)

    def _forward(self, worker: WorkerLink, message: Run) -> list[StepResult]:
        try:
            return worker.forward(message.forward)
        except RankLostError:
            time.sleep(_PEER_S)  # until the client has seen what ended the other rank: that is what it should report
            raise

    def _build(self) -> tuple[WorkerLink, Facts]:
        spec = self._child.spec
        if spec.pipeline.null_worker:
            from ..worker.null import build_null_worker

            options = spec.pipeline
            return build_null_worker(spec.engine, options.null_tokens, options.null_delay_s)
        from ..worker.build import build_worker

        return build_worker(spec.engine, ranks=self._join())

    def _join(self) -> Ranks | None:
        """Meet the other ranks; None for a model in one process."""
        spec = self._child.spec
        if spec.engine.tp_size == 1:
            return None
        import torch

        from ..model.ranks import Ranks
        from ..worker.device import device_of_rank

        device = torch.device(device_of_rank(spec.engine.device, spec.rank, spec.engine.tp_size))
        # A rank that hangs is the watchdog's to find, which stops the others too.
        timeout_s = max(spec.pipeline.startup_timeout_s, spec.pipeline.watchdog_timeout_s)
        return Ranks.join(self._child.rendezvous, spec.rank, spec.engine.tp_size, device, timeout_s)


def _answer(results: list[StepResult]) -> FromWorker:
    """The message for results, which is no longer for marks unless there are some."""
    if any(isinstance(result, MarkedResult) for result in results):
        return MarkedResults(cast(list[MarkedResult], results))
    return Results(results)
