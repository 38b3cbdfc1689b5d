"""The scheduler: owns requests, tree and page tables, decides what the worker runs next. Imports no torch."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Protocol

from ..radix_cache.config import TreeConfig
from ..radix_cache.tree import RadixTree
from .errors import EngineError, InvalidRequestError, PoolTooSmallError
from .memory import Memory
from .messages import AddRequest, Forward, ForwardItem, Release, StepResult
from .policy import admission_order
from .request import Request, RequestOutput
from .reuse import ReusePlanner

logger = logging.getLogger(__name__)


class WorkerLink(Protocol):
    """How the scheduler reaches the worker: the worker itself in one process, a socket pair between two."""

    def add(self, message: AddRequest) -> None:
        """Create a canvas."""
        ...

    def release(self, message: Release) -> None:
        """Drop canvases."""
        ...

    def forward(self, message: Forward) -> list[StepResult]:
        """Run forwards."""
        ...


class Scheduler:
    """Continuous batching over one worker.

    A step is one forward: a refresh batch (first forwards of newly admitted requests and block starts of running ones)
    when there is any, else a block step of everything that runs. Every request that `add` accepted shows up exactly
    once, finished, among the outputs of `step` or `abort`.

    Args:
        memory: pools and trees.
        planner: plans the forwards of a request.
        worker: runs them.
        eos_token_id: ends a text.
        max_running_requests, max_refresh_tokens, max_steps_per_message, policy, check_invariants: see EngineConfig.
    """

    def __init__(
        self, memory: Memory, planner: ReusePlanner, worker: WorkerLink, *, eos_token_id: int,
        max_running_requests: int, max_refresh_tokens: int, max_steps_per_message: int, policy: str,
        check_invariants: bool,
    ):  # fmt: skip
        self.memory = memory
        self.planner = planner
        self._worker = worker
        self._eos = eos_token_id
        self._max_running = max_running_requests
        self._max_refresh_tokens = max_refresh_tokens
        self._max_steps = max_steps_per_message
        self._policy = policy
        self._check = check_invariants
        self._waiting: list[Request] = []
        self._running: dict[str, Request] = {}

    @property
    def has_work(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self._waiting or self._running)

    @property
    def num_waiting(self) -> int:
        """Requests that were not admitted yet."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests with pages and a canvas."""
        return len(self._running)

    def check_fits(self, prompt_tokens: int, canvas_tokens: int) -> None:
        """Raise PoolTooSmallError for a request that could not run even alone."""
        needed = self.memory.pages_for(prompt_tokens + canvas_tokens) * self.memory.config.num_bands
        limit = self.memory.kv.num_pages
        if needed > limit:
            tokens = limit // self.memory.config.num_bands * self.memory.config.page_size
            raise PoolTooSmallError(
                f"prompt and canvas have {prompt_tokens} + {canvas_tokens} tokens; the KV pool holds {tokens}",
                field="prompt", value=prompt_tokens + canvas_tokens, limit=tokens,
            )  # fmt: skip

    def add(self, request: Request) -> None:
        """Queue a request. Raises PoolTooSmallError, or InvalidRequestError for an id that is in use."""
        if request.rid in self._running or any(r.rid == request.rid for r in self._waiting):
            raise InvalidRequestError(f"rid {request.rid!r} is in use", field="rid", value=request.rid)
        self.check_fits(len(request.prompt), request.canvas_length)
        self._waiting.append(request)

    def abort(self, rid: str) -> RequestOutput | None:
        """End a request now and give its memory back; None when it is not known (finished, or never was)."""
        for request in (*self._waiting, *self._running.values()):
            if request.rid == rid:
                request.finish_reason = "abort"
                return self._finish(request)
        return None

    def step(self) -> list[RequestOutput]:
        """Run one forward; outputs of the requests that made progress or ended."""
        outputs: list[RequestOutput] = []
        refreshes = self._next_refreshes(outputs)
        if refreshes:
            self._run_refreshes(refreshes, outputs)
        elif self._running:
            items = tuple(self.planner.block_step(r) for r in self._running.values())
            self._apply(self._worker.forward(Forward(items, self._max_steps)), outputs)
        if self._check or not self.has_work:
            self.check()
        return outputs

    def check(self) -> None:
        """Check that no page is lost: free + tree + requests = all. Raises InvariantError."""
        self.memory.check(self._running.values())

    # Refresh batches

    def _next_refreshes(self, outputs: list[RequestOutput]) -> list[ForwardItem]:
        items: list[ForwardItem] = []
        tokens = 0
        for request in list(self._running.values()):
            if request.needs_refresh:
                item = self.planner.refresh(request)
                if items and tokens + item.stop - item.join > self._max_refresh_tokens:
                    return items
                items.append(item)
                tokens += item.stop - item.join
        for request in self._admissible(outputs):
            item = self.planner.first_forward(request)
            items.append(item)
            tokens += item.stop - item.join
            if tokens >= self._max_refresh_tokens:
                break
        return items

    def _admissible(self, outputs: list[RequestOutput]) -> Iterator[Request]:
        """Admit waiting requests one by one, as long as the caller asks for more and memory lasts.

        A request whose prefix is about to be captured by another one (admitted just now; in mode `lm`, running) waits
        for it and finds it in the cache.
        """
        if not self._waiting:
            return
        leading = self._leading()
        for request in admission_order(self._policy, self._waiting, self.planner):
            if len(self._running) >= self._max_running:
                return
            if self._follows(request, leading):
                continue
            admitted = self.planner.admit(request)
            if not admitted and not self._running:
                admitted = self.planner.admit(request, capture=False)
                if not admitted:
                    self._reject(request, outputs)
                    continue
            if not admitted:
                return
            self._start(request)
            self._lead(leading, request)
            yield request

    def _leading(self) -> RadixTree:
        """A tree without pages of the prompts that will be in the cache before long."""
        config = self.memory.config
        leading = RadixTree(TreeConfig(config.page_size, config.num_layers, config.layers_per_band))
        for request in self._running.values():
            if request.cache_mode == "lm":  # captured when it has finished, not after its first forward
                self._lead(leading, request)
        return leading

    def _lead(self, leading: RadixTree, request: Request) -> None:
        tokens = len(request.prompt) if request.cache_mode == "lm" else request.capture_tokens
        if tokens:
            depth = self.memory.config.num_layers
            leading.capture(request.prompt[:tokens], self.planner.namespace(request), depth=depth, ratio=1.0)

    def _follows(self, request: Request, leading: RadixTree) -> bool:
        if self.memory.tree_for(request.cache_mode) is None:
            return False
        shared = leading.match(request.prompt, self.planner.namespace(request), touch=False).num_tokens
        reusable = self.planner.reusable
        return reusable(request, shared) > reusable(request, self.planner.cached_tokens(request))

    def _start(self, request: Request) -> None:
        assert request.page_table is not None
        self._waiting.remove(request)
        self._running[request.rid] = request
        request.admitted_at = time.monotonic()
        self._worker.add(
            AddRequest(
                request.rid, request.prompt, request.canvas_length, request.sampling, request.seed,
                request.steps_per_block, request.page_table,
            )
        )  # fmt: skip

    def _reject(self, request: Request, outputs: list[RequestOutput]) -> None:
        free = self.memory.kv.num_free // self.memory.config.num_bands * self.memory.config.page_size
        message = (
            f"prompt and canvas have {request.total_tokens} tokens; room for {free} can be made, the rest is pinned"
        )
        request.fail(PoolTooSmallError(message, field="prompt", value=request.total_tokens, limit=free))
        outputs.append(self._finish(request))

    def _run_refreshes(self, items: list[ForwardItem], outputs: list[RequestOutput]) -> None:
        results = self._worker.forward(Forward(tuple(items)))
        for item, result in zip(items, results, strict=True):
            request = self._running[item.rid]
            if result.error is None:
                request.needs_refresh = False
                if item.join == 0 or not request.started:
                    request.prefix_refreshes += 1
                    request.nfe_at_refresh = request.nfe
                if not request.started:
                    request.started = True
                    self.planner.captured(request)
        self._apply(results, outputs)

    # Results

    def _apply(self, results: list[StepResult], outputs: list[RequestOutput]) -> None:
        ended: list[Request] = []
        for result in results:
            request = self._running[result.rid]
            if result.error is not None:
                request.fail(EngineError(f"the forward failed: {result.error}", field="rid", value=request.rid))
                outputs.append(self._finish(request))
                continue
            request.nfe += result.nfe
            request.computed_token_layers += result.token_layers
            request.apply(result.positions, result.tokens, self._eos)
            if request.finish_reason is not None:
                ended.append(request)
                continue
            self._next_block(request)
            if result.tokens:
                outputs.append(request.output())
        self._capture_finished(ended)
        outputs += [self._finish(request) for request in ended]

    def _next_block(self, request: Request) -> None:
        start, stop = request.blocks[request.block]
        if request.committed[start:stop].all():
            request.block += 1
            request.needs_refresh = request.cache_mode != "none"

    def _capture_finished(self, ended: list[Request]) -> None:
        """Mode `lm`: a pass over each finished sequence, then its capture."""
        pairs = [(request, self.planner.final_forward(request)) for request in ended]
        items = [item for _, item in pairs if item is not None]
        if not items:
            return
        results = {result.rid: result for result in self._worker.forward(Forward(tuple(items)))}
        for request, item in pairs:
            if item is not None and results[request.rid].error is None:
                request.computed_token_layers += results[request.rid].token_layers
                self.planner.final_captured(request)

    def _finish(self, request: Request) -> RequestOutput:
        self._running.pop(request.rid, None)
        if request in self._waiting:
            self._waiting.remove(request)
        self._worker.release(Release((request.rid,)))
        self.memory.release(request)
        return request.output()
