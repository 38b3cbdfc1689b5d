"""Masked rows, their confidences with draws, and commits: each Triton kernel against its reference; Philox."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch
import triton
import triton.language as tl

from shoal.kernels.attention.batch import AttentionBatch
from shoal.kernels.sampling.block_confidence import block_confidence
from shoal.kernels.sampling.canvas_state import NOT_FINITE, CanvasState, acceptance_bounds
from shoal.kernels.sampling.commit import commit
from shoal.kernels.sampling.commit_triton import commit_triton
from shoal.kernels.sampling.confidence import Confidence
from shoal.kernels.sampling.confidence_triton import block_confidence_triton
from shoal.kernels.sampling.masked_rows import MaskedRows, masked_rows
from shoal.kernels.sampling.masked_rows_triton import masked_rows_triton
from shoal.kernels.sampling.philox import RANDOM_STREAM, gumbel_reference, philox_reference, uniform_reference
from shoal.kernels.sampling.philox import gumbel_of_words as gumbel_of_words_reference
from shoal.kernels.sampling.philox_triton import gumbel, gumbel_of_words, uniform
from shoal.kernels.sampling.shaping import Shaping
from shoal.kernels.sampling.strategies import STRATEGIES

from .checks import DEVICE, DTYPES, close, fresh

pytestmark = pytest.mark.usefixtures("poisoned")


def world(requests: int, width: int, block: int, length: int = 90) -> tuple[CanvasState, AttentionBatch, torch.Tensor]:
    """Random canvases; request 0 has a mask, 1 is padding, 2 has stopped, 3 has no masks; the last block is short."""
    slots = torch.randperm(requests + 2)[:requests].tolist()
    state = CanvasState.empty(requests + 2, length, width, 2, "cpu", 500)
    state.tokens[:] = torch.randint(0, 500, state.tokens.shape)
    state.masked[:] = torch.rand(state.masked.shape) < 0.6
    starts = torch.randint(1, length - block, (requests + 2,))
    state.masked[slots[0], starts[slots[0]]] = 1
    state.block_starts[:], state.block_stops[:] = starts, starts + block
    state.block_stops[slots[-1]] -= block // 2
    state.block_step[:], state.nfe[:] = torch.randint(0, 5, (2, requests + 2))
    state.seeds[:] = torch.randint(0, 2**62, (requests + 2,))
    state.stop_ids[:, 0] = torch.randint(0, 500, (requests + 2,))
    state.bounds[:] = acceptance_bounds(0.5, None, width)
    keys = [length] * requests
    if requests > 4:
        keys[1] = 0
        state.stopped[slots[2]] = 1
        state.masked[slots[3]] = 0
    first = starts[slots] - 1
    tables = torch.zeros((requests + 2, 1, 1), dtype=torch.int32)
    batch = AttentionBatch.build(tables.to(DEVICE), slots, [block + 1] * requests, keys)
    there = CanvasState(**{field.name: getattr(state, field.name).to(DEVICE) for field in fields(state)})
    return there, batch, first.to(DEVICE, torch.int32)


def same(found: object, expected: object) -> None:
    for field in fields(CanvasState):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        if field.name == "confidences":
            close(a, b)
        else:
            assert torch.equal(a, b), field.name


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize(
    ("requests", "width", "block"), [(1, 32, 32), (7, 32, 32), (6, 24, 20), (5, 3, 3), (40, 512, 300)]
)
def test_masked_rows(requests, width, block, shift):
    """40 blocks of up to 512 positions take more than one turn."""
    state, batch, first = world(requests, width, block, 400)
    for capacity in (requests * block, 3):
        found = masked_rows_triton(state, batch, first, capacity, shift)
        expected = masked_rows.reference(state, batch, first, capacity, shift)
        for name, a, b in zip(MaskedRows._fields, found, expected, strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b), name
    whole = masked_rows_triton(state, batch, first, requests * block, shift)
    slot, at = int(batch.slots[0]), int(whole.positions[0])
    assert int(state.masked[slot, at]) == 1
    assert int(whole.rows[0]) == at - int(first[0]) - shift
    if requests > 4:
        assert (whole.places[1:4] == -1).all()


def scores(rows: int, kind: str) -> Confidence:
    columns = [torch.rand(rows, device=DEVICE) for _ in range(3)]
    if kind == "ties":
        columns = [(column * 4).round() / 4 for column in columns]
    return Confidence(torch.randint(0, 500, (rows,), device=DEVICE), *columns)


def test_a_narrower_width_finds_the_same_rows():
    state, batch, first = world(6, 256, 20)
    wide, narrow = (masked_rows_triton(state, batch, first, 120, width=width) for width in (None, 24))
    for a, b in zip(narrow, masked_rows.reference(state, batch, first, 120, width=24), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(narrow.places, wide.places[:, :24])
    assert torch.equal(narrow.rows, wide.rows)


@pytest.mark.parametrize("kind", ["apart", "ties"])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("mode", ["quota", "threshold", "factor", "none pass", "drawn", "origin"])
def test_commits_are_the_references(mode, strategy, kind):
    shapes = [(7, 32, 32), (6, 24, 20)] + [(5, 512, 300)] * (strategy == "margin" or mode == "drawn")
    for requests, width, block in shapes:
        state, batch, first = world(requests, width, block, 400 if width > 100 else 90)
        state.last_ids[::2, 0] = torch.randint(0, 500, state.last_ids[::2, 0].shape)
        state.shaping[::3, Shaping._fields.index("has_rules")] = 1
        state.strategies[:] = STRATEGIES.index(strategy)
        if mode == "quota":
            state.quotas[:] = torch.randint(1, 12, state.quotas.shape)
        elif mode == "factor":
            state.bounds[:] = acceptance_bounds(None, 0.9, width)
            state.takes_last[:] = 1
        elif mode == "none pass":
            state.bounds[:] = 2.0
        elif mode == "drawn":
            state.quotas[:] = 5
            state.mask_temperatures[:] = torch.tensor([0.0, 0.4, 1e-35, 2.0])[torch.arange(requests + 2) % 4]
        elif mode == "origin":
            state.quotas[:] = 3
            state.origin_steps[:] = torch.randint(0, 6, state.origin_steps.shape)
            state.origin_ends[:] = 1e-3
        masked = masked_rows_triton(state, batch, first, requests * block - 25)
        confidence = scores(len(masked.rows), kind)
        expected = state.clone()
        commit.reference(expected, batch, masked, confidence, 500)
        before = state.clone()
        commit_triton(state, batch, masked, confidence, 500)
        same(state, expected)
        changed = (before.masked != state.masked).sum(1)
        ran = state.nfe - before.nfe
        assert mode == "origin" or ((changed > 0) == (ran == 1)).all()
        assert ran[batch.slots[[1, 2, 3]].long()].sum() == 0
        if mode == "none pass":
            assert changed.max() == 1
        assert (state.counts.sum(1) == changed * (torch.arange(requests + 2, device=DEVICE) % 3 == 0)).all()


@pytest.mark.parametrize(("probabilities", "by_factor", "by_bounds"), [
    ([0.6, 0.3], [0, 1], [0]), ([0.3], [0], [0]), ([0.99, 0.2, 0.95], [0, 1, 2], [0, 2]), ([0.99, 0.2, 0.1], [0], [0]),
    ([0.1, 0.2, 0.3], [2], [2]),
])  # fmt: skip
def test_a_factor_leaves_no_mask_alone(probabilities, by_factor, by_bounds):
    state, batch, first = world(1, 4, 4)
    slot, size = int(batch.slots[0]), len(probabilities)
    start = int(state.block_starts[slot])
    state.block_stops[slot] = start + 4
    state.masked[slot, start : start + 4] = torch.tensor([1] * size + [0] * (4 - size), dtype=torch.uint8)
    state.bounds[slot] = acceptance_bounds(None, 1.0, 4)
    masked = masked_rows_triton(state, batch, first, 4)
    column = torch.tensor(probabilities + [0.0] * (4 - size), device=DEVICE)
    confidence = Confidence(torch.full((4,), 5, device=DEVICE), column, column, column)
    for takes_last, expected in ((1, by_factor), (0, by_bounds)):
        state.takes_last[slot] = takes_last
        for function in (commit_triton, commit.reference):
            there = state.clone()
            function(there, batch, masked, confidence, 500)
            assert torch.nonzero(there.masked[slot, start : start + size] == 0)[:, 0].tolist() == expected


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("bad", ["nan", "inf", "all impossible"])
def test_logits_that_are_not_finite_commit_nothing_and_are_reported(bad, strategy):
    """One logit of one mask is enough; the other requests of the batch commit what they would have."""
    state, batch, first = world(6, 4, 4)
    state.strategies[:] = STRATEGIES.index(strategy)
    state.temperatures[:] = 0.7
    victim, other = int(batch.slots[4]), int(batch.slots[5])
    for slot in (victim, other):
        state.masked[slot, int(state.block_starts[slot])] = 1
    masked = masked_rows_triton(state, batch, first, 24)
    logits = fresh(24, 300)
    row = torch.nonzero(masked.slots == victim)[-1, 0]
    columns = slice(None) if bad == "all impossible" else 123
    logits[row, columns] = {"nan": torch.nan, "inf": torch.inf}.get(bad, -torch.inf)
    clean = state.clone()
    commit.reference(clean, batch, masked, block_confidence.reference(fresh(24, 300), state, masked), 300)
    for draw in (False, True):
        there, expected = state.clone(), state.clone()
        commit_triton(there, batch, masked, block_confidence_triton(logits, state, masked, draw=draw), 300)
        commit.reference(expected, batch, masked, block_confidence.reference(logits, state, masked, draw=draw), 300)
        same(there, expected)
        assert int(there.stopped[victim]) == NOT_FINITE
        assert int(there.nfe[victim]) == ~(int(state.nfe[victim]) + 1)
        assert torch.equal(there.masked[victim], state.masked[victim])
        assert torch.equal(there.tokens[victim], state.tokens[victim])
        assert int(there.nfe[other]) == int(clean.nfe[other]) == int(state.nfe[other]) + 1
        assert (there.stopped != NOT_FINITE).sum() == len(there.stopped) - 1
        left = masked_rows_triton(there, batch, first, 24)
        assert victim not in left.slots.tolist()


def test_a_stop_token_counts_once_all_before_it_are_committed():
    state, batch, first = world(1, 4, 4)
    slot = int(batch.slots[0])
    start = int(state.block_starts[slot])
    state.block_stops[slot] = start + 4
    state.masked[slot, start : start + 4] = 1
    state.stop_ids[slot] = torch.tensor([-1, 77], device=DEVICE)
    stopped = []
    for probabilities in ([0.1, 0.9, 0.1, 0.1], [0.1, 0.1, 0.1, 0.9], [0.9, 0.1, 0.1, 0.1]):
        masked = masked_rows_triton(state, batch, first, 4)
        probability = torch.tensor(probabilities, device=DEVICE)[masked.positions.clamp(min=start).long() - start]
        commit_triton(
            state, batch, masked, Confidence(torch.full((4,), 77, device=DEVICE), *[probability.clone()] * 3), 500
        )
        stopped.append(int(state.stopped[slot]))
    assert stopped == [0, 0, 1]
    assert int(masked_rows_triton(state, batch, first, 4).total) == 0


@triton.jit
def _draw_kernel(uniform_ptr, gumbel_ptr, seed, first, position, step, LANES: tl.constexpr):
    lanes = tl.arange(0, LANES)
    tl.store(uniform_ptr + lanes, uniform(seed, lanes, step, 1))
    at = lanes[:, None] * 8 + tl.arange(0, 8)[None, :]
    tl.store(gumbel_ptr + at, gumbel(seed, first, position, step, LANES))


def test_draws_are_the_references():
    assert RANDOM_STREAM == 1
    for seed, position, step in ((0, 0, 0), (2**62 - 12345, 4511, 77), (2**33 + 5, 3, 2)):
        flat, noise = torch.empty(64, device=DEVICE), torch.empty(512, device=DEVICE)
        _draw_kernel[(1,)](flat, noise, seed, 512, position, step, LANES=64)
        assert torch.equal(flat.cpu(), uniform_reference(seed, torch.arange(64), step, RANDOM_STREAM))
        close(noise, gumbel_reference(seed, 1024, position, step)[512:])


@triton.jit
def _gumbel_kernel(high_ptr, low_ptr, noise_ptr, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    high, low = (tl.load(high_ptr + at).to(tl.uint32), tl.load(low_ptr + at).to(tl.uint32))
    tl.store(noise_ptr + at, gumbel_of_words(high, low))


def test_large_and_small_noises_are_the_references():
    """Words of every size, from both ends; the reference's distribution is tested by itself."""
    count = 1 << 14
    words = torch.randint(0, 1 << 32, (2, count)) >> torch.randint(0, 33, (2, count))
    words[0, count // 2 :] = 0xFFFFFFFF - words[0, count // 2 :]
    words[:, :2] = torch.tensor([0, 0xFFFFFFFF])
    noise = torch.empty(count, device=DEVICE)
    _gumbel_kernel[(1,)](*words.to(DEVICE), noise, COUNT=count)
    close(noise, gumbel_of_words_reference(*words))
    assert float(noise.max()) > 40


def test_a_word_has_the_next_of_its_counter_as_its_low_half():
    """Only small words show it. This one was found by trying 16 million counters."""
    noise = torch.empty(64, device=DEVICE)
    column = 12725972 * 4 + 2
    _draw_kernel[(1,)](torch.empty(8, device=DEVICE), noise, 0, column // 8 * 8, 7, 0, LANES=8)
    counter, zero = torch.tensor([column // 4]), torch.zeros(1, dtype=torch.int64)
    words = [int(word) for word in philox_reference(0, counter, zero + 7, zero, zero)]
    assert words == [1625191688, 2891003240, 141, 3165728499]
    close(noise[column % 8], torch.tensor(-math.log((141 + 3165728499 / 2**32) / 2**32)))


def test_tokens_far_behind_the_best_are_drawn_as_often_as_the_softmax_says():
    """20 draws of 126,464 tokens, one of them 12 above the rest: 0.437 of them are others."""
    draws, vocabulary, best = 20, 126_464, 77_777
    state = CanvasState.empty(1, draws, draws, 1, DEVICE)
    state.temperatures[0] = 1
    positions = torch.arange(draws, dtype=torch.int32, device=DEVICE)
    masked = MaskedRows(positions.long(), positions * 0, positions, positions[None], positions[:1] + draws)
    logits = torch.zeros(1, vocabulary, device=DEVICE)
    logits[0, best] = 12
    logits = logits.repeat(draws, 1)
    found = block_confidence_triton(logits, state, masked, splits=1, lanes=16384 if DEVICE.type == "cpu" else 256)
    assert torch.equal(found.token, block_confidence.reference(logits, state, masked).token)
    assert 2 <= int((found.token != best).sum()) <= 16  # binomial, all but 4 in 10,000


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("splits", [1, 2])
def test_draws_and_confidences_of_masked_rows(splits, dtype):
    state, batch, first = world(5, 8, 8)
    state.temperatures[:] = torch.tensor([0.0, 1.0, 0.7, 0.0, 1.3, 1.0, 2.0])
    state.masked[batch.slots[4].long()] = 1
    masked = masked_rows_triton(state, batch, first, 30)
    rows = int(masked.total)
    assert 0 < rows < 30
    logits = fresh(30, 5003, dtype=dtype)
    logits[:, 4000] = 50.0
    for draw in (False, True):
        found = block_confidence_triton(logits, state, masked, impossible_token=4000, draw=draw, splits=splits)
        expected = block_confidence.reference(logits, state, masked, impossible_token=4000, draw=draw)
        lowest = logits.index_fill(1, torch.tensor([4000], device=DEVICE), -torch.inf).float()
        lowest = lowest.eq(lowest.max(1, keepdim=True).values).to(torch.int8).argmax(1)
        drawn = (state.temperatures[masked.slots.long().clamp(min=0)] > 0) & draw
        tokens = torch.where(drawn, expected.token, lowest)  # in bf16 the best logit is often there twice
        assert torch.equal(found.token[:rows], tokens[:rows])
        for a, b in zip(found[1:], expected[1:], strict=True):
            close(a[:rows], b[:rows])
    row = slice(rows - 1, rows)
    own = (x[row].contiguous() for x in (masked.rows, masked.slots, masked.positions))
    alone = MaskedRows(next(own), next(own), next(own), masked.places, torch.ones_like(masked.total))
    again = block_confidence_triton(logits[row], state, alone, impossible_token=4000, splits=splits)
    assert torch.equal(again.token, found.token[row])
