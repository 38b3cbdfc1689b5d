"""Snapshots of a canvas: what is recorded of commits, and views of a canvas that reopens or changes length."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from shoal.runtime.request.canvas import Canvas
from shoal.runtime.request.denoising import Denoising
from shoal.runtime.request.forward import Marks
from shoal.runtime.request.sampling_params import SamplingParams
from shoal.runtime.request.snapshot import CanvasChange, CanvasSnapshot, CanvasView
from shoal.runtime.request.spec import RequestSpec

SPEC = RequestSpec(
    rid="r", prompt=np.arange(3), sampling=SamplingParams(max_new_tokens=6), cache_mode="dual", cache_salt="",
    block_length=4, seed=1, stop_ids=frozenset(), stream_mode="denoise",
)  # fmt: skip


def commit(canvas: Canvas, denoising: Denoising, at: list[int], before: int) -> None:
    assert canvas.commit(at, [10 + position for position in at])
    denoising.commit(at, Marks([position / 10 for position in at], [1] * len(at)), before)


def shown(view: CanvasView, denoising: Denoising, step: int) -> CanvasSnapshot:
    change = denoising.take(step)
    view.apply(change, [f"<{token}>" for token in change.tokens])
    return view.snapshot()


def test_changes_add_up_to_the_canvas():
    canvas = Canvas(SPEC)
    denoising, view = Denoising(canvas), CanvasView()
    assert shown(view, denoising, 0).tokens == (-1,) * 6
    commit(canvas, denoising, [2], 0)
    first = denoising.take(1)
    assert (first.positions, first.whole, first.blocks) == ([2], False, [])
    view.apply(first, ["<12>"])
    commit(canvas, denoising, [0, 3], 1)
    now = shown(view, denoising, 2)
    assert now == CanvasSnapshot(
        (10, -1, 12, 13, -1, -1), ("<10>", "", "<12>", "<13>", "", ""), (0.0, None, 0.2, 0.3, None, None),
        (2, 0, 1, 2, 0, 0), (4, 6), 0, 2,
    )  # fmt: skip
    assert denoising.take(2).positions == []


def test_a_preempted_block_is_masks_again():
    canvas = Canvas(SPEC)
    denoising, view = Denoising(canvas), CanvasView()
    commit(canvas, denoising, [0, 2], 0)
    assert shown(view, denoising, 1).tokens == (10, -1, 12, -1, -1, -1)
    canvas.preempt()
    commit(canvas, denoising, [0, 1], 1)  # as many tokens as before, elsewhere
    now = shown(view, denoising, 2)
    assert (now.tokens, now.steps) == ((10, 11, -1, -1, -1, -1), (2, 2, 0, 0, 0, 0))


def test_fixed_tokens_of_a_template_belong_to_no_step():
    canvas = Canvas(replace(SPEC, template=np.array([7, -1, -1, 8, -1, -1])))
    now = shown(CanvasView(), Denoising(canvas), 0)
    assert (now.tokens, now.steps, set(now.confidences)) == ((7, -1, -1, 8, -1, -1), (0,) * 6, {None})


def test_a_view_follows_a_canvas_that_grows_and_shrinks():
    view = CanvasView()
    view.apply(CanvasChange(2, 0, 1, [1], [5], [0.5], [1], True, [2], []), ["a"])
    view.apply(CanvasChange(5, 1, 2, [4], [6], [None], [2], False, [2, 5], []), ["b"])
    grown = view.snapshot()
    assert (grown.tokens, grown.texts, grown.blocks) == ((-1, 5, -1, -1, 6), ("", "a", "", "", "b"), (2, 5))
    view.apply(CanvasChange(3, 1, 3, [], [], [], [], False, [2, 3], []), [])
    assert (view.snapshot().tokens, view.snapshot().blocks) == ((-1, 5, -1), (2, 3))
