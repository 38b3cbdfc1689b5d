"""The reuse margin: which rows tell about it, and which one is chosen."""

from __future__ import annotations

from shoal.profile.choice import Limits
from shoal.profile.margins import Margin, _margin, choose_margin

from .test_choice import cell, row

LIMITS = Limits(min_agreement=0.99)
CELL = cell(0.5, 8)


def rows(near: int, far: int, same: bool = True, margin: int = 0):
    return [{**row(same=same), "distance": margin + 3}] * near + [{**row(), "distance": margin + 12}] * far


def margins(**of: tuple[int, bool]) -> list[Margin]:
    return [_margin(int(m[1:]), rows(near, 20, same, int(m[1:])), CELL, 16) for m, (near, same) in of.items()]


def test_rows_that_end_near_the_margin_are_counted():
    made = _margin(16, [*rows(3, 5, margin=16), {**row(), "distance": None}], CELL, 16)
    assert (made.near, made.all.rows) == (3, 9)
    assert _margin(0, rows(0, 5), CELL, 16).near == 0


def test_the_smallest_that_enough_rows_bear_out():
    assert choose_margin(margins(m0=(9, True), m16=(9, True), m32=(9, True)), LIMITS) == 0
    assert choose_margin(margins(m0=(9, False), m16=(9, True), m32=(9, True)), LIMITS) == 16
    assert choose_margin(margins(m0=(9, True), m16=(9, False), m32=(9, True)), LIMITS) == 32


def test_too_few_rows_are_no_reason_to_go_below_the_default():
    assert choose_margin(margins(m0=(7, True), m16=(0, True), m32=(0, True)), LIMITS) == 16


def test_when_every_margin_fails_the_largest_and_without_any_the_default():
    assert choose_margin(margins(m0=(9, False), m16=(9, False)), LIMITS) == 16
    assert choose_margin([], LIMITS) == 16
