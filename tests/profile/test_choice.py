"""The choice: limits, the worst kind, monotone depths, cost of refreshes, ties."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shoal.profile.choice import Cell, Limits, Tally, choose, cost, has_answers, make_cells, noise_of
from shoal.profile.verdicts import verdicts


def row(same=True, right=True, kind="a", ratio=0.5, edits=0, refreshes=1, nfe=4):
    return {"ratio": ratio, "kind": kind, "same": same, "edits": edits, "length": 10, "right": right,
            "right_none": True, "nfe": nfe, "refreshes": refreshes}  # fmt: skip


def cell(
    ratio, depth, agreement=1.0, interval=0, refreshes=1.0, cosine=1.0, capture="first", drop=0.0, changed=0
) -> Cell:
    tally = Tally(100, round(100 * agreement), 1.0, round(100 * (1 - drop)), 100, changed, 8.0, refreshes)
    return Cell(capture, ratio, depth, interval, ratio, tally, {"a": tally}, cosine, 0.1)


AGREE = Limits(min_agreement=0.99)


def test_tally_counts():
    tally = Tally.of([row(), row(same=False, right=False, edits=4), row(right=True), row()])
    assert (tally.agreement, tally.accuracy, tally.drop, tally.changed) == (0.75, 0.75, 0.25, 1)
    assert tally.token_agreement == 0.9
    unknown = Tally.of([{**row(), "right": None, "right_none": None}])
    assert (unknown.accuracy, unknown.drop, unknown.changed) == (None, None, 0)
    both = Tally.sum([tally, Tally.of([row(nfe=9)])])
    assert (both.rows, both.same, both.right, both.changed, both.nfe) == (5, 4, 4, 1, 5.0)
    assert Tally.sum([tally, unknown]).right is None


def test_cells_from_units_take_the_worst_layer_below_the_depth_and_the_worst_kind():
    def layer(c, worst):
        return {"cosine_k": c, "cosine_v": 1.0, "error_k": 0, "error_v": 0, "worst": worst}

    unit = {
        "ratio": 0.5,
        "drift": {"first": [[layer(0.99, 0.1), layer(0.8, 0.7)]]},
        "cells": [
            {"capture": "first", "depth": 1, "interval": 0, "rows": [row(), row(kind="b", same=False, ratio=0.44)]},
            {"capture": "first", "depth": 2, "interval": 0, "rows": [row(), row(kind="b")]},
        ],
    }
    shallow, deep = make_cells([unit])
    assert (shallow.cosine, shallow.worst_error) == (0.99, 0.1)
    assert (deep.cosine, deep.worst_error) == (0.8, 0.7)
    assert (shallow.all.agreement, shallow.worst_agreement) == (0.5, 0.0)
    assert shallow.lowest_ratio == 0.44
    assert has_answers([shallow, deep])


def test_the_deepest_that_keeps_the_limit_with_all_shallower_ones():
    cells = [cell(0.5, 4), cell(0.5, 8), cell(0.5, 12, 0.9), cell(0.5, 16)]
    assert [(c.ratio, c.depth) for c in choose(cells, AGREE, 16)] == [(0.5, 8)]


def test_a_ratio_gets_no_more_than_the_larger_ones_bear():
    cells = [cell(0.3, 4), cell(0.3, 8), cell(0.6, 4), cell(0.6, 8, 0.5), cell(0.9, 4), cell(0.9, 8)]
    assert [(c.ratio, c.depth) for c in choose(cells, AGREE, 16)] == [(0.3, 4), (0.6, 4), (0.9, 8)]
    none_at_the_top = [*cells[:4], cell(0.9, 4, 0.5), cell(0.9, 8, 0.5)]
    assert choose(none_at_the_top, AGREE, 16) == []


def test_refreshes_cost_what_they_recompute():
    once, often = cell(0.5, 8), cell(0.5, 12, interval=8, refreshes=3.0)
    assert (cost(once, 16), cost(often, 16)) == (8.0, 12.0)
    cells = [cell(0.5, 4, interval=8), cell(0.5, 8, interval=8), often, cell(0.5, 4), once, cell(0.5, 12, 0.5)]
    assert choose(cells, AGREE, 16)[0] == once
    rare = cell(0.5, 12, interval=32, refreshes=1.5)
    cells += [cell(0.5, 4, interval=32), cell(0.5, 8, interval=32), rare]
    assert choose(cells, AGREE, 16)[0] == rare


def test_of_equal_costs_the_one_without_refreshes():
    cells = [cell(0.5, 8, interval=8), cell(0.5, 8), cell(0.5, 8, interval=32)]
    assert choose(cells, AGREE, 16)[0].interval == 0


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        (Limits(max_accuracy_drop=0.1), True), (Limits(max_accuracy_drop=0.01), False),
        (Limits(min_agreement=0.9), True), (Limits(min_agreement=0.99), False),
        (Limits(cosine=0.97), True), (Limits(cosine=0.99), False), (Limits(0.1, 0.9, 0.99), False),
        (Limits(0.1, 0.9, 0.97), True),
    ],
)  # fmt: skip
def test_all_limits_that_were_given_must_hold(limits, kept):
    assert limits.keeps(cell(0.5, 8, agreement=0.95, cosine=0.98, drop=0.05)) is kept


def test_default_limits():
    assert Limits().or_default(True) == Limits(max_accuracy_drop=0.005)
    assert Limits().or_default(False) == Limits(min_agreement=0.99)
    assert Limits(cosine=0.9).or_default(True) == Limits(cosine=0.9)
    assert Limits(0.005, cosine=0.97).words == (
        0.005,
        "largest accuracy drop against mode none, worst kind and cosine 0.97",
    )


def test_what_differs_with_nothing_reused_is_no_loss_by_reuse():
    drop = Limits(max_accuracy_drop=0.005)
    quiet, noisy = noise_of([cell(0.5, 0), cell(0.7, 0)]), noise_of([cell(0.5, 0, 0.8, changed=8), cell(0.7, 0)])
    assert (noisy["a"].rows, noisy["a"].changed, noisy["a"].agreement) == (200, 8, 0.9)
    # 0.005 + 1.645 sqrt(0.04 / 100) = 0.0379
    for lost, kept in ((0.03, True), (0.04, False)):
        assert drop.keeps(cell(0.5, 4, drop=lost), noisy) is kept
        assert not drop.keeps(cell(0.5, 4, drop=lost), quiet)
        assert not drop.keeps(cell(0.5, 4, drop=lost))
    assert drop.keeps(cell(0.5, 4), quiet)
    # 0.9 - 1.645 sqrt(0.9 * 0.1 / 100) = 0.851
    for agreement, kept in ((0.86, True), (0.84, False)):
        assert AGREE.keeps(cell(0.5, 4, agreement), noisy) is kept
        assert not AGREE.keeps(cell(0.5, 4, agreement), quiet)
    lossy = noise_of([cell(0.5, 0, drop=0.1)])  # the mode itself loses a tenth
    assert drop.keeps(cell(0.5, 4, drop=0.1), lossy)
    assert not drop.keeps(cell(0.5, 4, drop=0.11), lossy)
    cells = [cell(0.5, 0, changed=4), cell(0.5, 4, drop=0.02), cell(0.5, 8, drop=0.2)]
    assert [c.depth for c in choose(cells, drop, 16, noise=noise_of(cells))] == [4]
    assert choose(cells, drop, 16) == []


def test_the_worst_kind_is_held_to_its_own_noise():
    steady, shaky = cell(0.5, 4, drop=0.03).all, cell(0.5, 4, drop=0.03, changed=9).all
    mixed = replace(cell(0.5, 4), kinds={"steady": steady, "shaky": shaky})
    noise = {"steady": cell(0.5, 0).all, "shaky": cell(0.5, 0, changed=9).all}
    assert not Limits(max_accuracy_drop=0.005).keeps(mixed, noise)
    assert Limits(max_accuracy_drop=0.005).keeps(replace(mixed, kinds={"shaky": shaky}), noise)


def test_other_captures_are_not_chosen():
    assert choose([cell(0.5, 8, capture="alone"), cell(0.5, 8, 0.5)], AGREE, 16) == []


def test_the_report_says_where_drift_and_answers_disagree():
    cells = [
        cell(0.5, 0), cell(0.5, 4), cell(0.5, 8, drop=0.3), cell(0.5, 12, drop=0.5, cosine=0.9),
        cell(0.7, 4), cell(0.7, 8, cosine=0.96), cell(0.9, 4, cosine=0.9, drop=0.9),
    ]  # fmt: skip
    picked = [cells[1], cells[5]]
    found = verdicts(cells, picked)
    assert [(v.ratio, v.by_drift, v.chosen) for v in found] == [(0.5, 8, 4), (0.7, 4, 8), (0.9, 0, 0)]
    assert (found[0].kind, found[0].share, found[0].share_none) == ("a", 0.7, 1.0)
    assert found[0].words.endswith("they disagree. At depth 8 a falls from 1.000 to 0.700.")
    assert found[1].words.endswith("answers allow 8: drift is the stricter one.")
    assert found[2].words.endswith("allows depth 0, answers allow the same.")
