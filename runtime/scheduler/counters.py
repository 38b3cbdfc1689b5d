"""The scheduler's counters, and its log lines about them."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, fields

from ..request.request import Request
from ..request.stats import Counts, SchedulerStats
from .memory import Memory
from .throughput import Throughput

logger = logging.getLogger(__name__)


class Counters(Counts):
    """Counts what happens to requests."""

    __slots__ = ()

    def admitted(self, request: Request, shares: bool) -> None:
        """A request got its pages; `shares`: its cache mode looks prefixes up."""
        if not request.tally.preemptions:
            self.prompt_tokens += len(request.prompt)
        if shares:
            self.cache_queries += 1
            self.cache_hits += request.tally.cached_tokens > 0
            self.cache_query_tokens += len(request.prompt)
            self.cache_hit_tokens += request.tally.cached_tokens
            self.reused_token_layers += request.tally.cached_tokens * request.tally.depth

    def text(self, request: Request) -> None:
        """Text may have grown."""
        new = max(0, request.num_text_tokens - request.tally.counted_tokens)
        self.generated_tokens += new
        request.tally.counted_tokens += new

    def finished(self, request: Request, timed_out: bool) -> None:
        """A request ended."""
        self.text(request)
        if timed_out:
            self.timed_out += 1
        elif request.finish_reason == "stop":
            self.finished_stop += 1
        elif request.finish_reason == "length":
            self.finished_length += 1
        elif request.finish_reason == "abort":
            self.aborted += 1
        else:
            self.failed += 1


@dataclass(slots=True)
class BatchLog:
    """Turns counters into log lines and throughputs.

    Args:
        memory: its usage appears in the lines.
        counters: source of the numbers.
        interval: block-step forwards between two lines.
    """

    memory: Memory
    counters: Counters
    interval: int
    started: float = field(default_factory=time.monotonic)
    _steps: int = 0
    _input: Throughput = field(default_factory=Throughput)
    _text: Throughput = field(default_factory=Throughput)

    def work(self) -> None:
        """A request came, or a forward is about to run."""
        now = time.monotonic()
        self._input.note(now, self.counters.prompt_tokens)
        self._text.note(now, self.counters.generated_tokens)

    def rest(self) -> None:
        """No request is left."""
        self._input.rest()
        self._text.rest()

    @property
    def input_throughput(self) -> float:
        """As in SchedulerStats."""
        return self._input.rate(time.monotonic(), self.counters.prompt_tokens)

    @property
    def gen_throughput(self) -> float:
        """As in SchedulerStats."""
        return self._text.rate(time.monotonic(), self.counters.generated_tokens)

    def usage(self) -> float:
        """Share of the KV pool that is neither free nor evictable."""
        kv = self.memory.kv
        return 1.0 - (kv.num_free + kv.num_reclaimable) / kv.num_pages if kv.num_pages else 0.0

    def refresh(self, admitted: list[Request], running: int, waiting: int) -> None:
        """A refresh batch that admitted requests is about to run."""
        if not admitted or not logger.isEnabledFor(logging.INFO):
            return
        cached = sum(request.tally.cached_tokens for request in admitted)
        logger.info(
            "Prefill batch, #new-seq: %d, #new-token: %d, #cached-token: %d, token usage: %.2f, #running-req: %d, "
            "#queue-req: %d, mean reuse depth: %.1f, input throughput (token/s): %.2f",
            len(admitted), sum(len(request.prompt) for request in admitted) - cached, cached, self.usage(),
            running - len(admitted), waiting,
            sum(r.tally.cached_tokens * r.tally.depth for r in admitted) / cached if cached else 0.0,
            self.input_throughput,
        )  # fmt: skip

    def block_step(self, running: dict[str, Request], waiting: int) -> None:
        """A block step of all running requests is about to run."""
        self._steps += 1
        if self._steps % self.interval or not logger.isEnabledFor(logging.INFO):
            return
        logger.info(
            "Decode batch, #running-req: %d, #token: %d, token usage: %.2f, gen throughput (token/s): %.2f, "
            "#queue-req: %d",
            len(running), sum(request.extent for request in running.values()), self.usage(),
            self.gen_throughput, waiting,
        )  # fmt: skip

    def stats(self, running: int, waiting: int) -> SchedulerStats:
        """Everything as it is now."""
        memory, counters = self.memory, self.counters
        trees = (memory.tree, memory.lm_tree)
        config = memory.config
        totals = {kind: sum(tree.events.totals[kind] for tree in trees) for kind in ("stored", "trimmed", "evicted")}
        kv_tree = sum(tree.num_kv_pages for tree in trees)
        return SchedulerStats(
            running=running,
            waiting=waiting,
            kv_pages=memory.kv.num_pages,
            kv_pages_free=memory.kv.num_free,
            kv_pages_tree=kv_tree,
            kv_pages_requests=memory.kv.num_pages - memory.kv.num_free - memory.kv.num_reclaimable,
            boundary_pages=memory.boundary.num_pages,
            boundary_pages_free=memory.boundary.num_free,
            boundary_pages_tree=sum(tree.num_boundary_pages for tree in trees),
            capacity_tokens=memory.kv.num_pages // config.num_bands * config.page_size,
            token_usage=self.usage(),
            tree_stored=totals["stored"],
            tree_trimmed=totals["trimmed"],
            tree_evicted=totals["evicted"],
            input_throughput=self.input_throughput,
            gen_throughput=self.gen_throughput,
            uptime=time.monotonic() - self.started,
            **{count.name: getattr(counters, count.name) for count in fields(Counts)},
        )
