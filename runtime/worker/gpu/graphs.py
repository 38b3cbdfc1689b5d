"""Block steps and small canvas refreshes as CUDA graphs: one for the layers and a few for the head, by bucket.

A batch is padded to a bucket: to the next number of requests in `batch_sizes`, every one with as many rows as the
widest. Padding costs rows, never answers: padding requests have no keys, and their rows belong to nobody. Everything
that changes between batches and steps stands in memory that the graphs read, so the host does one upload, and one
replay for each step.

If requests begin with the same pages, the graph whose attention reads shared pages once runs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ....kernels.attention.groups import SharedGroups, SharedPlan, plan_shared_groups
from ....kernels.attention.tiling import num_sms
from ...request.forward import ForwardItem
from ..canvas import Canvas
from .arrays import Array, DeviceArrays
from .layout import Layout, layout
from .runner import CudaRunner
from .sampler import BlockSampler

logger = logging.getLogger(__name__)
MIN_SHARERS = 4
"""Requests of a group; below, reading shared pages once saves less than it costs."""
MIN_SHARING_BATCH = 8
"""Requests of a batch; in smaller ones the second launch per layer costs as much as the reads that it saves."""
MOST_LATE_CAPTURES = 64
"""Most buckets captured while serving: each takes memory permanently, and delays all requests once."""
_MOST_PLAIN = 32
_WIDTH_UNIT = 32
_MOST_REFRESH_ROWS = 1024
_MOST_LATE_ROWS = 4096
"""Rows of the largest bucket captured while serving: larger ones take longer to run than to launch."""


class Bucket(NamedTuple):
    """A batch shape: requests, rows of each, positions of the longest block, whether keys are shared."""

    requests: int
    width: int
    block: int
    shared: bool


@dataclass(slots=True)
class Body:
    """A captured (or, without graphs, plain) bucket."""

    arrays: DeviceArrays
    at: Layout
    groups: SharedGroups | None
    hidden: Tensor | None = None
    graph: torch.cuda.CUDAGraph | None = None
    heads: dict[int, torch.cuda.CUDAGraph] = field(default_factory=dict)
    held: tuple[object, ...] = ()
    plan: SharedPlan | None = None


class ForwardGraphs:
    """Runs forwards over contiguous rows by the graph of their bucket, captured when it is first met.

    Clients choose block lengths, so there may be any number of buckets. After `MOST_LATE_CAPTURES` beside those of
    the warm-up, new ones run without a graph.

    Args:
        runner, sampler: what runs inside.
        batch_sizes: buckets of requests, ascending.
        capture: False runs the same operations without graphs (a CPU, or `disable_cuda_graph`).

    Attributes:
        bodies: the captured buckets.
        uncaptured: the latest buckets that run without a graph.
    """

    def __init__(self, runner: CudaRunner, sampler: BlockSampler, batch_sizes: Sequence[int], capture: bool):
        self._runner = runner
        self._sampler = sampler
        self._batch_sizes = tuple(batch_sizes)
        self._capture = capture
        self.bodies: dict[Bucket, Body] = {}
        self.uncaptured: dict[Bucket, Body] = {}
        self._late_captures = 0
        self._pool: Any = None
        self._planned: tuple[object, SharedPlan] | None = None

    def warm_up(self, rows: int, block: int, shared: bool) -> None:
        """Capture every bucket of block steps for blocks of `block` positions, `rows` rows each."""
        for requests in reversed(self._batch_sizes):
            for share in (False, True)[: 1 + (shared and requests >= MIN_SHARING_BATCH)]:
                bucket = Bucket(requests, rows, block, share)
                self.bodies[bucket] = self._build(bucket, self._capture)

    def takes(self, items: Sequence[ForwardItem]) -> bool:
        """Whether these items run here: block steps, and refreshes that take longer to launch than to run."""
        if len(items) > self._batch_sizes[-1]:
            return False
        plain = (item.resume is None and item.targets is None and item.copies is None for item in items)
        if not all(plain) or any(item.captures for item in items):
            return False
        if any(item.block_stop == item.block_start for item in items):
            return False
        if all(item.is_block_alone for item in items):
            return True
        bucket = self._bucket(items, False)
        few = bucket.requests * bucket.width <= _MOST_REFRESH_ROWS
        return few and (bucket in self.bodies or self._may_capture)

    def run(self, items: Sequence[ForwardItem], canvases: Sequence[Canvas], steps: int) -> npt.NDArray[np.int64]:
        """Run `steps` equal forwards; what `CanvasSlots.read` tells of the blocks afterwards.

        All requests take part in each step; those whose block is full, or whose text has ended, commit nothing more.
        """
        bucket, body = self.load(items, canvases)
        draw, shapes = (any(canvas.draws for canvas in canvases), any(canvas.shapes for canvas in canvases))
        for step in range(steps):
            if body.graph is not None:
                body.graph.replay()
            else:
                body.hidden = self._layers(body, bucket)
            masks = sum(canvas.masks_after(step) for canvas in canvases)
            if masks:
                self._replay_head(body, bucket, masks, draw, shapes)
        read = self._runner.slots.read(body.at.batch.slots, bucket.block)[: len(items)]
        return read.cpu().numpy()

    def load(self, items: Sequence[ForwardItem], canvases: Sequence[Canvas]) -> tuple[Bucket, Body]:
        """The bucket of these items and its body, made if need be, whose arrays hold them: ready for a replay."""
        plan = self._plan(items, canvases)
        bucket = self._bucket(items, plan is not None and bool(plan.groups))
        body = self._body(bucket)
        pairs = zip(items, canvases, strict=True)
        key = tuple((canvas.serial, item.start, item.stop, item.keys) for item, canvas in pairs)
        if body.held != key:
            body.arrays.load(self._contents(items, canvases, bucket))
            body.held = key
        if body.groups is not None and plan is not None and body.plan is not plan:
            body.groups.load(plan)
            body.plan = plan
        return bucket, body

    def forget(self) -> None:
        """Drop everything captured, for measurements that change what a capture records."""
        self.bodies.clear()
        self._pool, self._late_captures = None, 0

    def _bucket(self, items: Sequence[ForwardItem], shared: bool) -> Bucket:
        requests = next(size for size in self._batch_sizes if size >= len(items))
        width = max(item.stop - item.start for item in items)
        block = max(item.block_stop - item.block_start for item in items)
        if width > block + 1:
            width = -(-width // _WIDTH_UNIT) * _WIDTH_UNIT
        return Bucket(requests, width, block, shared)

    def _plan(self, items: Sequence[ForwardItem], canvases: Sequence[Canvas]) -> SharedPlan | None:
        """Which requests share pages that none of them writes; None for too few requests."""
        if len(items) < MIN_SHARING_BATCH:
            return None
        slots, config = self._runner.slots, self._runner.decoder.config
        starts = np.cumsum([0, *(item.stop - item.start for item in items)]).tolist()
        # Pages that requests have in common end before their canvases, so that a plan serves block after block.
        keys = [min(item.start, canvas.prompt_length) for item, canvas in zip(items, canvases, strict=True)]
        key = (tuple(canvas.serial for canvas in canvases), tuple(starts), tuple(keys))
        if self._planned is None or self._planned[0] != key:
            plan = plan_shared_groups(
                slots.host_page_tables, [canvas.slot for canvas in canvases], starts, keys,
                slots.page_size, config.num_heads, config.num_kv_heads, min_sharers=MIN_SHARERS,
                sms=num_sms(self._runner.decoder.device),
            )  # fmt: skip
            self._planned = (key, plan)
        return self._planned[1]

    def _contents(self, items: Sequence[ForwardItem], canvases: Sequence[Canvas], bucket: Bucket) -> dict[str, Array]:
        count, rows = len(items), bucket.requests * bucket.width
        lengths = [item.stop - item.start for item in items]
        ends = np.cumsum(lengths)
        arrays = self._nothing(bucket)
        positions = [np.arange(item.start, item.stop, dtype=np.int32) for item in items]
        arrays["at.positions"][: ends[-1]] = np.concatenate(positions)
        arrays["at.requests"][: ends[-1]] = np.repeat(np.arange(count, dtype=np.int32), lengths)
        arrays["at.starts"][1:] = ends[-1]
        arrays["at.starts"][1 : count + 1] = ends
        arrays["at.keys"][:count] = [item.keys for item in items]
        arrays["slots"][:count] = [canvas.slot for canvas in canvases]
        arrays["first"][:count] = [item.start for item in items]
        assert ends[-1] <= rows
        return arrays

    def _nothing(self, bucket: Bucket) -> dict[str, Array]:
        """A batch without requests."""
        requests, rows = bucket.requests, bucket.requests * bucket.width
        return {
            "at.positions": np.full(rows, -1, np.int32),
            "at.requests": np.full(rows, requests - 1, np.int32),
            "at.starts": np.zeros(requests + 1, np.int32),
            "at.keys": np.zeros(requests, np.int32),
            "slots": np.full(requests, self._runner.slots.padding, np.int32),
            "first": np.zeros(requests, np.int32),
        }

    @property
    def _may_capture(self) -> bool:
        return self._capture and self._late_captures < MOST_LATE_CAPTURES

    def _body(self, bucket: Bucket) -> Body:
        body = self.bodies.get(bucket) or self.uncaptured.get(bucket)
        if body is None and self._may_capture and bucket.requests * bucket.width <= _MOST_LATE_ROWS:
            body = self.bodies[bucket] = self._build(bucket, True)
            self._late_captures += 1
            if not self._may_capture:
                logger.warning("%d graphs were captured while serving; new shapes run without one", MOST_LATE_CAPTURES)
        elif body is None:
            if len(self.uncaptured) == _MOST_PLAIN:
                del self.uncaptured[next(iter(self.uncaptured))]
            body = self.uncaptured[bucket] = self._build(bucket, False)
        return body

    def _build(self, bucket: Bucket, capture: bool) -> Body:
        slots, config = self._runner.slots, self._runner.decoder.config
        arrays = DeviceArrays(self._nothing(bucket), self._runner.decoder.device)
        at = layout(arrays.views, "at", slots.page_tables, arrays.views["slots"])
        groups = None
        if bucket.shared:
            groups = SharedGroups.empty(
                slots.page_tables.shape[1], bucket.requests, at.num_rows, config.num_heads, config.num_kv_heads,
                self._runner.decoder.device,
            )  # fmt: skip
        body = Body(arrays, at, groups)
        if capture:
            started = time.perf_counter()
            body.graph, body.hidden = self._captured(partial(self._layers, body, bucket))
            for size in self._head_sizes(bucket):
                body.heads[size], _ = self._captured(partial(self._sample, body, bucket, size, False))
                with torch.inference_mode():  # heads that draw are not captured, but compiled
                    for shapes in (False, True):
                        self._sample(body, bucket, size, True, shapes)
            logger.info("captured %s in %.1f s", bucket, time.perf_counter() - started)
        return body

    def _layers(self, body: Body, bucket: Bucket) -> Tensor:
        return self._runner.step(body.at, self._runner.splits(bucket.requests, body.at.num_rows), body.groups)

    def _head_sizes(self, bucket: Bucket) -> list[int]:
        """Buckets of masked positions: quarters of all, in steps of 32."""
        rows = bucket.requests * bucket.block
        return sorted({min(rows, -(-rows * quarter // 4 // 32) * 32) for quarter in (1, 2, 3, 4)})

    def _replay_head(self, body: Body, bucket: Bucket, masks: int, draw: bool, shapes: bool) -> None:
        size = next(size for size in self._head_sizes(bucket) if size >= masks)
        if size in body.heads and not (draw or shapes):
            body.heads[size].replay()
        else:
            self._sample(body, bucket, size, draw, shapes)

    def _sample(self, body: Body, bucket: Bucket, size: int, draw: bool, shapes: bool = False) -> None:
        assert body.hidden is not None
        first = body.arrays.views["first"]
        self._sampler.sample(body.hidden, body.at.batch, first, size, bucket.block, draw, shapes)

    @torch.inference_mode()
    def _captured(self, run: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
        """A graph of what `run` does, and what it returned; run twice first, so that kernels are compiled.

        Products are cuBLASLt's: for up to 128 rows it chooses kernels that need no second launch to add up splits.
        Must happen while the body's arrays hold no requests: then running changes nothing.
        """
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        with products_by("cublaslt"):
            with torch.cuda.stream(stream):
                run()
                run()
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph, pool=self._pool):
                result = run()
        if self._pool is None:
            self._pool = graph.pool()
        return graph, result


@contextmanager
def products_by(library: str) -> Iterator[None]:
    """Run matrix products by `cublas` or `cublaslt` inside the context; the choice holds for the whole process."""
    choose = torch.backends.cuda.preferred_blas_library
    before = choose()
    choose(library)
    try:
        yield
    finally:
        choose(before)
