"""Rules and cuts of a block step's logits, and draws from what they leave: Triton against the references."""

from __future__ import annotations

import math

import pytest
import torch

from shoal.kernels.sampling.block_confidence import block_confidence
from shoal.kernels.sampling.canvas_state import CanvasState
from shoal.kernels.sampling.confidence_triton import block_confidence_triton
from shoal.kernels.sampling.cutoffs import cutoffs
from shoal.kernels.sampling.cutoffs_triton import cutoffs_triton
from shoal.kernels.sampling.masked_rows import MaskedRows
from shoal.kernels.sampling.shaping import ENDS_TEXT, IN_PROMPT, Shaping

from .checks import DEVICE, DTYPES, close, fresh

pytestmark = pytest.mark.usefixtures("poisoned")

SHAPINGS = [
    Shaping(),
    Shaping(top_k=5),
    Shaping(temperature=0.7, top_p=0.6),
    Shaping(temperature=1.4, log_min_p=math.log(0.2), ranks_sampled=1),
    Shaping(temperature=0.6, top_k=40, top_p=0.9, log_min_p=math.log(0.01), ranks_sampled=1),
    Shaping(temperature=1e-30, ranks_sampled=1),
    Shaping(top_p=0.0, ranks_sampled=1),
    Shaping(top_k=100_000, top_p=0.99, ranks_sampled=1),
    Shaping(has_rules=1, repetition=1.3, presence=0.5, frequency=0.25, no_end_before=12),
    Shaping(temperature=0.8, top_k=7, top_p=0.8, ranks_sampled=1, has_rules=1, repetition=0.7, no_end_before=2),
]


def world(vocabulary: int) -> tuple[CanvasState, MaskedRows]:
    """Two rows a slot, at positions 10 and 11 to 20; a slot for each shaping, half of which draw."""
    slots = len(SHAPINGS)
    state = CanvasState.empty(slots, 64, 8, 2, DEVICE, vocabulary)
    state.shaping[:] = torch.tensor(SHAPINGS, device=DEVICE)
    state.temperatures[::2] = 0.9
    state.seeds[:] = torch.randint(0, 2**62, (slots,)).to(DEVICE)
    counts = torch.randint(0, 4, (slots, vocabulary)) * (torch.rand(slots, vocabulary) < 0.1)
    counts += IN_PROMPT * (torch.rand(slots, vocabulary) < 0.1) + ENDS_TEXT * (torch.rand(slots, vocabulary) < 0.01)
    state.counts[:] = counts.to(DEVICE)
    state.biases[:] = (torch.randn(slots, vocabulary) * (torch.rand(slots, vocabulary) < 0.1)).to(DEVICE)
    at = torch.arange(2 * slots, dtype=torch.int32, device=DEVICE)
    return state, MaskedRows(at.long(), at // 2, at + 10, at[None], at[:1] * 0 + 2 * slots - 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("vocabulary", "equals"), [(300, False), (300, True), (9001, False)])
def test_cutoffs_and_what_is_left_to_draw(vocabulary, equals, dtype):
    state, masked = world(vocabulary)
    rows = int(masked.total)
    logits = fresh(rows + 1, vocabulary) * 2
    logits = ((logits * 4).round() / 4 if equals else logits).to(dtype)
    logits[:, 123] = 60.0
    tile = 16384 if DEVICE.type == "cpu" else 4096
    found = cutoffs_triton(logits, state, masked, impossible_token=123, tile=tile)
    expected = cutoffs.reference(logits, state, masked, impossible_token=123)
    close(found.largest[:rows], expected.largest[:rows])
    plain = [row for row in range(rows) if not SHAPINGS[row // 2].has_rules]
    x = logits.float().index_fill(1, torch.tensor([123], device=DEVICE), -torch.inf)
    for row in plain:  # a sum that ends at top_p to the last bit may go either way
        left, right = (int((x[row] >= least[row]).sum()) for least in (found.least, expected.least))
        assert abs(left - right) <= (2 if vocabulary > 1000 else 0), (row, left, right)
    best = block_confidence_triton(logits, state, masked, impossible_token=123, cut=found)
    wanted = block_confidence.reference(logits, state, masked, impossible_token=123, cut=found)
    same = best.token[:rows] == wanted.token[:rows]
    logit, other = (x[:rows].gather(1, found.token[:rows, None])[:, 0] for found in (best, wanted))
    assert (same | (logit == other)).float().mean() >= (1 if dtype == torch.float32 else 0.9)  # of equals either
    for a, b in zip(best[1:], wanted[1:], strict=True):
        close(a[:rows][same], b[:rows][same], dtype)


def test_logits_that_are_not_finite_are_seen_in_whatever_they_are_shaped_to():
    state, masked = world(300)
    rows = int(masked.total)
    for bad in (torch.nan, torch.inf, -torch.inf):
        logits = fresh(rows + 1, 300)
        logits[:, slice(None) if bad == -torch.inf else 77] = bad
        cut = cutoffs_triton(logits, state, masked)
        for draw in (False, True):
            found = block_confidence_triton(logits, state, masked, cut=cut, draw=draw)
            assert not found.probability[:rows].isfinite().any()


def test_a_shaping_that_changes_nothing_gives_the_plain_draws():
    state, masked = world(3000)
    state.shaping[:] = torch.tensor(Shaping(), device=DEVICE)
    logits = fresh(len(masked.rows), 3000)
    rows = int(masked.total)
    plain = block_confidence_triton(logits, state, masked)
    shaped = block_confidence_triton(logits, state, masked, cut=cutoffs_triton(logits, state, masked))
    for a, b in zip(plain, shaped, strict=True):
        assert torch.equal(a[:rows], b[:rows])
