"""Block steps as CUDA graphs: one for the layers and a few for the head, by bucket of batch size.

A batch is padded to a bucket: to the next number of requests in `batch_sizes`, every one with as many rows as the
widest. Padding costs rows, never answers: padding requests have no keys, and their rows belong to nobody. What changes
from batch to batch, and from step to step, stands in memory that the graphs read; so one upload and a replay for each
step is all that the host does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .block_arrays import BlockArrays, block_arrays, on_device
from .block_sampler import BlockSampler, padded
from .cuda_runner import CudaRunner
from .device_arrays import Array, DeviceArrays
from .host_canvas import HostCanvas
from .messages import ForwardItem
from .row_layout import Layout, layout

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Body:
    """A captured (or, without graphs, plain) batch shape."""

    arrays: DeviceArrays
    at: Layout
    blocks: BlockArrays
    hidden: Tensor | None
    graph: torch.cuda.CUDAGraph | None
    heads: dict[int, torch.cuda.CUDAGraph]


class StepGraphs:
    """Runs block steps of any batch by the graph of its bucket, capturing it when it is first met.

    Args:
        runner, sampler: what runs inside.
        batch_sizes: buckets of requests, ascending.
        capture: False runs the same operations without graphs (a CPU, or `disable_cuda_graph`).
    """

    def __init__(self, runner: CudaRunner, sampler: BlockSampler, batch_sizes: Sequence[int], capture: bool):
        self._runner = runner
        self._sampler = sampler
        self._batch_sizes = tuple(batch_sizes)
        self._capture = capture
        self._bodies: dict[tuple[int, int], _Body] = {}
        self._pool: Any = None

    @property
    def max_requests(self) -> int:
        """Largest batch."""
        return self._batch_sizes[-1]

    def warm_up(self, rows: int) -> None:
        """Capture every bucket for blocks of `rows` rows."""
        for requests in reversed(self._batch_sizes):
            self._body(requests, rows)

    def run(self, items: Sequence[ForwardItem], canvases: Sequence[HostCanvas], steps: int) -> npt.NDArray[np.int64]:
        """Run `steps` block steps; the blocks' tokens afterwards, int64 [requests, width], -1 for masks.

        All requests take part in each step; those whose block is full commit nothing more.
        """
        width = max(item.stop - item.start for item in items)
        requests = next(size for size in self._batch_sizes if size >= len(items))
        body = self._body(requests, width)
        body.arrays.load(self._contents(items, canvases, requests, width))
        hosted = [canvas for canvas in canvases if not on_device(canvas)]
        for step in range(steps):
            if body.graph is not None:
                body.graph.replay()
            else:
                body.hidden = self._layers(body, requests)
            masks = sum(canvas.masks_after(step) for canvas in canvases if on_device(canvas))
            self._replay_head(body, masks, width)
        if hosted:
            assert body.hidden is not None
            assert steps == 1
            rows = np.cumsum([0, *(item.stop - item.start for item in items)]).tolist()
            starts = [rows[i] for i, canvas in enumerate(canvases) if not on_device(canvas)]
            self._sampler.sample_on_host(body.hidden, hosted, starts)
        result = self._sampler.read(body.at.batch.slots, body.blocks.first, width)[: len(items)]
        return result.cpu().numpy()

    def _contents(
        self, items: Sequence[ForwardItem], canvases: Sequence[HostCanvas], requests: int, width: int
    ) -> dict[str, Array]:
        count, rows = len(items), requests * width
        lengths = [item.stop - item.start for item in items]
        starts = np.cumsum([0, *lengths]).astype(np.int32)
        positions = np.full(rows, -1, np.int32)
        owners = np.full(rows, requests - 1, np.int32)
        positions[: starts[-1]] = np.concatenate([np.arange(i.start, i.stop, dtype=np.int32) for i in items])
        owners[: starts[-1]] = np.repeat(np.arange(count, dtype=np.int32), lengths)
        arrays: dict[str, Array] = {
            "at.positions": positions,
            "at.requests": owners,
            "at.starts": padded(starts.tolist(), requests + 1, int(starts[-1])),
            "at.keys": padded([item.keys for item in items], requests, 0),
            "slots": padded([canvas.slot for canvas in canvases], requests, self._runner.slots.padding),
        }
        for name, array in block_arrays(items, canvases, [not on_device(c) for c in canvases]).items():
            arrays[f"block.{name}"] = np.pad(array, (0, requests - count))  # type: ignore[assignment]
        return arrays

    def _body(self, requests: int, width: int) -> _Body:
        body = self._bodies.get((requests, width))
        if body is None:
            body = self._bodies[requests, width] = self._build(requests, width)
        return body

    def _build(self, requests: int, width: int) -> _Body:
        device = self._runner.decoder.device
        arrays = DeviceArrays(self._contents_of_nothing(requests, width), device)
        views = arrays.views
        at = layout(views, "at", self._runner.slots.page_tables, views["slots"])
        blocks = BlockArrays(**{name[6:]: view for name, view in views.items() if name.startswith("block.")})
        body = _Body(arrays, at, blocks, None, None, {})
        if self._capture:
            started = time.perf_counter()
            body.graph, body.hidden = self._captured(lambda: self._layers(body, requests))
            for size in self._head_sizes(requests * width):
                body.heads[size], _ = self._captured(partial(self._sample, body, size, width))
            seconds = time.perf_counter() - started
            logger.info("captured the block step of %d requests x %d rows in %.1f s", requests, width, seconds)
        return body

    def _contents_of_nothing(self, requests: int, width: int) -> dict[str, Array]:
        zeros = np.zeros(requests, np.int32)
        arrays: dict[str, Array] = {
            "at.positions": np.full(requests * width, -1, np.int32),
            "at.requests": np.zeros(requests * width, np.int32),
            "at.starts": np.zeros(requests + 1, np.int32),
            "at.keys": zeros,
            "slots": np.full(requests, self._runner.slots.padding, np.int32),
        }
        for name in ("first", "size", "masks", "step", "steps", "strategy"):
            arrays[f"block.{name}"] = zeros
        for name in ("threshold", "factor"):
            arrays[f"block.{name}"] = np.zeros(requests, np.float32)
        return arrays

    def _layers(self, body: _Body, requests: int) -> Tensor:
        return self._runner.step(body.at, self._runner.splits(requests, body.at.num_rows))

    def _head_sizes(self, rows: int) -> list[int]:
        """Buckets of masked positions for a batch of so many rows: quarters, in steps of 32."""
        quarters = {-(-rows * quarter // 4 // 32) * 32 for quarter in (1, 2, 3, 4)}
        return sorted(min(rows, size) for size in quarters)

    def _replay_head(self, body: _Body, masks: int, width: int) -> None:
        if not masks:
            return
        size = next(size for size in self._head_sizes(body.at.num_rows) if size >= masks)
        if size in body.heads:
            body.heads[size].replay()
        else:
            self._sample(body, size, width)

    def _sample(self, body: _Body, size: int, width: int) -> None:
        assert body.hidden is not None
        batch = body.at.batch
        self._sampler.sample(body.hidden, batch.query_starts, batch.slots, body.blocks, size, width)

    @torch.inference_mode()
    def _captured(self, run: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
        """A graph of what `run` does, and what it returned; run twice first, so that kernels are compiled."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
            run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = run()
        if self._pool is None:
            self._pool = graph.pool()
        return graph, result
