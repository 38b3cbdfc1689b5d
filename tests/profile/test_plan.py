"""Units: where the shared prefix ends, and how donors go on."""

from __future__ import annotations

import pytest

from shoal.profile.data import Row
from shoal.profile.plan import common_length, make_units
from shoal.runtime.errors import ConfigError

OPTIONS = {"per_ratio": 2, "rows": 3, "canvas": 8, "margin": 4, "page_size": 4, "max_tokens": 200, "seed": 1}


def groups(count: int = 4, rows: int = 4, shared: int = 60, tail: int = 12):
    out = {}
    for g in range(count):
        head = tuple(1000 * g + i for i in range(shared))
        out[f"g{g}"] = [
            Row((*head, *(100_000 + 1000 * g + 100 * r + i for i in range(tail))), None, "ab"[r % 2])
            for r in range(rows)
        ]
    return out


def test_common_length():
    assert common_length([(1, 2, 3), (1, 2, 4), (1, 2)]) == 2
    assert common_length([(1, 2), (1, 2)]) == 2
    assert common_length([(1,), (2,)]) == 0


def test_cuts_are_whole_pages_near_the_ratio_and_donors_part_behind_the_margin():
    units = make_units(groups(), (0.25, 0.5, 0.7), **OPTIONS)
    assert len(units) == 6
    for unit in units:
        longest = max(len(row.tokens) for row in unit.rows) + 8
        assert unit.cut % 4 == 0
        assert abs(unit.cut / longest - unit.ratio) <= 0.05
        assert len(unit.rows) == 3
        for row in unit.rows:
            assert unit.donor != row.tokens
            assert common_length([unit.donor, row.tokens]) >= unit.cut + 4
            if not unit.natural:
                assert common_length([unit.donor, row.tokens]) == unit.cut + 4
    assert [unit.natural for unit in units] == [False] * 4 + [True] * 2


def test_units_are_reproducible_and_depend_on_the_seed():
    one = make_units(groups(), (0.5,), **OPTIONS)
    assert make_units(groups(), (0.5,), **OPTIONS) == one
    others = [make_units(groups(), (0.5,), **{**OPTIONS, "seed": seed}) for seed in range(2, 8)]
    assert any([u.group for u in other] != [u.group for u in one] for other in others)


def test_rows_without_groups_are_cut_anywhere():
    alone = {f"row {g}": rows[:1] for g, rows in groups().items()}
    units = make_units(alone, (0.25, 0.8), **OPTIONS)
    assert len(units) == 4
    for unit in units:
        (row,) = unit.rows
        assert common_length([unit.donor, row.tokens]) == unit.cut + 4
        assert not unit.natural


def test_rows_too_long_and_ratios_out_of_reach():
    with pytest.raises(ConfigError, match="ratios") as caught:
        make_units(groups(), (0.95,), **OPTIONS)
    assert caught.value.field == "ratios"
    with pytest.raises(ConfigError, match="ratios"):
        make_units(groups(), (0.5,), **{**OPTIONS, "max_tokens": 70})


def test_kinds_are_spread():
    made = {"g0": groups(1, 40)["g0"]}
    (unit,) = make_units(made, (0.5,), **{**OPTIONS, "rows": 9})
    kinds = [row.kind for row in unit.rows]
    assert abs(kinds.count("a") - kinds.count("b")) <= 1
