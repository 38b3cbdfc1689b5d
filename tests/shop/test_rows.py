"""Training rows: lengths, what is masked and weighted, pairs about one list, batches as functions of seed and step."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from shoal.shop import rows, vocabulary
from shoal.shop.rows import (
    LENGTHS,
    REUSE_DEPTH,
    REUSE_START,
    Mix,
    Row,
    Stage,
    Steps,
    make_pair,
    make_plain_row,
    make_row,
)  # fmt: skip
from shoal.shop.task import make_list

NAMES = vocabulary.tokens()
MASK, EOS, SYSTEM, USER, ASSISTANT, END = (
    vocabulary.ids()[f"<|{name}|>"] for name in ("mask", "eos", "system", "user", "assistant", "end")
)
STEPS = (0, 700, 1499, 1500, 2400, 3499, 3500, 6000, 9500, 33_999)


def answer_positions(row: Row) -> np.ndarray:
    """True from behind an assistant header to the next user header: an answer, its EOS and any padding."""
    inside, out = False, np.zeros(len(row.clean), bool)
    for position, token in enumerate(row.clean):
        if token == USER:
            inside = False
        out[position] = inside
        if token == ASSISTANT:
            inside = True
    return out


def check(row: Row, length: int) -> None:
    assert all(len(array) == length for array in (row.clean, row.masked, row.weight, row.reuse))
    assert [a.dtype for a in (row.clean, row.masked, row.weight, row.reuse)] == [
        np.int64, np.int64, np.float32, np.int64,
    ]  # fmt: skip
    assert MASK not in row.clean
    hidden = row.masked == MASK
    assert np.array_equal(row.masked[~hidden], row.clean[~hidden])
    assert not (hidden & ~answer_positions(row)).any()
    assert (row.weight[~hidden] == 0).all()
    assert (row.weight[hidden] > 0).all()
    assert row.clean[0] == SYSTEM


@pytest.mark.parametrize("step", STEPS)
def test_rows_are_as_long_as_asked_and_mask_answers_only(step):
    rng, stage = random.Random(f"rows-{step}"), Stage.at(step)
    masked = 0
    for length, weight in zip(LENGTHS, stage.length_weights, strict=True):
        for _ in range(20 if weight else 0):
            row = make_row(rng, length, stage)
            check(row, length)
            assert not row.reuse.any()
            masked += (row.masked == MASK).sum()
    assert masked


def test_recitals_come_first_and_mask_digits_only():
    rng, stage = random.Random("recital"), Stage.at(0)
    assert stage.pure
    for _ in range(30):
        row = make_row(rng, LENGTHS[0], stage)
        text = "".join(NAMES[i] for i in row.clean)
        assert "List all things.<|end|><|assistant|>\n" in text
        listed, recited = text.split("<|end|><|user|>")
        for line in recited.split("<|assistant|>")[1].split("<|eos|>")[0].split("\n")[1:]:
            assert f"\n{line}" in listed
        hidden = {NAMES[i].strip() for i in row.clean[row.masked == MASK]}
        assert hidden
        assert hidden <= set("0123456789")


def test_serving_rows_look_like_a_block_decoder_at_work():
    """Earlier turns stand whole; the canvas is filled, then one block in part, then only masks; or masked at random."""
    stage = Stage((0.0, 0.0, 1.0), 70, 1.0, 0.0)
    rng = random.Random("serving")
    blocks = 0
    for _ in range(60):
        row = make_row(rng, 640, stage)
        check(row, 640)
        (headers,) = np.nonzero(row.clean == ASSISTANT)
        canvas = slice(int(headers[-1]) + 1, None)
        assert (row.masked[: canvas.start] == row.clean[: canvas.start]).all()
        hidden = row.masked[canvas] == MASK
        assert hidden.any()
        (visible,) = np.nonzero(~hidden)
        blocks += len(visible) == 0 or visible[-1] < len(hidden) - 8
        end = int(np.nonzero(row.clean[canvas] == EOS)[0][0])
        assert (row.clean[canvas][end:] == EOS).all()
        assert set(row.weight[canvas][: end + 1]) <= {np.float32(0), np.float32(1)}
        assert set(row.weight[canvas][end + 1 :]) <= {np.float32(0), np.float32(0.1)}
    assert blocks >= 25


def prefix_length(row: Row) -> int:
    return int(np.nonzero(row.clean == END)[0][0]) + 1


@pytest.mark.parametrize("length", LENGTHS)
def test_pairs_share_a_list_that_the_second_row_may_reuse(length):
    rng, stage = random.Random(f"pairs-{length}"), Stage.at(REUSE_START)
    reused = 0
    for _ in range(40):
        first, second = make_pair(rng, length, stage)
        check(first, length)
        check(second, length)
        shared = prefix_length(first)
        assert prefix_length(second) == shared
        assert np.array_equal(first.clean[:shared], second.clean[:shared])
        assert not first.reuse.any()
        (headers,) = np.nonzero(first.clean == ASSISTANT)
        assert (first.masked[headers[-1] + 1 :] == MASK).all()
        if second.reuse.any():
            reused += 1
            assert (second.reuse[:shared] == REUSE_DEPTH).all()
            assert (second.reuse[shared:] == 0).all()
    assert 20 <= reused < 40


@pytest.mark.parametrize("step", [0, 5000, REUSE_START - 1, REUSE_START, REUSE_START + 7])
def test_a_batch_depends_on_seed_and_step_alone(step):
    one = Steps(1, 50_000, 4096)
    for other in (2, 10, step - 1):
        one[max(0, other)]
    batch = one[step]
    again = Steps(1, 99_999, 4096)[step]
    assert len(batch) == (4 if step >= REUSE_START else 3)
    assert all(torch.equal(x, y) for x, y in zip(batch, again, strict=True))
    length = batch[0].shape[1]
    assert length in LENGTHS
    assert all(x.shape == (4096 // length, length) for x in batch)
    assert [x.dtype for x in batch] == [torch.int64, torch.int64, torch.float32, torch.int64][: len(batch)]
    for changed in (Steps(2, 50_000, 4096)[step], one[step + 1]):
        assert changed[0].shape != batch[0].shape or not torch.equal(changed[0], batch[0])


def test_rows_of_the_last_part_come_in_pairs():
    clean, masked, _, reuse = Steps(1, 50_000, 8192)[REUSE_START]
    assert not reuse[0::2].any()
    assert reuse[1::2].any()
    for first, second in zip(clean[0::2], clean[1::2], strict=True):
        end = int((first == END).nonzero()[0])
        assert torch.equal(first[: end + 1], second[: end + 1])
    assert (masked == MASK).any(dim=1).all()


def test_training_never_sees_a_held_out_list(monkeypatch):
    seen = []

    def spy(*args, **options):
        seen.append(make_list(*args, **options))
        return seen[-1]

    monkeypatch.setattr(rows, "make_list", spy)
    for step in (0, 2000, 9000, REUSE_START):
        Steps(1, 50_000, 8192)[step]
    assert len(seen) > 50
    assert not any(prices.held_out for prices in seen)


def test_stages_grow_to_the_longest_lists():
    sizes = [Stage.at(step).max_items for step in range(1500, 9600, 100)]
    assert sizes == sorted(sizes)
    assert sizes[-1] == 70
    for step in STEPS:
        assert sum(Stage.at(step).length_weights) == pytest.approx(1.0)
    assert Stage.at(9500) == Stage.at(60_000)


@pytest.mark.parametrize("length", LENGTHS)
def test_plain_rows_have_no_canvas_and_masks_anywhere(length):
    rng, stage = random.Random(f"plain-{length}"), Stage.at(9000)
    in_list = cut_in_list = 0
    for _ in range(60):
        row = make_plain_row(rng, length, stage)
        hidden = row.masked == MASK
        assert len(row.clean) == len(row.masked) == length
        assert np.array_equal(row.masked[~hidden], row.clean[~hidden])
        assert (row.weight[hidden] == np.float32(0.05)).all()
        assert not row.weight[~hidden].any()
        assert MASK not in row.clean
        assert not any((row.clean[1:] == EOS) & (row.clean[:-1] == EOS))  # a canvas would be filled up with EOS
        in_list += (hidden & ~answer_positions(row)).any()
        cut_in_list += END not in row.clean
    assert in_list > 50
    assert (10 < cut_in_list < 50) == (length < 640)


def test_a_mix_decides_which_rows_come_when():
    mix = Mix("other", reuse_start=5000, reuse_depth=3, plain_start=4000, plain_share=0.5)
    before, plain, pairs = (Steps(1, 6000, 8192, mix)[step] for step in (3999, 4500, 5000))

    def masks_outside_answers(batch) -> int:
        clean, masked = batch[0].numpy(), batch[1].numpy()
        zeros = np.zeros(clean.shape[1])
        rows_ = [Row(c, m, zeros, zeros) for c, m in zip(clean, masked, strict=True)]
        return sum(bool(((r.masked == MASK) & ~answer_positions(r)).any()) for r in rows_)

    assert masks_outside_answers(before) == 0
    assert 0.2 < masks_outside_answers(plain) / len(plain[0]) < 0.8
    assert set(pairs[3].unique().tolist()) == {0, 3}
    assert len(plain) == 3
    assert not torch.equal(Steps(1, 6000, 8192)[3999][0], before[0])  # the name is part of the seed
