"""The scheduler: owns requests, tree and page tables, decides what the worker runs next. Imports no torch."""

from __future__ import annotations

import math
import time
from dataclasses import replace

from ..errors import EngineError, InvalidRequestError, PoolTooSmallError, RequestTimeoutError
from ..request.forward import Forward, ForwardItem, MarkedResult, Release, StepResult
from ..request.output import RequestOutput
from ..request.request import Request
from ..request.stats import SchedulerStats
from .admission import Admission
from .auditor import Auditor
from .counters import BatchLog, Counters
from .deadlines import Deadlines
from .growth import Growth
from .memory import Memory
from .modes import MODES
from .pace import Pace, RefreshBatch
from .planned import Planned
from .reuse import ReusePlanner, held
from .worker_link import WorkerLink

_IDLE_CHECK_SECONDS, _REFRESHES_IN_ROW = 1.0, 4


class Scheduler:
    """Continuous batching over one worker.

    `plan` returns the next forward: a refresh batch (first forwards of newly admitted requests and block starts of
    running ones) if there is any, else a block step of all requests that can do one. After four refresh batches in a
    row it plans a block step. `apply` takes the results. `step` does both with a worker that answers at once. Between a
    plan and its apply only `add`, `stats` and `has_work` may be called.

    `take` (or `step`), `end` or `abort` return every request that `add` accepted exactly once as finished.

    Args:
        memory: pools and trees.
        planner: plans the forwards of a request.
        worker: runs them.
        pace: bounds them.
        auditor: audits hits; None: none are.
        max_running_requests, max_queued_requests, max_overtakes, policy, log_interval, check_invariants: see
            EngineConfig.
    """

    def __init__(
        self, memory: Memory, planner: ReusePlanner, worker: WorkerLink, pace: Pace, *,
        max_running_requests: int, policy: str, check_invariants: bool, max_overtakes: int,
        max_queued_requests: int | None = None, log_interval: int = 40, auditor: Auditor | None = None,
    ):  # fmt: skip
        self.memory = memory
        self.auditor = auditor or Auditor(memory)
        self.planner = planner
        self._worker = worker
        self._admission = Admission(memory, planner, policy, max_running_requests, max_queued_requests, max_overtakes)
        self._growth = Growth(planner, self._admission)
        self._pace = pace
        self._check = check_invariants
        self._checked_at = -math.inf
        self.counters = Counters()
        self._log = BatchLog(memory, self.counters, log_interval)
        self._requests: dict[str, Request] = {}
        self._running: dict[str, Request] = {}
        self._ending: list[tuple[Request, ForwardItem]] = []  # finished, except for the pass that mode `lm` captures
        self._in_flight: Planned | None = None
        self._refreshes_in_row = 0
        self._left_out = 0  # refreshes in a row in which newcomers left no room for all block starts
        self._progress: dict[Request, None] = {}
        self._deadlines = Deadlines()

    @property
    def has_work(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self._requests)

    @property
    def rids(self) -> frozenset[str]:
        """Ids of the requests that wait or run."""
        return frozenset(self._requests)

    @property
    def num_waiting(self) -> int:
        """Requests that were not admitted yet, or were preempted."""
        return len(self._admission.waiting)

    @property
    def num_running(self) -> int:
        """Requests with pages and a canvas."""
        return len(self._running)

    def stats(self) -> SchedulerStats:
        """State and counters."""
        stats = self._log.stats(self.num_running, self.num_waiting)
        return replace(stats, **self.auditor.numbers(), **self._pace.numbers())

    def check_fits(self, prompt_tokens: int, canvas_tokens: int) -> None:
        """Raise PoolTooSmallError for a request that could not run even alone."""
        self.memory.check_fits(prompt_tokens, canvas_tokens)

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises PoolTooSmallError, QueueFullError, or InvalidRequestError for an id that is in use.
        """
        try:
            if request.rid in self._requests:
                raise InvalidRequestError(f"rid {request.rid!r} is in use", field="rid", value=request.rid)
            self.check_fits(len(request.prompt), request.spec.canvas_length)
            self._admission.queue(request, self.num_running)
        except Exception:
            self.counters.refused += 1
            raise
        self.counters.requests += 1
        self._requests[request.rid] = request
        self._log.work()
        self._deadlines.watch(request)

    def abort(self, rid: str) -> RequestOutput | None:
        """As `end`; the terminal output."""
        request = self.end(rid)
        return None if request is None else request.output()

    def end(self, rid: str) -> Request | None:
        """End a request now and release its memory; None if its id is unknown or finished."""
        request = self._requests.get(rid)
        if request is None:
            return None
        request.finish_reason = request.finish_reason or "abort"
        self._finish(request)
        del self._progress[request]
        return request

    def step(self) -> list[RequestOutput]:
        """Run one forward; outputs of the requests that made progress or ended."""
        while True:
            planned = self.plan()
            if planned is not None:
                self.apply(planned, self._worker.forward(planned.forward))
            if not self._ending:
                break
        outputs = [request.output() for request in self.take()]
        self.check_if_due()
        return outputs

    def take(self) -> list[Request]:
        """Requests that ended, or made progress that their caller wants to see, since the last call."""
        progress, self._progress = self._progress, {}
        return list(progress)

    def check_if_due(self) -> None:
        """Check the page accounting: at most once a second while idle, and always with `check_invariants`."""
        if self._check or (not self.has_work and time.monotonic() - self._checked_at >= _IDLE_CHECK_SECONDS):
            self.check()

    def check(self) -> None:
        """Check that no page is lost: free + tree + requests = all. Raises InvariantError."""
        self._checked_at = time.monotonic()
        self.memory.check(self._running.values())

    # Planning

    def plan(self) -> Planned | None:
        """The next forward; None if there is nothing to run (requests may have ended, see `take`)."""
        assert self._in_flight is None
        self._expire()
        if self._ending:
            return self._fly(Forward(self._next_finals()), finals=True, refreshes=True)
        self._grow()
        steps = self._next_block_steps() if self._refreshes_in_row >= _REFRESHES_IN_ROW else ()
        refreshes = [] if steps else self._next_refreshes()
        self._refreshes_in_row = self._refreshes_in_row + 1 if refreshes else 0
        if refreshes:
            self.counters.refresh_forwards += 1
            then = self._steps_behind(refreshes)
            most = self._pace.steps(others_wait=False) if then else 1
            return self._fly(Forward(tuple(refreshes), most, then), refreshes=True)
        if self._running:
            self._log.block_step(self._running, self.num_waiting)
            most = self._pace.steps(others_wait=bool(steps))
            return self._fly(Forward(steps or self._next_block_steps(), most))
        return None

    def _next_block_steps(self) -> tuple[ForwardItem, ...]:
        """Block steps of requests that need no refresh; the wide ones (more than a block) as many as fit a forward."""
        steps = [(r, self.planner.block_step(r)) for r in self._running.values() if not r.needs_refresh]
        wide = [(request, item) for request, item in steps if not item.is_block_alone]
        if not wide or self._pace.fitting(item for _, item in wide) == len(wide):
            return tuple(item for _, item in steps)
        wide.sort(key=lambda pair: pair[0].tally.stepped_at)
        count = self._pace.fitting(item for _, item in wide)
        for request, _ in wide[:count]:
            request.tally.stepped_at = self.counters.forwards
        waiting = {request.rid for request, _ in wide[count:]}
        return tuple(item for request, item in steps if request.rid not in waiting)

    def _steps_behind(self, refreshes: list[ForwardItem]) -> tuple[ForwardItem, ...]:
        """Block steps that may follow in the same message: if all running requests refresh and none waits."""
        if not self._pace.combines or self.num_waiting or len(refreshes) < len(self._running):
            return ()
        if any(item.audit or item.targets is not None for item in refreshes):
            return ()
        steps = (self.planner.block_step(self._running[item.rid]) for item in refreshes)
        return tuple(item for item in steps if item.block_stop > item.block_start)

    def _fly(self, forward: Forward, finals: bool = False, refreshes: bool = False) -> Planned:
        self.counters.forwards += 1
        self._log.work()
        self._in_flight = Planned(forward, finals, refreshes)
        self._pace.begin()
        return self._in_flight

    def _expire(self) -> None:
        for request in self._deadlines.passed(self._requests.values(), self._running):
            self._finish(request)

    def _grow(self) -> None:
        for each in self._growth.due(self._running):
            if isinstance(each, Request):
                self._preempt(each)
            else:
                self._worker.grow(each)

    def _next_refreshes(self) -> list[ForwardItem]:
        for request in self._admission.preempted(self._running.values()):
            self._preempt(request)
        batch = self._pace.batch()
        if self._left_out < self._pace.newcomers_in_row:
            self._take_newcomers(batch)
            self._left_out = 0 if self._take_block_starts(batch) else self._left_out + 1
        else:
            self._left_out = 0
            if self._take_block_starts(batch):
                self._take_newcomers(batch)
        return batch.items

    def _take_block_starts(self, batch: RefreshBatch) -> bool:
        """Add block starts of running requests, in the order of their starts; returns whether all of them fit."""
        for request in self._running.values():
            if request.needs_refresh and request.started:
                item = self.planner.refresh(request)
                if not batch.has_room(item):
                    return False
                batch.add(item)
        return True

    def _take_newcomers(self, batch: RefreshBatch) -> None:
        """Admit waiting requests, and add their first forwards."""
        admitted: list[Request] = []
        for request, admitted_now in self._admission.admit(self._running):
            if not admitted_now:
                self._reject(request)
                continue
            item = self.planner.first_forward(request)
            if not batch.has_room(item):
                self._admission.put_off(request)
                break
            self._start(request)
            audit, audit_tokens = self.auditor.wants(request)
            if audit:
                item = item.audited(audit, audit_tokens)
            batch.add(item)
            admitted.append(request)
        self._log.refresh(admitted, self.num_running, self.num_waiting)

    def _next_finals(self) -> tuple[ForwardItem, ...]:
        """Passes over finished sequences (mode `lm`), as many as fit one forward."""
        items = tuple(item for _, item in self._ending)
        return items[: self._pace.fitting(items)]

    def _preempt(self, request: Request) -> None:
        self._running.pop(request.rid)
        self._worker.release(Release((request.rid,)))
        self.memory.release(request)
        request.preempt()
        self.counters.preemptions += 1
        self._admission.requeue(request)

    def _start(self, request: Request) -> None:
        self._admission.started(request)
        self.planner.starts(request)
        self._running[request.rid] = request
        grant, tally = held(request), request.tally
        tally.cached_tokens, tally.depth = grant.cut, grant.depth
        tally.admitted_at = tally.admitted_at or time.monotonic()
        self.counters.admitted(request, MODES[request.spec.cache_mode].captures is not None)
        self._worker.add(request.opening())

    def _reject(self, request: Request) -> None:
        kv, config = self.memory.kv, self.memory.config
        room = (kv.num_free + kv.num_reclaimable) // config.num_bands * config.page_size
        tokens = request.total_tokens
        message = f"prompt and canvas have {tokens} tokens; room for {room} can be made, the rest is pinned"
        request.fail(PoolTooSmallError(message, field="prompt", value=tokens, limit=room))
        self._finish(request)

    # Results

    def apply(self, planned: Planned, results: list[StepResult]) -> None:
        """Take the results of the forward in flight: one for each item, in order."""
        assert planned is self._in_flight
        self._in_flight = None
        self._pace.end(planned, results)
        if planned.finals:
            self._captured_finished(results)
            return
        audited = []
        for item, result in zip(planned.forward.items, results, strict=True):
            request = self._running[item.rid]
            match = held(request).match
            if result.audit is not None and result.error is None and match is not None:
                audited.append((request, match, result.audit))
            if result.error is not None:
                request.fail(EngineError(f"the forward failed: {result.error}", field="rid", value=request.rid))
                self._finish(request)
                continue
            if request.needs_refresh:
                self._refreshed(request, item)
            self._advance(request, result)
        for request, match, report in audited:  # after all captures, which would raise what an audit shrinks
            self.auditor.record(request, match, report)

    def _refreshed(self, request: Request, item: ForwardItem) -> None:
        request.needs_refresh = False
        self.planner.refreshed(request, item)
        if item.join == 0 or not request.started:
            request.tally.prefix_refreshes += 1
            request.tally.nfe_at_refresh = request.tally.nfe
            self.counters.prefix_refreshes += 1
        if request.started:
            self.counters.canvas_refreshes += 1
            return
        request.started = True
        self.planner.captured(request)
        self._admission.changed()

    def _advance(self, request: Request, result: StepResult) -> None:
        spec, tally, canvas, counters = request.spec, request.tally, request.canvas, self.counters
        if result.logprobs:
            request.note(result)
        tally.nfe += result.nfe
        tally.computed_token_layers += result.token_layers
        tally.entropy = max(tally.entropy, result.entropy)
        if spec.targets is not None:
            request.scores += tuple(result.scores)
        request.apply(result.positions, result.tokens)
        if request.denoising is not None and isinstance(result, MarkedResult):
            start = len(request.prompt)
            at = [position - start for position in result.positions]
            request.denoising.commit(at, result.marks, tally.nfe - result.nfe)
        counters.nfe += result.nfe
        counters.computed_token_layers += result.token_layers
        if canvas.diverged:
            canvas.keep_shown()
            request.needs_refresh = MODES[spec.cache_mode].refreshes
            self._worker.release(Release((request.rid,)))
            self._worker.add(request.opening())
            return
        counters.canvas_tokens += len(result.tokens)
        counters.text(request)
        if request.finish_reason is not None:
            item = self.planner.final_forward(request)
            if item is None:
                self._finish(request)
            else:
                self._ending.append((request, item))
            return
        if canvas.skip_full_blocks():
            request.needs_refresh = MODES[spec.cache_mode].refreshes
        if result.tokens and spec.stream:
            self._progress[request] = None

    def _captured_finished(self, results: list[StepResult]) -> None:
        """Capture finished sequences (mode `lm`) whose passes are done."""
        ending, self._ending = self._ending[: len(results)], self._ending[len(results) :]
        for (request, _), result in zip(ending, results, strict=True):
            if result.error is None:
                request.tally.computed_token_layers += result.token_layers
                self.counters.computed_token_layers += result.token_layers
                self.planner.final_captured(request)
            self._finish(request)

    def _finish(self, request: Request) -> None:
        if self._running.pop(request.rid, None) is not None:
            self._worker.release(Release((request.rid,)))
        else:
            self._admission.remove(request)
        if self._ending:
            self._ending = [(other, item) for other, item in self._ending if other is not request]
        del self._requests[request.rid]
        self.memory.release(request)
        self.counters.finished(request, isinstance(request.error, RequestTimeoutError))
        if not self._requests:
            self._log.rest()
        self._progress[request] = None
        self._admission.changed()
