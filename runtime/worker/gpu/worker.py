"""The worker of a GPU: canvases, masks and commits stay on the device, block steps are replayed CUDA graphs."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from ...errors import EngineError
from ...request.forward import AddRequest, Forward, ForwardItem, Release, StepResult
from ..audit import AuditPass
from ..canvas import HostCanvas
from ..cpu.sampler import NOT_FINITE, finite_scores
from .arrays import on_device
from .graphs import ForwardGraphs
from .refresh_plan import plan_refresh
from .runner import CudaRunner
from .sampler import BlockSampler
from .warm_up import warm_up_sizes

logger = logging.getLogger(__name__)
Blocks = npt.NDArray[np.int64]


def _power_of_2(count: int) -> int:
    return 1 << (count - 1).bit_length()


class CudaWorker:
    """Executes messages of the scheduler, in order; the same answers as `Worker`.

    Several steps of a message run without a look at the device in between. So a request whose block is full, or whose
    text has ended, before the message's last step takes part in the rest too; it commits nothing more once its block is
    full. On a CPU (reference kernels, no graphs) it works as well: for tests.

    Args:
        runner: the model, the pools and the canvas slots.
        sampler: commits after refreshes.
        graphs: runs block steps and small refreshes.
    """

    def __init__(self, runner: CudaRunner, sampler: BlockSampler, graphs: ForwardGraphs):
        self.runner = runner
        self._graphs = graphs
        self._sampler = sampler
        self._serials = itertools.count()
        self._shift = int(runner.decoder.config.shift_logits)
        self._canvases: dict[str, HostCanvas] = {}
        self._audit = AuditPass(runner.decoder, runner.kv)

    @property
    def num_requests(self) -> int:
        """Requests that have a canvas."""
        return len(self._canvases)

    @torch.inference_mode()
    def warm_up(self, block: int, most_tokens: int) -> None:
        """Compile what refreshes launch. Overwrites pages: for the time before the first request.

        Kernels differ by the number of requests (sampling), by splits and tiles (attention, by rows) and by whether
        a refresh computes all keys, which it then reads where the projection left them, or finds some in pages.

        Args:
            block: positions of the blocks that requests will have.
            most_tokens: of a refresh.
        """
        slots, shift = self.runner.slots, self._shift
        for requests, rows, last, cached in warm_up_sizes(
            self.runner, block, slots.padding, slots.max_tokens - 1, most_tokens
        ):
            stop = cached + rows
            low = max(stop - last, cached + shift)
            if low >= stop:
                continue
            items = [ForwardItem("", cached, stop, stop, low, stop, cached) for _ in range(requests)]
            plan = plan_refresh(items, [slots.padding] * requests, slots.page_tables, slots.page_size, shift)
            hidden = self.runner.refresh(plan)
            for draw in (False, True):
                room = _power_of_2(requests) * _power_of_2(block)
                self._sampler.sample(hidden, plan.last.batch, plan.last_first, room, draw)

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
        whole = sampling.ignore_eos or message.canvas is not None  # decoded to the end of the canvas
        stop_ids = frozenset(() if whole else (config.eos_token_id, *sampling.stop_token_ids))
        take = partial(
            self.runner.slots.take, tokens, masked, message.page_table, sampling, stop_ids, message.steps_per_block,
            message.seed,
        )  # fmt: skip
        with on_device(self.runner.decoder.device):
            try:
                slot = take()
            except torch.OutOfMemoryError:  # copies need little, but forwards may have left nothing in one piece
                torch.cuda.empty_cache()
                slot = take()
        self._canvases[message.rid] = HostCanvas(
            slot, next(self._serials), prompt, canvas, sampling, stop_ids, message.steps_per_block
        )

    def release(self, message: Release) -> None:
        """Forget canvases; unknown requests are ignored (an abort may come twice)."""
        for rid in message.rids:
            canvas = self._canvases.pop(rid, None)
            self._audit.forget(rid)
            if canvas is not None:
                self.runner.slots.give_back(canvas.slot)

    @torch.inference_mode()
    def forward(self, message: Forward) -> list[StepResult]:
        """Run a forward, one result an item, in order. A failure is reported in the results, never raised."""
        results = {item.rid: StepResult(item.rid) for item in message.items}
        audited = [item for item in message.items if item.audit]
        try:
            with on_device(self.runner.decoder.device):
                for item in audited:
                    self._begin_audit(item)
                self._forward(message, results)
            for item in audited:
                self._audit.end(results[item.rid], not self._canvases[item.rid].draws)
        except Exception as error:  # whatever broke, the requests of this batch fail and the others go on
            logger.exception("a forward of %d requests failed", len(message.items))
            words = f"{type(error).__name__}: {error}"
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
                words = f"out of GPU memory in a forward of {len(message.items)} requests; see max_refresh_tokens"
            for result in results.values():
                result.error = words
        return list(results.values())

    def _begin_audit(self, item: ForwardItem) -> None:
        canvas, slots = self._canvases[item.rid], self.runner.slots
        masks = canvas.open_positions(item.block_start, item.block_stop)
        self._audit.begin(item, slots.state.tokens[canvas.slot].long(), slots.page_tables[canvas.slot].long(), masks)

    def _forward(self, message: Forward, results: dict[str, StepResult]) -> None:
        for number, (part, left) in enumerate(message.parts()):
            items = list(part) if number == 0 else [item for item in part if self._continues(item)]
            while items and left > 0:
                canvases = self._enter(items)
                count = 1
                if self._graphs.takes(items):
                    count = min(left, *(canvas.sure_steps() for canvas in canvases))
                    blocks = self._graphs.run(items, canvases, count)
                else:
                    blocks = self._refresh(items, canvases, results)
                left -= count
                self._account(items, canvases, blocks, count, results)
                items = [item for item in items if self._continues(item)]

    def _continues(self, item: ForwardItem) -> bool:
        canvas = self._canvases[item.rid]
        return not canvas.stopped and len(canvas.open_positions(item.block_start, item.block_stop)) > 0

    def _enter(self, items: Sequence[ForwardItem]) -> list[HostCanvas]:
        canvases = [self._canvases[item.rid] for item in items]
        entered = []
        for item, canvas in zip(items, canvases, strict=True):
            if item.block_stop > item.block_start and canvas.enter(item.block_start, item.block_stop):
                entered.append((canvas.slot, *canvas.block, canvas.block_masks))
        self.runner.slots.enter_blocks(entered)
        return canvases

    def _refresh(
        self, items: Sequence[ForwardItem], canvases: Sequence[HostCanvas], results: dict[str, StepResult]
    ) -> Blocks:
        """A forward of any shape; what `CanvasSlots.read` tells of the blocks afterwards."""
        slots = self.runner.slots
        plan = plan_refresh(items, [c.slot for c in canvases], slots.page_tables, slots.page_size, self._shift)
        hidden = self.runner.refresh(plan)
        for item, start, low in zip(items, plan.last_starts, plan.last_lows, strict=True):
            if item.targets is not None:
                places = item.targets[:, 0] - self._shift - low + start
                try:
                    results[item.rid].scores += finite_scores(self._sampler.scores(hidden, places, item.targets[:, 1]))
                except EngineError as error:
                    results[item.rid].error = error.message
        sizes = [item.block_stop - item.block_start for item in items]
        if not any(sizes):
            return np.empty((len(items), 1), np.int64)
        masks = sum(len(c.open_positions(*c.block)) for c, size in zip(canvases, sizes, strict=True) if size)
        if masks:
            draw = any(canvas.draws for canvas in canvases)
            room = _power_of_2(len(items)) * _power_of_2(max(sizes))  # few values: each is a kernel of its own
            self._sampler.sample(hidden, plan.last.batch, plan.last_first, room, draw)
        return slots.read(plan.slots, max(sizes)).cpu().numpy()

    def _account(
        self, items: Sequence[ForwardItem], canvases: Sequence[HostCanvas], blocks: Blocks, count: int,
        results: dict[str, StepResult],
    ) -> None:  # fmt: skip
        """Note what `count` forwards committed and computed; requests that ended in between took part in fewer."""
        layers = self.runner.decoder.num_layers
        for item, canvas, block in zip(items, canvases, blocks, strict=True):
            result, forwards = results[item.rid], count
            size = item.block_stop - item.block_start
            if size and len(canvas.open_positions(item.block_start, item.block_stop)):
                commits = int(block[-1])
                if commits < 0:  # the device's word for it, see CanvasState
                    logger.error("request %s: %s", item.rid, NOT_FINITE)
                    result.error, canvas.stopped, commits = NOT_FINITE, True, ~commits
                forwards = commits - canvas.nfe
                canvas.nfe += forwards
                canvas.block_step += forwards
                positions, tokens = canvas.take(block[:size])
                result.positions += positions
                result.tokens += tokens
            computed = (item.stop - item.start) * layers + (item.start - item.join) * (layers - item.depth)
            result.nfe += forwards
            result.token_layers += forwards * computed
