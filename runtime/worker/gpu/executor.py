"""Forwards and commits on a GPU: canvases and masks stay on the device, block steps are replayed CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...errors import EngineError
from ...grammar.vocabulary import Vocabulary
from ...request.forward import AddRequest, ForwardItem, Grow
from ..canvas import Canvas, Tokens
from ..cpu.choice import guided
from ..executor import Ran
from ..grammars import Grammars
from ..logprobs import logprobs_of
from .graphs import ForwardGraphs
from .host_commits import HostCommits
from .refresh_plan import RefreshPlan, plan_refresh
from .runner import CudaRunner
from .sampler import BlockSampler
from .slot_request import SlotRequest
from .slots import EnteredBlock
from .warm_up import warm_up_sizes

Blocks = Sequence[npt.NDArray[np.int64]]
"""Rows by `CanvasSlots.read`."""
Scores = dict[int, list[float]]
Read = dict[int, Ran]
Logits = dict[int, Tensor]
"""By item number."""


def _power_of_2(count: int) -> int:
    return 1 << (count - 1).bit_length()


class CudaExecutor:
    """See `Executor`. Several block steps run without reading the device in between.

    On a CPU (reference kernels, no graphs) it works as well: for tests.

    Args:
        runner: the model, the pools and the canvas slots.
        sampler: commits after refreshes.
        graphs: runs block steps and small refreshes.
        most_rows: tokens of a forward that there is memory for.
        vocabulary: loads the model's tokens, for the first request with a grammar.
    """

    def __init__(
        self, runner: CudaRunner, sampler: BlockSampler, graphs: ForwardGraphs, most_rows: int,
        vocabulary: Callable[[], Vocabulary] | None = None,
    ):  # fmt: skip
        self.decoder, self.kv, self.boundary = runner.decoder, runner.kv, runner.boundary
        self.runner = runner
        self.graphs = graphs
        self._sampler, self._most_rows = sampler, most_rows
        self._shift = int(runner.decoder.config.shift_logits)
        self._host = HostCommits(runner.slots, runner.decoder.config.eos_token_id, Grammars(vocabulary))

    @torch.inference_mode()
    def warm_up(self, block: int, most_tokens: int) -> None:
        """Compile everything that refreshes launch. Overwrites pages, so call it before the first request.

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
            for draw, shapes in ((False, False), (True, False), (True, True)):
                room = _power_of_2(requests) * _power_of_2(block)
                self._sampler.sample(hidden, plan.last.batch, plan.last_first, room, block, draw, shapes)

    def open(self, canvas: Canvas, message: AddRequest) -> None:
        """Put a canvas into a free slot."""
        tokens = canvas.sequence(message.prompt, self.decoder.config.mask_token_id)
        masked = np.concatenate((np.zeros(len(message.prompt), np.bool_), canvas.tokens < 0))
        request = SlotRequest(
            tokens, masked, len(message.prompt), message.page_table, canvas.sampling, message.stop_ids,
            message.end_ids, message.seed,
        )  # fmt: skip
        try:
            canvas.slot = self.runner.slots.take(request)
        except torch.OutOfMemoryError:  # copies need little memory, but forwards may have fragmented it
            torch.cuda.empty_cache()
            canvas.slot = self.runner.slots.take(request)
        self._host.open(canvas, message)

    def grow(self, canvas: Canvas, message: Grow) -> None:
        """Lengthen a slot's page table."""
        self.runner.slots.grow(canvas.slot, message.held, message.pages)

    def close(self, canvas: Canvas) -> None:
        """Free a canvas's slot."""
        self.runner.slots.give_back(canvas.slot)
        self._host.close(canvas)

    def audit_inputs(self, canvas: Canvas) -> tuple[Tensor, Tensor]:
        """Copies of a slot's tokens and page table."""
        slots = self.runner.slots
        return slots.state.tokens[canvas.slot].long(), slots.page_tables[canvas.slot].long()

    def enter(self, canvases: Sequence[Canvas]) -> None:
        """Tell the device of new current blocks."""
        self.runner.slots.enter_blocks(
            [EnteredBlock(c.slot, *c.block, c.quotas if c.block_steps else (), c.origin_steps) for c in canvases]
        )

    def run(self, items: Sequence[ForwardItem], canvases: Sequence[Canvas], at_most: int) -> tuple[int, list[Ran]]:
        """Run items together: as many block steps as are sure to be needed, or one other forward."""
        scores: Scores = {}
        read: Read = {}
        audited: Logits = {}
        blocks: Blocks
        self.runner.slots.upload_tables()
        try:
            read_by_host = any(self._is_read(c) for c in canvases) or any(i.compares_predictions for i in items)
            if self.graphs.takes(items) and not read_by_host:
                count = min(at_most, *(canvas.sure_steps() for canvas in canvases))
                blocks = [
                    row for part in self._parts(items) for row in self.graphs.run(items[part], canvases[part], count)
                ]
            else:
                count = 1
                blocks, scores, read, audited = self._refresh(items, canvases)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            message = f"out of GPU memory in a forward of {len(items)} requests; see max_refresh_tokens"
            raise EngineError(message, field="max_refresh_tokens") from error
        ran, marks = [], self._marks(items, canvases)
        for number, (item, canvas, block) in enumerate(zip(items, canvases, blocks, strict=True)):
            if number in read and self._host.has(canvas):
                ran.append(read[number])
            elif len(canvas.open_positions(item.block_start, item.block_stop)):
                commits = int(block[-1])
                finite = commits >= 0  # see CanvasState.nfe
                forwards = (commits if finite else ~commits) - canvas.nfe
                logprobs = read[number].logprobs if number in read else []
                block = block[: item.block_stop - item.block_start]
                new = np.flatnonzero((canvas.block_tokens() < 0) & (block >= 0))
                confidences, passes = marks[number][:, new].tolist() if number in marks else ((), ())
                ran.append(
                    Ran(
                        forwards, block, finite=finite, logprobs=logprobs, confidences=confidences,
                        passes=[int(at) - canvas.nfe for at in passes],
                    )
                )  # fmt: skip
            else:
                ran.append(Ran(count, scores=scores.get(number, [])))
            if number in audited:
                ran[-1] = replace(ran[-1], logits=audited[number])
        return count, ran

    def _marks(self, items: Sequence[ForwardItem], canvases: Sequence[Canvas]) -> dict[int, npt.NDArray[np.float64]]:
        """[2, block]: `CanvasSlots.read_marks` of the canvases that have marks, by item number."""
        size = [item.block_stop - item.block_start for item in items]
        which = [n for n, canvas in enumerate(canvases) if canvas.marks and size[n] and not self._host.has(canvas)]
        if not which:
            return {}
        at = torch.tensor([canvases[n].slot for n in which], device=self.runner.slots.state.device)
        found = self.runner.slots.read_marks(at, max(size[n] for n in which)).cpu().numpy()
        return {n: found[:, row] for row, n in enumerate(which)}

    def _parts(self, items: Sequence[ForwardItem]) -> list[slice]:
        """Equal numbers of block steps, none of which has more rows than memory for a refresh is kept for."""
        rows = max(item.stop - item.start for item in items) * len(items)
        parts = min(len(items), -(-rows // self._most_rows))
        size = -(-len(items) // parts)
        return [slice(first, first + size) for first in range(0, len(items), size)]

    def _is_read(self, canvas: Canvas) -> bool:
        """Whether the host reads logits of it after each forward, which graphs do not keep."""
        return canvas.sampling.logprobs is not None or self._host.has(canvas)

    def _refresh(self, items: Sequence[ForwardItem], canvases: Sequence[Canvas]) -> tuple[Blocks, Scores, Read, Logits]:
        """Run a forward of any shape; returns the blocks, the scores, what the host read, and audits' logits."""
        slots = self.runner.slots
        unguided = self._without_prompts(items, canvases)
        plan = self._plan(items, canvases)
        hidden = self.runner.refresh(plan)
        scores: Scores = {}
        for number, item in enumerate(items):
            if item.targets is not None:
                places = self._rows(plan, number, item.targets[:, 0])
                scores[number] = self._sampler.scores(hidden, places, item.targets[:, 1])
        sizes = [item.block_stop - item.block_start for item in items]
        if not any(sizes):
            return [np.empty(1, np.int64)] * len(items), scores, {}, {}
        audited = self._audited(items, canvases, plan, hidden)
        masks = sum(
            len(c.open_positions(*c.block)) for c, size in zip(canvases, sizes, strict=True)
            if size and not self._host.has(c)
        )  # fmt: skip
        if masks:
            draw, shapes = (any(canvas.draws for canvas in canvases), any(canvas.shapes for canvas in canvases))
            room = _power_of_2(len(items)) * _power_of_2(max(sizes))  # few values: each is a kernel of its own
            self._sampler.sample(hidden, plan.last.batch, plan.last_first, room, max(sizes), draw, shapes)
        blocks = list(slots.read(plan.slots, max(sizes)).cpu().numpy())
        return blocks, scores, self._read(items, canvases, blocks, plan, hidden, unguided), audited

    def _audited(
        self, items: Sequence[ForwardItem], canvases: Sequence[Canvas], plan: RefreshPlan, hidden: Tensor
    ) -> Logits:
        """Logits of the open masks of items whose audits compare predictions; without memory for them, none."""
        found: Logits = {}
        for number, (item, canvas) in enumerate(zip(items, canvases, strict=True)):
            positions = canvas.open_positions(item.block_start, item.block_stop)
            if item.compares_predictions and len(positions):
                try:
                    found[number] = self._sampler.logits(hidden, self._rows(plan, number, positions))
                except torch.OutOfMemoryError:
                    if self.decoder.ranks is not None:  # the others wait for this one
                        raise
                    torch.cuda.empty_cache()
        return found

    def _plan(self, items: Sequence[ForwardItem], canvases: Sequence[Canvas]) -> RefreshPlan:
        slots = self.runner.slots
        return plan_refresh(items, [c.slot for c in canvases], slots.page_tables, slots.page_size, self._shift)

    def _rows(self, plan: RefreshPlan, number: int, positions: Tokens) -> Tokens:
        """Rows of a plan's last hidden states that predict `positions` of its item `number`."""
        return positions - self._shift - plan.last_lows[number] + plan.last_starts[number]

    def _without_prompts(self, items: Sequence[ForwardItem], canvases: Sequence[Canvas]) -> dict[int, Tensor]:
        """By item number, logits of the masks of guided canvases by a forward with their prompts masked.

        It computes whole sequences, whose keys and values those of the usual forward then replace.
        """
        which = [n for n, canvas in enumerate(canvases) if canvas.sampling.cfg_scale and items[n].targets is None]
        wanted = {n: canvases[n].open_positions(items[n].block_start, items[n].block_stop) for n in which}
        which = [n for n in which if len(wanted[n])]
        if not which:
            return {}
        for n in which:
            assert items[n].start == 0 == items[n].join
            self._host.mask_prompt(canvases[n], self.decoder.config.mask_token_id)
        plan = self._plan([items[n] for n in which], [canvases[n] for n in which])
        hidden = self.runner.refresh(plan)
        for n in which:
            self._host.mask_prompt(canvases[n], None)
        return {n: self._sampler.logits(hidden, self._rows(plan, at, wanted[n])) for at, n in enumerate(which)}

    def _read(
        self, items: Sequence[ForwardItem], canvases: Sequence[Canvas], blocks: Blocks, plan: RefreshPlan,
        hidden: Tensor, unguided: dict[int, Tensor],
    ) -> Read:  # fmt: skip
        """Commits that the host makes, and log-probabilities of those in `blocks`, by item number."""
        found: Read = {}
        for number, (item, canvas, block) in enumerate(zip(items, canvases, blocks, strict=True)):
            positions = canvas.open_positions(item.block_start, item.block_stop)
            if not len(positions) or not self._is_read(canvas):
                continue
            if not self._host.has(canvas):
                after = block[positions - item.block_start]
                positions, tokens = positions[after >= 0], after[after >= 0]
            logits = self._sampler.logits(hidden, self._rows(plan, number, positions))
            if number in unguided:
                logits = guided(logits, unguided[number], canvas.sampling.cfg_scale)
            if self._host.has(canvas):
                found[number] = self._host.commit(canvas, positions, logits)
            else:
                there = torch.from_numpy(tokens.copy()).to(logits.device)
                found[number] = Ran(logprobs=logprobs_of(logits, there, canvas.sampling.logprobs))
        return found
