"""The scheduler: owns requests, tree and page tables, decides what the worker runs next. Imports no torch."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import replace

import numpy as np

from ..errors import EngineError, InvalidRequestError, PoolTooSmallError, RequestTimeoutError
from ..request.forward import AddRequest, Forward, ForwardItem, Release, StepResult
from ..request.request import Request, RequestOutput
from ..service.stats import SchedulerStats
from .admission import Admission
from .auditor import Auditor
from .counters import BatchLog, Counters
from .memory import Memory
from .reuse import ReusePlanner
from .worker_link import WorkerLink

logger = logging.getLogger(__name__)
_IDLE_CHECK_SECONDS, _REFRESHES_IN_ROW = 1.0, 4


class Scheduler:
    """Continuous batching over one worker.

    `plan` says what the worker should run next: a refresh batch (first forwards of newly admitted requests and block
    starts of running ones) when there is any, else, and after four of them, a block step of all that can do one.
    `apply` takes the results. `step` does both with a worker that answers at once. Nothing else may be called between
    a plan that returned a forward and its apply, but `add`, `stats` and `has_work`.

    Every request that `add` accepted shows up exactly once, finished, in what `take` (or `step`), `end` or `abort`
    return.

    Args:
        memory: pools and trees.
        planner: plans the forwards of a request.
        worker: runs them.
        auditor: audits hits; None: none are.
        eos_token_id: ends a text.
        max_running_requests, max_queued_requests, max_overtakes, max_refresh_tokens, max_steps_per_message, policy,
        log_interval, check_invariants: see EngineConfig.
    """

    def __init__(
        self, memory: Memory, planner: ReusePlanner, worker: WorkerLink, *, eos_token_id: int,
        max_running_requests: int, max_refresh_tokens: int, max_steps_per_message: int, policy: str,
        check_invariants: bool, max_overtakes: int, max_queued_requests: int | None = None, log_interval: int = 40,
        auditor: Auditor | None = None,
    ):  # fmt: skip
        self.memory = memory
        self.auditor = auditor or Auditor(memory)
        self.planner = planner
        self._worker = worker
        self._eos = eos_token_id
        self._admission = Admission(memory, planner, policy, max_running_requests, max_queued_requests, max_overtakes)
        self._max_refresh_tokens = max_refresh_tokens
        self._max_steps = max_steps_per_message
        self._check = check_invariants
        self._checked_at = -math.inf
        self.counters = Counters()
        self._log = BatchLog(memory, self.counters, log_interval)
        self._requests: dict[str, Request] = {}
        self._running: dict[str, Request] = {}
        self._ending: list[tuple[Request, ForwardItem]] = []  # done, but for the pass that mode `lm` captures
        self._in_flight: tuple[ForwardItem, ...] = ()
        self._final, self._refreshes_in_row = False, 0
        self._progress: dict[Request, None] = {}
        self._next_deadline = math.inf

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
        """Requests that were not admitted yet, or were put back."""
        return len(self._admission.waiting)

    @property
    def num_running(self) -> int:
        """Requests with pages and a canvas."""
        return len(self._running)

    def stats(self) -> SchedulerStats:
        """State and counters."""
        return replace(self._log.stats(self.num_running, self.num_waiting), **self.auditor.numbers())

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
            self.check_fits(len(request.prompt), request.canvas_length)
            self._admission.queue(request, self.num_running)
        except Exception:
            self.counters.refused += 1
            raise
        self.counters.requests += 1
        self._requests[request.rid] = request
        self._log.work()
        if request.timeout_s is not None:
            self._next_deadline = min(self._next_deadline, request.arrival + request.timeout_s)

    def abort(self, rid: str) -> RequestOutput | None:
        """As `end`; the terminal output."""
        request = self.end(rid)
        return None if request is None else request.output()

    def end(self, rid: str) -> Request | None:
        """End a request now and give its memory back; None when it is not known (finished, or never was)."""
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
            forward = self.plan()
            if forward is not None:
                self.apply(self._worker.forward(forward))
            if not self._ending:
                break
        outputs = [request.output() for request in self.take()]
        self.check_if_due()
        return outputs

    def take(self) -> list[Request]:
        """Requests that made progress (where the caller wants to see it) or ended since the last call."""
        progress, self._progress = self._progress, {}
        return list(progress)

    def check_if_due(self) -> None:
        """Check the page accounting now and then while idle, and always with `check_invariants`."""
        if self._check or (not self.has_work and time.monotonic() - self._checked_at >= _IDLE_CHECK_SECONDS):
            self.check()

    def check(self) -> None:
        """Check that no page is lost: free + tree + requests = all. Raises InvariantError."""
        self._checked_at = time.monotonic()
        self.memory.check(self._running.values())

    # Planning

    def plan(self) -> Forward | None:
        """What to run next; None when there is nothing (requests may have ended, see `take`)."""
        assert not self._in_flight
        self._expire()
        self._final = bool(self._ending)
        if self._final:
            return self._fly(self._next_finals(), 1)
        steps = self._next_block_steps() if self._refreshes_in_row >= _REFRESHES_IN_ROW else ()
        refreshes = [] if steps else self._next_refreshes()
        self._refreshes_in_row = self._refreshes_in_row + 1 if refreshes else 0
        if refreshes:
            self.counters.refresh_forwards += 1
            then = self._steps_behind(refreshes)
            return self._fly(tuple(refreshes), self._max_steps if then else 1, then)
        if self._running:
            self._log.block_step(self._running, self.num_waiting)
            return self._fly(steps or self._next_block_steps(), 1 if steps else self._max_steps)
        return None

    def _next_block_steps(self) -> tuple[ForwardItem, ...]:
        """A block step of all that need no refresh; those that compute more than their block, as a forward has room."""
        steps = [(r, self.planner.block_step(r)) for r in self._running.values() if not r.needs_refresh]
        wide = [(request, item.stop - item.start) for request, item in steps if not item.is_block_alone]
        if sum(tokens for _, tokens in wide) <= self._max_refresh_tokens:
            return tuple(item for _, item in steps)
        wide.sort(key=lambda pair: pair[0].stepped_at)
        count = self._fitting([tokens for _, tokens in wide])
        for request, _ in wide[:count]:
            request.stepped_at = self.counters.forwards
        waiting = {request.rid for request, _ in wide[count:]}
        return tuple(item for request, item in steps if request.rid not in waiting)

    def _fitting(self, tokens: list[int]) -> int:
        """How many of items of so many tokens, from the first on, a forward may hold; one at least."""
        return max(1, int(np.searchsorted(np.cumsum(tokens), self._max_refresh_tokens, side="right")))

    def _steps_behind(self, refreshes: list[ForwardItem]) -> tuple[ForwardItem, ...]:
        """Block steps that may follow a refresh without asking: when it is everybody's, and nobody waits."""
        if self._max_steps < 2 or self.num_waiting or len(refreshes) < len(self._running):
            return ()
        if any(item.audit or item.targets is not None for item in refreshes):
            return ()
        steps = (self.planner.block_step(self._running[item.rid]) for item in refreshes)
        return tuple(item for item in steps if item.block_stop > item.block_start)

    def _fly(self, items: tuple[ForwardItem, ...], max_steps: int, then: tuple[ForwardItem, ...] = ()) -> Forward:
        self.counters.forwards += 1
        self._log.work()
        self._in_flight = items
        return Forward(items, max_steps, then)

    def _expire(self) -> None:
        now = time.monotonic()
        if now < self._next_deadline:
            return
        self._next_deadline = math.inf
        for request in list(self._requests.values()):
            if request.timeout_s is None:
                continue
            if now < request.arrival + request.timeout_s:
                self._next_deadline = min(self._next_deadline, request.arrival + request.timeout_s)
            elif request.finish_reason is None:
                state = "running" if request.rid in self._running else "waiting"
                message = f"not done within timeout_s = {request.timeout_s:g} seconds (it was {state})"
                limit, waited = request.timeout_s, now - request.arrival
                request.error = RequestTimeoutError(message, field="timeout_s", value=waited, limit=limit)
                request.finish_reason = "abort"
                self._finish(request)

    def _next_refreshes(self) -> list[ForwardItem]:
        for request in self._admission.giving_way(self._running.values()):
            self._put_back(request)
        items: list[ForwardItem] = []
        tokens = 0
        for request in self._running.values():
            if request.needs_refresh:
                item = self.planner.refresh(request)
                if items and tokens + item.stop - item.join > self._max_refresh_tokens:
                    return items
                items.append(item)
                tokens += item.stop - item.join
        admitted = []
        for request, admitted_now in self._admission.admit(self._running):
            if not admitted_now:
                self._reject(request)
                continue
            item = self.planner.first_forward(request)
            if items and tokens + item.stop - item.join > self._max_refresh_tokens:
                self._admission.put_off(request)
                break
            self._start(request)
            audit, audit_tokens = self.auditor.wants(request)
            if audit:
                item = replace(item, audit=audit, audit_tokens=audit_tokens)
            items.append(item)
            admitted.append(request)
            tokens += item.stop - item.join
        self._log.refresh(admitted, self.num_running, self.num_waiting)
        return items

    def _next_finals(self) -> tuple[ForwardItem, ...]:
        """Mode `lm`: passes over finished sequences, as many as a forward may hold."""
        items = [item for _, item in self._ending]
        return tuple(items[: self._fitting([item.stop - item.join for item in items])])

    def _put_back(self, request: Request) -> None:
        self._running.pop(request.rid)
        self._worker.release(Release((request.rid,)))
        self.memory.release(request)
        request.retract()
        self.counters.retractions += 1
        self._admission.put_back(request)

    def _start(self, request: Request) -> None:
        self._admission.started(request)
        self.planner.starts(request)
        self._running[request.rid] = request
        request.admitted_at = request.admitted_at or time.monotonic()
        self.counters.admitted(request, self.memory.tree_for(request.cache_mode) is not None)
        self._make_canvas(request)

    def _make_canvas(self, request: Request) -> None:
        assert request.page_table is not None
        self._worker.add(
            AddRequest(
                request.rid, request.prompt, request.canvas_length, request.sampling, request.seed,
                request.steps_per_block, request.page_table, request.committed_tokens(), request.template_now(),
            )
        )  # fmt: skip

    def _reject(self, request: Request) -> None:
        free = self.memory.kv.num_free // self.memory.config.num_bands * self.memory.config.page_size
        message = (
            f"prompt and canvas have {request.total_tokens} tokens; room for {free} can be made, the rest is pinned"
        )
        request.fail(PoolTooSmallError(message, field="prompt", value=request.total_tokens, limit=free))
        self._finish(request)

    # Results

    def apply(self, results: list[StepResult]) -> None:
        """Take the results of the forward that `plan` returned, one an item, in order."""
        items, self._in_flight = self._in_flight, ()
        if self._final:
            self._captured_finished(results)
            return
        audited = []
        for item, result in zip(items, results, strict=True):
            request = self._running[item.rid]
            if result.audit is not None and result.error is None and request.match is not None:
                audited.append((request, request.match, result.audit))
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
        if item.join == 0 or not request.started:
            request.prefix_refreshes += 1
            request.nfe_at_refresh = request.nfe
            self.counters.prefix_refreshes += 1
        if request.started:
            self.counters.canvas_refreshes += 1
            return
        request.started = True
        self.planner.captured(request)
        self._admission.changed()

    def _advance(self, request: Request, result: StepResult) -> None:
        request.nfe += result.nfe
        request.computed_token_layers += result.token_layers
        request.scores += tuple(result.scores) if request.targets is not None else ()
        request.apply(result.positions, result.tokens, self._eos)
        counters = self.counters
        counters.nfe += result.nfe
        counters.computed_token_layers += result.token_layers
        if request.diverged:
            request.keep_shown()
            self._worker.release(Release((request.rid,)))
            self._make_canvas(request)
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
        if request.skip_full_blocks():
            request.needs_refresh = request.cache_mode != "none"
        if result.tokens and request.streaming:
            self._progress[request] = None

    def _captured_finished(self, results: list[StepResult]) -> None:
        """Mode `lm`: the passes over some finished sequences are done; capture them."""
        ending, self._ending = self._ending[: len(results)], self._ending[len(results) :]
        for (request, _), result in zip(ending, results, strict=True):
            if result.error is None:
                request.computed_token_layers += result.token_layers
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
