"""The scheduler's process: takes requests, drives the worker, sends outputs on. Imports no torch.

One forward is in flight at a time. While the worker computes it, the process sends the outputs of the previous one and
reads messages. They take effect once the results are in, as in one process.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import asdict

import zmq

from ..errors import EngineError, ShoalError
from ..request.facts import Facts
from ..request.forward import AddRequest, Forward, Grow, Release, StepResult
from ..request.request import Request
from ..scheduler.build import build_scheduler
from ..scheduler.scheduler import Scheduler
from ..text.decoder import load_decoder
from ..text.running import Decodes
from ..text.stream import TextStream
from .child import Child
from .errors import pack_error
from .inbox import Inbox, Outbox
from .messages import (
    Abort,
    AbortAll,
    Accepted,
    Add,
    Ask,
    Begin,
    Committed,
    Denoised,
    Drop,
    FromWorker,
    HolePiece,
    Lengthen,
    LookupSpec,
    MarkedResults,
    Output,
    Outputs,
    Refused,
    Results,
    Run,
    StartTrace,
    StopTrace,
    Summarize,
    ToDetokenizer,
    ToScheduler,
    ToWorker,
    process_name,
)
from .rank_check import RankCheck

logger = logging.getLogger(__name__)
_IDLE_MS = 1000
_RETRY_MS = 20


class WorkerSocket:
    """The scheduler's link to a worker in another process: sends messages in order, to every rank, and never waits."""

    def __init__(self, child: Child):
        names = [process_name("worker", rank) for rank in range(child.spec.engine.tp_size)]
        self._ranks: list[Outbox[ToWorker]] = [child.outbox(name, ToWorker) for name in names]

    def add(self, message: AddRequest) -> None:
        """Create a canvas."""
        self._send(Add(message))

    def grow(self, message: Grow) -> None:
        """Lengthen a request's page table."""
        self._send(Lengthen(message))

    def release(self, message: Release) -> None:
        """Drop canvases."""
        self._send(Drop(message))

    def run(self, message: Forward) -> None:
        """Send forwards; the results arrive at the socket `results`."""
        self._send(Run(message))

    def trace(self, message: StartTrace | StopTrace) -> None:
        """Begin or end a trace of rank 0; it answers the caller."""
        self._ranks[0].send(message)

    def forward(self, message: Forward) -> list[StepResult]:
        """Not supported: between processes no step waits for its results."""
        raise NotImplementedError("use run, and take the results from the socket")

    def _send(self, message: ToWorker) -> None:
        for rank in self._ranks:
            rank.send(message)


class SchedulerProcess:
    """Reads the tokenizer's messages, keeps one forward in flight, sends commits to the detokenizer."""

    def __init__(self, child: Child):
        self._child = child
        self._watchdog_s = child.spec.pipeline.watchdog_timeout_s
        self._inbox: Inbox[ToScheduler] = child.inbox("scheduler", ToScheduler)
        self._results: Inbox[FromWorker] = child.inbox("results", FromWorker)
        self._detokenizer: Outbox[ToDetokenizer] = child.outbox("detokenizer", ToDetokenizer)
        self._worker = WorkerSocket(child)
        self._rank_check = RankCheck(child.spec.engine.tp_size)
        self._arrived: deque[Results | MarkedResults] = deque()
        self._deferred: deque[Accepted | Abort | AbortAll | Ask | LookupSpec] = deque()
        self._sent: dict[str, int] = {}
        self._decoder: Decodes | None = None

    def run(self) -> None:
        """Serve until the process ends."""
        while not isinstance(first := self._inbox.receive(), Begin):
            logger.error("scheduler: %s before Begin is ignored", type(first).__name__)
        scheduler = self._scheduler = self._build(first.facts)
        self._child.ready()
        poller = zmq.Poller()
        poller.register(self._inbox.socket, zmq.POLLIN)
        poller.register(self._results.socket, zmq.POLLIN)
        while True:
            self._take_deferred()
            planned = scheduler.plan()
            if planned is None:
                self._deliver(scheduler.take())
                scheduler.check_if_due()
                if not self._deferred and dict(poller.poll(_RETRY_MS if scheduler.has_work else _IDLE_MS)):
                    self._inbox.drain(self._receive)
                    self._results.drain(self._take)
                continue
            self._worker.run(planned.forward)
            self._deliver(scheduler.take())
            scheduler.apply(planned, self._wait(poller))

    def _build(self, facts: Facts) -> Scheduler:
        config = self._child.spec.engine
        self._decoder = load_decoder(self._child.decoder_path, facts.folder, config.load_format)
        return build_scheduler(config, facts, self._worker)

    def _wait(self, poller: zmq.Poller) -> list[StepResult]:
        """Wait for the results of the forward in flight; meanwhile read messages."""
        deadline = time.monotonic() + self._watchdog_s
        while True:
            ready = dict(poller.poll(_IDLE_MS))
            if self._inbox.socket in ready:
                self._inbox.drain(self._receive)
            if self._results.socket in ready:
                self._results.drain(self._take)
            if self._arrived:
                return list(self._arrived.popleft().results)
            if time.monotonic() > deadline:
                message = f"the worker did not answer for {self._watchdog_s:g} seconds (watchdog_timeout_s)"
                raise EngineError(message, field="watchdog_timeout_s", limit=self._watchdog_s)

    # What comes in

    def _take(self, message: FromWorker) -> None:
        match message:
            case Results() | MarkedResults():
                self._rank_check.expect(message.results)
                self._arrived.append(message)
            case Committed():
                self._rank_check.compare(message)

    def _receive(self, message: ToScheduler) -> None:
        match message:
            case Ask(what="stats"):
                self._answer(message)
            case Ask(what="alive"):
                self._detokenizer.send(message)
            case Summarize():  # reads the tree, which no forward in flight changes
                memory = self._scheduler.memory
                self._child.reply(message.number, lambda: memory.summary(message.stride, message.limit))
            case StartTrace() | StopTrace():
                self._worker.trace(message)
            case AbortAll():
                ended = message.ended + len(self._held())
                self._deferred.append(message)
                self._child.reply(message.number, lambda: ended)  # a forward may be in flight for long
            case Accepted() | Abort() | Ask() | LookupSpec():
                self._deferred.append(message)
            case Begin():
                logger.error("scheduler: a second Begin is ignored")

    def _take_deferred(self) -> None:
        while self._deferred:
            message = self._deferred.popleft()
            match message:
                case Accepted():
                    self._add(message)
                case Abort():
                    self._abort(message.rid)
                case AbortAll():
                    for rid in self._scheduler.rids:
                        self._abort(rid)
                case Ask():
                    self._answer(message)
                case LookupSpec():
                    self._look_up(message)

    def _add(self, message: Accepted) -> None:
        try:
            stop = tuple(message.spec.sampling.stop)
            # Only a stop string decides when a request ends; all other text is the detokenizer's.
            stream = TextStream(self._decoder if stop else None, stop)
            self._scheduler.add(Request(message.spec, stream))
        except ShoalError as error:
            self._child.tell(Refused(message.spec.rid, pack_error(error)))

    def _abort(self, rid: str) -> None:
        request = self._scheduler.end(rid)
        if request is not None:
            self._deliver([request])

    def _held(self) -> set[str]:
        """Ids of the requests that will exist once the deferred messages have taken effect."""
        rids = set(self._scheduler.rids)
        for message in self._deferred:
            match message:
                case Accepted():
                    rids.add(message.spec.rid)
                case Abort():
                    rids.discard(message.rid)
                case AbortAll():
                    rids.clear()
        return rids

    def _look_up(self, message: LookupSpec) -> None:
        request = Request(message.spec, TextStream(None))
        self._child.reply(message.number, lambda: asdict(self._scheduler.planner.lookup(request)))

    def _answer(self, message: Ask) -> None:
        scheduler = self._scheduler
        match message.what:
            case "stats":
                self._child.reply(message.number, lambda: asdict(scheduler.stats()))
            case "snapshot":
                self._child.reply(message.number, scheduler.memory.tree.snapshot)
            case "flush":
                self._child.reply(message.number, scheduler.memory.flush)

    # What goes out

    def _deliver(self, requests: list[Request]) -> None:
        changes = {
            request.rid: request.denoising.take(request.tally.nfe)
            for request in requests
            if request.denoising is not None
        }
        if changes:
            self._detokenizer.send(Denoised(changes))
        outputs = [output for request in requests if (output := self._output(request)) is not None]
        if outputs:
            self._detokenizer.send(Outputs(outputs))

    def _output(self, request: Request) -> Output | None:
        """A request's new output; None if there is nothing new."""
        start, tokens = request.tokens_from(self._sent.get(request.rid, 0))
        if request.finish_reason is not None:
            self._sent.pop(request.rid, None)
        elif tokens or request.denoising is not None:
            self._sent[request.rid] = start + len(tokens)
        else:
            return None
        times, tally = request.timings(), request.tally
        return Output(
            rid=request.rid, token_start=start, tokens=list(tokens), text_start=0,
            text=request.stream.text if request.spec.sampling.stop else None,
            finish_reason=request.finish_reason, matched_stop=request.matched_stop,
            error=None if request.error is None else pack_error(request.error),
            prompt_tokens=len(request.prompt), cached_tokens=tally.cached_tokens, depth=tally.depth,
            canvas_tokens=request.canvas.num_committed, nfe=tally.nfe,
            computed_token_layers=tally.computed_token_layers, prefix_refreshes=tally.prefix_refreshes,
            preemptions=tally.preemptions, queue_s=times.queue, first_text_s=times.first_text, total_s=times.total,
            holes=[HolePiece(*hole) for hole in request.hole_tokens()], scores=list(request.scores),
            logprobs=request.logprobs(start),
        )  # fmt: skip
