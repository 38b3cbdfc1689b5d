"""The reuse margin: how far before the place where two prompts part a cached prefix must end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tqdm import tqdm

from ..radix_cache.depth_profile import DEFAULT_REUSE_MARGIN
from .choice import Cell, Limits, Noise, Tally
from .data import Groups, Row
from .measure import Measurer
from .plan import Unit
from .store import Store

_GROUPS = 32
_ROWS = 3
_ENOUGH = 8


@dataclass(frozen=True, slots=True)
class Margin:
    """Rows whose prefix was reused up to `margin` tokens before the place where they part from the donor.

    Reuse ends at whole pages, so most rows end earlier. `cell` counts the *near* ones, that ended within half a page of
    the margin; None when there are none. `all`: all of them.
    """

    margin: int
    cell: Cell | None
    all: Tally

    @property
    def near(self) -> int:
        """Number of near rows."""
        return 0 if self.cell is None else self.cell.all.rows


def measure_margins(
    groups: Groups, longest: int, cell: Cell, measurer: Measurer, store: Store, margins: Sequence[int], page_size: int
) -> list[Margin]:
    """Rows at the depth and interval of `cell`, captured from a row of the same group and kind; ascending margins.

    Rows of a kind often begin alike beyond the group's shared part, where a margin matters most. It takes many groups
    with few rows each, because the group decides where a page ends. It leaves out rows of more than `longest` tokens.
    """
    found: dict[int, list[Mapping[str, Any]]] = {}
    for name in tqdm(sorted(groups)[:_GROUPS], desc="margins", unit="group"):
        units = _units(name, [row for row in groups[name] if len(row.tokens) <= longest], cell)
        missing = [unit for unit in units if unit.key not in store.records]
        measured = measurer.measure_margins(missing, sorted(margins), cell.depth, cell.interval) if missing else []
        for unit, of_unit in zip(missing, measured, strict=True):
            store.add({"key": unit.key, "margins": of_unit})
        for unit in units:
            for part in store.records[unit.key]["margins"]:
                found.setdefault(part["margin"], []).extend(part["rows"])
    return [_margin(margin, rows, cell, page_size) for margin, rows in sorted(found.items())]


def _units(name: str, rows: Sequence[Row], cell: Cell) -> list[Unit]:
    """Rows of each kind and their donor, where a kind has two rows."""
    units = []
    for kind in sorted({row.kind for row in rows}):
        alike = [row for row in rows if row.kind == kind][: 1 + _ROWS]
        if len(alike) > 1:
            key = f"margin/{name}/{kind}/{cell.depth}/{cell.interval}"
            units.append(Unit(key, cell.ratio, name, 0, alike[0].tokens, tuple(alike[1:]), True))
    return units


def _margin(margin: int, rows: Sequence[Mapping[str, Any]], cell: Cell, page_size: int) -> Margin:
    near = [row for row in rows if row["distance"] is not None and row["distance"] < margin + page_size // 2]
    kinds = {kind: Tally.of([row for row in near if row["kind"] == kind]) for kind in {row["kind"] for row in near}}
    return Margin(margin, replace(cell, all=Tally.of(near), kinds=kinds) if near else None, Tally.of(rows))


def choose_margin(margins: Sequence[Margin], limits: Limits, noise: Noise | None = None) -> int:
    """The smallest margin that enough near rows confirm, if no row contradicts it or a larger one.

    A margin with too few near rows counts only if it is at least DEFAULT_REUSE_MARGIN. If rows contradict every margin,
    it is the largest; without any margin, DEFAULT_REUSE_MARGIN.
    """
    chosen = None
    for part in reversed(margins):
        if part.cell is not None and not limits.keeps(part.cell, noise):
            break
        if part.near >= _ENOUGH or part.margin >= DEFAULT_REUSE_MARGIN:
            chosen = part.margin
    if chosen is not None:
        return chosen
    return max((part.margin for part in margins), default=DEFAULT_REUSE_MARGIN)
