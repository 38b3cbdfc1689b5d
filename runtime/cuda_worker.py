"""The worker of a GPU: canvases, masks and commits stay on the device, block steps are replayed CUDA graphs."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from .block_arrays import BlockArrays, block_arrays, on_device
from .block_sampler import BlockSampler
from .cuda_runner import CudaRunner
from .device_arrays import to_device
from .host_canvas import HostCanvas
from .messages import AddRequest, Forward, ForwardItem, Release, StepResult
from .refresh_plan import plan_refresh
from .step_graphs import StepGraphs

logger = logging.getLogger(__name__)
Blocks = npt.NDArray[np.int64]


class CudaWorker:
    """Executes messages of the scheduler, in order; the same answers as `Worker`.

    Several steps of a message run without a look at the device in between. So a request whose block is full, or whose
    text has ended, before the message's last step takes part in the rest too; it commits nothing more once its block is
    full. On a CPU (reference kernels, no graphs) it works as well: for tests.

    Args:
        runner: the model, the pools and the canvas slots.
        sampler: commits after refreshes.
        steps: runs block steps.
    """

    def __init__(self, runner: CudaRunner, sampler: BlockSampler, steps: StepGraphs):
        self.runner = runner
        self._steps = steps
        self._sampler = sampler
        self._shift = int(runner.decoder.config.shift_logits)
        self._canvases: dict[str, HostCanvas] = {}

    @property
    def num_requests(self) -> int:
        """Requests that have a canvas."""
        return len(self._canvases)

    @torch.inference_mode()
    def add(self, message: AddRequest) -> None:
        """Create a canvas behind the prompt: masks, tokens committed before, and the fixed tokens of a template."""
        prompt, length, sampling = len(message.prompt), message.canvas_length, message.sampling
        config = self.runner.decoder.config
        canvas = np.full(length, -1, np.int64)
        canvas[: len(message.committed)] = message.committed
        if message.canvas is not None:
            canvas[:] = message.canvas
        tokens = np.concatenate((message.prompt, np.where(canvas < 0, config.mask_token_id, canvas)))
        masked = np.concatenate((np.zeros(prompt, np.bool_), canvas < 0))
        slot = self.runner.slots.take(tokens, masked, message.page_table)
        whole = sampling.ignore_eos or message.canvas is not None
        stop_ids = () if whole else (config.eos_token_id, *sampling.stop_token_ids)
        self._canvases[message.rid] = HostCanvas(
            slot, prompt, canvas, sampling, frozenset(stop_ids), message.steps_per_block,
            message.seed, torch.Generator().manual_seed(message.seed),
        )  # fmt: skip

    def release(self, message: Release) -> None:
        """Forget canvases; unknown requests are ignored (an abort may come twice)."""
        for rid in message.rids:
            canvas = self._canvases.pop(rid, None)
            if canvas is not None:
                self.runner.slots.give_back(canvas.slot)

    @torch.inference_mode()
    def forward(self, message: Forward) -> list[StepResult]:
        """Run a forward, one result an item, in order. A failure is reported in the results, never raised."""
        results = {item.rid: StepResult(item.rid) for item in message.items}
        try:
            self._forward(message, results)
        except Exception as error:  # whatever broke, the requests of this batch fail and the others go on
            logger.exception("a forward of %d requests failed", len(message.items))
            words = f"{type(error).__name__}: {error}"
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
                words = f"out of GPU memory in a forward of {len(message.items)} requests; see max_refresh_tokens"
            for result in results.values():
                result.error = words
        return list(results.values())

    def _forward(self, message: Forward, results: dict[str, StepResult]) -> None:
        items, left = list(message.items), message.max_steps
        while items and left > 0:
            canvases = self._enter(items)
            count = 1
            if len(items) <= self._steps.max_requests and all(self._is_block_step(item) for item in items):
                if all(on_device(canvas) for canvas in canvases):
                    count = min(left, *(canvas.sure_steps() for canvas in canvases))
                blocks = self._steps.run(items, canvases, count)
            else:
                blocks = self._refresh(items, canvases, results)
            left -= count
            self._account(items, canvases, blocks, count, results)
            items = [item for item in items if self._continues(item)]

    def _is_block_step(self, item: ForwardItem) -> bool:
        begins = item.start == max(item.block_start - self._shift, 0)
        plain = item.resume is None and item.targets is None and not item.captures
        return plain and begins and item.stop == item.block_stop

    def _continues(self, item: ForwardItem) -> bool:
        canvas = self._canvases[item.rid]
        return not canvas.stopped and len(canvas.open_positions(item.block_start, item.block_stop)) > 0

    def _enter(self, items: Sequence[ForwardItem]) -> list[HostCanvas]:
        canvases = [self._canvases[item.rid] for item in items]
        for item, canvas in zip(items, canvases, strict=True):
            if item.block_stop > item.block_start:
                canvas.enter(item.block_start, item.block_stop)
        return canvases

    def _refresh(
        self, items: Sequence[ForwardItem], canvases: Sequence[HostCanvas], results: dict[str, StepResult]
    ) -> Blocks:
        """A forward of any shape; tokens of the blocks afterwards, [requests, width], -1 for masks."""
        slots = self.runner.slots
        plan = plan_refresh(items, [c.slot for c in canvases], slots.page_tables, slots.page_size, self._shift)
        hidden = self.runner.refresh(plan)
        for item, start, low in zip(items, plan.last_starts, plan.last_lows, strict=True):
            if item.targets is not None:
                places = item.targets[:, 0] - self._shift - low + start
                results[item.rid].scores += self._sampler.scores(hidden, places, item.targets[:, 1])
        width = max(item.block_stop - item.block_start for item in items)
        if not width:
            return np.empty((len(items), 0), np.int64)
        hosted = [not on_device(canvas) for canvas in canvases]
        blocks = BlockArrays(**to_device(block_arrays(items, canvases, hosted), hidden.device))
        sizes = [item.block_stop - item.block_start for item in items]
        masks = [len(c.open_positions(*c.block)) if size else 0 for c, size in zip(canvases, sizes, strict=True)]
        rows = sum(count for count, host in zip(masks, hosted, strict=True) if not host)
        if rows:
            self._sampler.sample(hidden, plan.last.batch.query_starts, plan.slots, blocks, rows, width)
        at_host = [i for i, host in enumerate(hosted) if host and sizes[i]]
        self._sampler.sample_on_host(hidden, [canvases[i] for i in at_host], [plan.last_starts[i] for i in at_host])
        return self._sampler.read(plan.slots, blocks.first, width).cpu().numpy()

    def _account(
        self, items: Sequence[ForwardItem], canvases: Sequence[HostCanvas], blocks: Blocks, count: int,
        results: dict[str, StepResult],
    ) -> None:  # fmt: skip
        """Note what `count` forwards committed and computed."""
        layers = self.runner.decoder.num_layers
        for item, canvas, block in zip(items, canvases, blocks, strict=True):
            result = results[item.rid]
            result.nfe += count
            computed = (item.stop - item.start) * layers + (item.start - item.join) * (layers - item.depth)
            result.token_layers += count * computed
            size = item.block_stop - item.block_start
            if size and len(canvas.open_positions(item.block_start, item.block_stop)):
                canvas.block_step += count
                positions, tokens = canvas.take(block[:size])
                result.positions += positions
                result.tokens += tokens
