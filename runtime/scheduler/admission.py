"""The queue: which waiting requests start now, which wait for another's capture, which running ones are preempted."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping

from ...radix_cache.config import TreeConfig
from ...radix_cache.tree import RadixTree
from ..errors import QueueFullError
from ..request.request import Request
from .memory import Memory
from .modes import MODES
from .policy import admission_order, preemptible, strength
from .reuse import ReusePlanner

POLICY_SHARE = 8
"""Starts of requests of the same priority that age a waiting one as much as one start of higher priority does. They
weigh less because serving the longest cached prefix first makes hits.
"""


class Admission:
    """Waiting requests, in order of arrival, and their admission.

    Args:
        memory, planner: grant a request its memory.
        policy, max_running, max_queued, max_overtakes: see EngineConfig.

    Ageing: whenever a request starts while older ones wait, the oldest of these ages; so does a request that is
    preempted. After `max_overtakes` starts of higher priority, or POLICY_SHARE times as many of its own priority, the
    oldest is next whatever the priorities, and is not preempted again. So every request starts and ends, however many
    requests come with a higher priority or a longer cached prefix. Ageing counts starts, not seconds, so it is
    deterministic.

    Attributes:
        waiting: requests that were not admitted yet, or were preempted.
    """

    def __init__(
        self, memory: Memory, planner: ReusePlanner, policy: str, max_running: int, max_queued: int | None,
        max_overtakes: int,
    ):  # fmt: skip
        self.memory = memory
        self.planner = planner
        self._policy = policy
        self._max_running = max_running
        self._max_queued = max_queued
        self._old = max_overtakes * POLICY_SHARE
        self.waiting: list[Request] = []
        self._blocked = False  # the first in the queue found no memory, and nothing has changed since
        self._put_off: Request | None = None
        self._tickets = itertools.count()

    def queue(self, request: Request, running: int) -> None:
        """Queue a request while `running` requests run. Raises QueueFullError."""
        if self._max_queued is not None:
            queued = len(self.waiting) - max(0, self._max_running - running)
            if queued >= self._max_queued:
                message = f"{queued} requests wait already, as many as may (max_queued_requests): try again later"
                raise QueueFullError(message, field="max_queued_requests", value=queued, limit=self._max_queued)
        request.tally.ticket = next(self._tickets)
        self.waiting.append(request)
        self._blocked = False

    def requeue(self, request: Request) -> None:
        """Queue a preempted request again, before those that never ran."""
        request.tally.age += POLICY_SHARE
        self.waiting.insert(0, request)
        self._blocked = False

    def remove(self, request: Request) -> None:
        """Forget a request that ended while it waited."""
        self.waiting.remove(request)
        if request is self._put_off:
            self._put_off = None

    def started(self, request: Request) -> None:
        """Take a request that starts off the queue; the oldest waiting one ages if it came earlier."""
        self.remove(request)
        oldest = min(self.waiting, key=lambda r: r.tally.ticket, default=request)
        if oldest.tally.ticket < request.tally.ticket:
            oldest.tally.age += POLICY_SHARE if request.priority > oldest.priority else 1

    def put_off(self, request: Request) -> None:
        """Release the memory that `admit` gave a request, because no forward has room for it yet.

        It becomes the first of its priority, so that requests with more cached tokens can't pass it forever.
        """
        self.memory.release(request)
        self._put_off = request

    def changed(self) -> None:
        """Pages were freed or captured; blocked requests may now fit."""
        self._blocked = False

    def preempted(self, running: Iterable[Request]) -> Iterator[Request]:
        """Yields running requests for the caller to preempt, one by one, for the first waiting one.

        No more than needed, and none if preemption would not suffice.
        """
        if not self.waiting or self._blocked:
            return
        running = list(running)
        if min((r.priority for r in running), default=math.inf) >= max(r.priority for r in self.waiting):
            return
        request = self._order()[0]
        if request.tally.age < self._old and self._follows(request, self._leading(running)):
            return  # it would not start now, and the preempted request would be admitted again
        weaker = preemptible((r for r in running if r.tally.age < self._old), request.priority)
        kv, config = self.memory.kv, self.memory.config
        shared = self.planner.cached_tokens(request) // config.page_size
        needed = (self.memory.pages_for(request.extent) - shared) * config.num_bands
        needed += self._spare(request, running)
        gained = sum(_pages_of(other) for other in weaker)
        if needed > kv.num_free + kv.num_reclaimable + gained:
            return
        for number, other in enumerate(weaker):
            if len(running) - number < self._max_running and self._grant(request, running):
                self.put_off(request)  # it is admitted in its turn
                return
            yield other

    def admit(self, running: Mapping[str, Request]) -> Iterator[tuple[Request, bool]]:
        """Grant waiting requests their memory, one by one, while the caller asks for more and memory lasts.

        Yields (request, True): the caller starts it. Or (request, False) for a request that can never run because pins
        leave no room: the caller ends it. A request whose prefix another one is about to capture (just admitted; in
        mode `lm`, running) waits for that capture and then finds it in the cache.
        """
        if not self.waiting or self._blocked or len(running) >= self._max_running:
            return
        leading = self._leading(running.values())
        order = deque(self._order())
        while order and len(running) < self._max_running:
            request = order.popleft()
            if request.tally.age < self._old and self._follows(request, leading):
                continue
            admitted = self._grant(request, running.values())
            if not admitted and not running:
                admitted = self._grant(request, running.values(), capture=False)
                if not admitted:
                    yield request, False
                    continue
            if not admitted:
                self._blocked = True
                return
            self._lead(leading, request)
            yield request, True
            aged = self._aged()
            if aged is not None and aged in order:
                order.remove(aged)
                order.appendleft(aged)

    def strongest_first(self, running: Iterable[Request]) -> list[Request]:
        """Running requests in the order in which they keep their pages when these are short."""
        return sorted(running, key=lambda request: strength(request, self._old), reverse=True)

    def _spare(self, request: Request, running: Iterable[Request]) -> int:
        """KV pages that a request must leave for the strongest running one to reach its end, if that is stronger."""
        strongest = next(iter(self.strongest_first((request, *running))))
        return 0 if strongest is request else self.planner.remaining_pages(strongest)

    def _grant(self, request: Request, running: Iterable[Request], capture: bool = True) -> bool:
        request.grant = self.planner.admit(request, capture, self._spare(request, running))
        return request.grant is not None

    def _order(self) -> list[Request]:
        """Waiting requests in order of admission."""
        order = admission_order(self._policy, self.waiting, self.planner)
        if self._put_off is not None:
            order.sort(key=lambda r: (-r.priority, r is not self._put_off))
        aged = self._aged()
        if aged is not None:
            order.remove(aged)
            order.insert(0, aged)
        return order

    def _aged(self) -> Request | None:
        """The oldest waiting request, if it has to be next."""
        oldest = min(self.waiting, key=lambda r: r.tally.ticket, default=None)
        return oldest if oldest is not None and oldest.tally.age >= self._old else None

    def _leading(self, running: Iterable[Request]) -> RadixTree:
        """A tree, without pages, of the prompts that running requests are about to capture."""
        config = self.memory.config
        leading = RadixTree(TreeConfig(config.page_size, config.num_layers, config.layers_per_band))
        for request in running:
            if MODES[request.spec.cache_mode].captures == "finished":  # not captured after its first forward
                self._lead(leading, request)
        return leading

    def _lead(self, leading: RadixTree, request: Request) -> None:
        whole = MODES[request.spec.cache_mode].captures == "finished"
        tokens = len(request.prompt) if whole else request.grant.capture_tokens if request.grant is not None else 0
        if tokens:
            depth = self.memory.config.num_layers
            leading.capture(request.prompt[:tokens], self.planner.namespace(request), depth=depth, ratio=1.0)

    def _follows(self, request: Request, leading: RadixTree) -> bool:
        if self.memory.tree_for(request.spec.cache_mode) is None:
            return False
        shared = leading.match(request.prompt, self.planner.namespace(request), touch=False).num_tokens
        reusable = self.planner.reusable
        return reusable(request, shared) > reusable(request, self.planner.cached_tokens(request))


def _pages_of(request: Request) -> int:
    """KV pages that preempting a request may free: its own and its shared ones."""
    grant = request.grant
    if grant is None:
        return 0
    return grant.own_kv.size + (grant.match.kv_pages.size if grant.match is not None else 0)
