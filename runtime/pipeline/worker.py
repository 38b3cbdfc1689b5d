"""The worker's process: owns model, pools and canvases, and carries out the scheduler's messages in order."""

from __future__ import annotations

import logging
from typing import cast

from ..cpu_tuning import return_freed_memory
from ..request.facts import Facts
from ..request.forward import MarkedResult, StepResult
from ..scheduler.worker_link import WorkerLink
from ..worker.trace import WorkerTrace
from .child import Child
from .inbox import Inbox, Outbox
from .messages import Add, Drop, FromWorker, Lengthen, MarkedResults, Results, Run, StartTrace, StopTrace, ToWorker

logger = logging.getLogger(__name__)
_REST_AFTER_S = 2.0
"""Seconds without a message after which a CPU's worker returns freed memory: the working memory of its largest batch.
"""


class WorkerProcess:
    """Reads the scheduler's messages one by one; answers every `Run` with `Results`, and requests for traces."""

    def __init__(self, child: Child):
        self._child = child
        self._inbox: Inbox[ToWorker] = child.inbox("worker", ToWorker)
        self._outbox: Outbox[FromWorker] = child.outbox("results", FromWorker)
        self._trace = WorkerTrace()
        self._worked = False  # since freed memory was returned

    def run(self) -> None:
        """Serve until the process ends."""
        worker, facts = self._build()
        self._child.ready(facts)
        logger.info(
            "worker: %s on %s in %s, %d KV pages, %d boundary pages",
            self._child.spec.engine.model_path, facts.device, facts.dtype, facts.kv_pages, facts.boundary_pages,
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
                self._outbox.send(_answer(worker.forward(message.forward)))
                self._trace.step()
            case StartTrace():
                self._child.reply(message.number, lambda: self._trace.start(message.options))
            case StopTrace():
                self._child.reply(message.number, self._trace.stop)

    def _build(self) -> tuple[WorkerLink, Facts]:
        spec = self._child.spec
        if spec.pipeline.null_worker:
            from ..worker.null import build_null_worker

            options = spec.pipeline
            return build_null_worker(spec.engine, options.null_tokens, options.null_delay_s)
        from ..worker.build import build_worker

        return build_worker(spec.engine)


def _answer(results: list[StepResult]) -> FromWorker:
    """The message for results, which is no longer for marks unless there are some."""
    if any(isinstance(result, MarkedResult) for result in results):
        return MarkedResults(cast(list[MarkedResult], results))
    return Results(results)
