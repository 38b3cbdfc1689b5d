"""From measurements to a depth profile: figures of each cell, and the cheapest cell that keeps the limits."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .options import ONCE

DEFAULT_MAX_ACCURACY_DROP = 0.005
DEFAULT_MIN_AGREEMENT = 0.99
_ONE_SIDED = 1.645
"""Standard deviations that chance exceeds in one of twenty cases."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Rows of one kind (or all) in one cell.

    Attributes:
        rows: how many; `same` of them have the text of mode none.
        token_agreement: 1 - edits / longer length, over all rows.
        right, right_none: rows answered rightly here and in mode none; None when no answer is known.
        changed: rows that are right in one of the two and wrong in the other; 0 when no answer is known.
        nfe, refreshes: forward passes and prefix refreshes (the first forward among them), mean of the rows.
    """

    rows: int
    same: int
    token_agreement: float
    right: int | None
    right_none: int | None
    changed: int
    nfe: float
    refreshes: float

    @property
    def agreement(self) -> float:
        """Share of texts that are those of mode none."""
        return self.same / self.rows

    @property
    def accuracy(self) -> float | None:
        """Share of right answers."""
        return None if self.right is None else self.right / self.rows

    @property
    def drop(self) -> float | None:
        """Loss of right answers against mode none, as a share; negative for a gain."""
        if self.right is None or self.right_none is None:
            return None
        return (self.right_none - self.right) / self.rows

    @classmethod
    def sum(cls, tallies: Sequence[Tally]) -> Tally:
        """All rows of several (at least one)."""
        rows = sum(tally.rows for tally in tallies)

        def mean(name: str) -> float:
            return float(sum(getattr(tally, name) * tally.rows for tally in tallies)) / rows

        def total(name: str) -> int | None:
            values = [getattr(tally, name) for tally in tallies]
            return None if None in values else sum(values)

        return cls(
            rows, sum(tally.same for tally in tallies), mean("token_agreement"), total("right"), total("right_none"),
            sum(tally.changed for tally in tallies), mean("nfe"), mean("refreshes"),
        )  # fmt: skip

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> Tally:
        """Count rows (at least one) as `measure_unit` writes them."""
        known = all(row["right"] is not None for row in rows)
        edits, length = sum(row["edits"] for row in rows), sum(row["length"] for row in rows)
        return cls(
            rows=len(rows),
            same=sum(row["same"] for row in rows),
            token_agreement=1.0 - edits / length if length else 1.0,
            right=sum(row["right"] for row in rows) if known else None,
            right_none=sum(row["right_none"] for row in rows) if known else None,
            changed=sum(row["right"] != row["right_none"] for row in rows) if known else 0,
            nfe=sum(row["nfe"] for row in rows) / len(rows),
            refreshes=sum(row["refreshes"] for row in rows) / len(rows),
        )


@dataclass(frozen=True, slots=True)
class Cell:
    """One (capture, ratio, depth, interval): all rows, each kind, the smallest ratio of a row, drift of its layers.

    `cosine` is the smallest over layers below the depth (keys, values) of the mean cosine; `worst_error` the largest
    relative error of any page there.
    """

    capture: str
    ratio: float
    depth: int
    interval: int
    lowest_ratio: float
    all: Tally
    kinds: dict[str, Tally]
    cosine: float
    worst_error: float

    @property
    def worst_agreement(self) -> float:
        """Agreement of the worst kind."""
        return min(tally.agreement for tally in self.kinds.values())

    @property
    def worst_drop(self) -> float | None:
        """Loss of accuracy of the worst kind; None when no kind has answers."""
        drops = [tally.drop for tally in self.kinds.values() if tally.drop is not None]
        return max(drops) if drops else None


Noise = Mapping[str, Tally]
"""By kind, all rows of mode `bicache` with nothing reused: what differs from mode `none` there is not due to reuse."""


def noise_of(cells: Iterable[Cell]) -> Noise:
    """The rows at depth 0, of all ratios together."""
    found: dict[str, list[Tally]] = defaultdict(list)
    for cell in cells:
        if cell.depth == 0:
            for kind, tally in cell.kinds.items():
                found[kind].append(tally)
    return {kind: Tally.sum(tallies) for kind, tallies in found.items()}


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits that a choice must keep; None: no such limit."""

    max_accuracy_drop: float | None = None
    min_agreement: float | None = None
    cosine: float | None = None

    def keeps(self, cell: Cell, noise: Noise | None = None) -> bool:
        """Whether every kind of a cell is within all limits.

        `noise` allows what can't be told from mode `bicache` with nothing reused (one-sided, 95 %): a kind of n rows
        may lose max(limit, d) + 1.645 sqrt(c / n), where that mode loses d and changes the rightness of c, as shares of
        its rows; and may agree in min(limit, a - 1.645 sqrt(a (1 - a) / n)), where a is its agreement. Where that mode
        changes nothing, both are the limit.
        """
        noise = noise or {}
        for kind, tally in cell.kinds.items():
            most, least = self._allowed(tally.rows, noise.get(kind))
            if most is not None and (tally.drop is None or tally.drop > most + 1e-12):
                return False
            if least is not None and tally.agreement < least - 1e-12:
                return False
        return self.cosine is None or cell.cosine >= self.cosine

    def _allowed(self, rows: int, noise: Tally | None) -> tuple[float | None, float | None]:
        """The largest drop and the smallest agreement of a kind with so many rows."""
        most, least = self.max_accuracy_drop, self.min_agreement
        if noise is None:
            return most, least
        if most is not None:
            most = max(most, noise.drop or 0.0) + _ONE_SIDED * math.sqrt(noise.changed / noise.rows / rows)
        if least is not None:
            agreement = noise.agreement
            least = min(least, agreement - _ONE_SIDED * math.sqrt(agreement * (1 - agreement) / rows))
        return most, least

    def or_default(self, answers: bool) -> Limits:
        """These limits; without any, the default: an accuracy drop if the data has answers, else agreement."""
        if self != Limits():
            return self
        return Limits(DEFAULT_MAX_ACCURACY_DROP) if answers else Limits(min_agreement=DEFAULT_MIN_AGREEMENT)

    @property
    def words(self) -> tuple[float, str]:
        """Tolerance and metric for the profile."""
        named = [
            (self.max_accuracy_drop, "largest accuracy drop against mode none, worst kind"),
            (self.min_agreement, "agreement of the text with mode none, worst kind"),
            (self.cosine, "cosine"),
        ]
        given = [(value, words) for value, words in named if value is not None]
        metric = " and ".join(
            words if index == 0 else f"{words} {value:g}" for index, (value, words) in enumerate(given)
        )
        return given[0][0], metric


def make_cells(units: Iterable[Mapping[str, Any]]) -> list[Cell]:
    """Cells of all units' records, in order of capture, ratio, depth and interval."""
    rows: dict[tuple[str, float, int, int], list[Mapping[str, Any]]] = defaultdict(list)
    drift: dict[tuple[str, float], list[list[Mapping[str, float]]]] = defaultdict(list)
    lowest: dict[float, float] = {}
    for unit in units:
        for capture, of_rows in unit["drift"].items():
            drift[capture, unit["ratio"]] += of_rows
        for cell in unit["cells"]:
            rows[cell["capture"], unit["ratio"], cell["depth"], cell["interval"]] += cell["rows"]
            if cell["depth"]:
                ratio = min(row["ratio"] for row in cell["rows"])
                lowest[unit["ratio"]] = min(ratio, lowest.get(unit["ratio"], 1.0))
    out = []
    for (capture, ratio, depth, interval), of_cell in sorted(rows.items()):
        kinds = sorted({row["kind"] for row in of_cell})
        layers = [layer for of_row in drift[capture, ratio] for layer in of_row[:depth]]
        out.append(
            Cell(
                capture, ratio, depth, interval, lowest[ratio], Tally.of(of_cell),
                {kind: Tally.of([row for row in of_cell if row["kind"] == kind]) for kind in kinds},
                min((min(layer["cosine_k"], layer["cosine_v"]) for layer in layers), default=1.0),
                max((layer["worst"] for layer in layers), default=0.0),
            )
        )  # fmt: skip
    return out


def has_answers(cells: Iterable[Cell]) -> bool:
    """Whether right answers are known for every row."""
    return all(cell.all.right is not None for cell in cells)


def unanswered_kinds(cells: Iterable[Cell]) -> list[str]:
    """Kinds of rows that mode none answers rightly in fewer than half of the cases: no drop can be seen in them."""
    rows: dict[str, int] = defaultdict(int)
    right: dict[str, int] = defaultdict(int)
    for cell in cells:
        for kind, tally in cell.kinds.items():
            if tally.right_none is not None:
                rows[kind] += tally.rows
                right[kind] += tally.right_none
    return [kind for kind in sorted(rows) if 2 * right[kind] < rows[kind]]


def cost(cell: Cell, num_layers: int) -> float:
    """Layers of the prefix computed for a request, at its start and at every later refresh."""
    return max(1.0, cell.all.refreshes) * (num_layers - cell.depth)


def choose(
    cells: Sequence[Cell], limits: Limits, num_layers: int, capture: str = "first", noise: Noise | None = None
) -> list[Cell]:
    """For each ratio (ascending) the cheapest cell of a capture that keeps the limits; ratios without one are left out.

    A depth counts only if every shallower one keeps the limits too, with the same interval. Depths never fall as the
    ratio grows: a ratio gets at most the depth that every larger one bears.
    """
    picked: list[Cell] = []
    deepest = num_layers
    for ratio in sorted({cell.ratio for cell in cells}, reverse=True):
        mine = [cell for cell in cells if (cell.capture, cell.ratio) == (capture, ratio) and cell.depth]
        good: list[Cell] = []
        for interval in {cell.interval for cell in mine}:
            for cell in sorted((cell for cell in mine if cell.interval == interval), key=lambda cell: cell.depth):
                if not limits.keeps(cell, noise):
                    break
                if cell.depth <= deepest:
                    good.append(cell)
        if not good:
            break
        best = min(good, key=lambda cell: (cost(cell, num_layers), cell.interval != ONCE, -cell.interval, -cell.depth))
        picked.append(best)
        deepest = min(deepest, best.depth)
    return picked[::-1]
