"""Plans the measurement: units (a group of rows at a ratio), each with the end of its shared prefix."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from ..runtime.errors import ConfigError
from .data import Groups, Row

_NEAR = 0.05
"""Most by which a unit's ratio may differ from the requested one."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One prefix, captured from `donor` and reused by `rows`.

    Donor and rows begin with the same `cut` + margin tokens; the donor then goes on differently. `natural`: as another
    row of the group does; else as a row of another group does.
    """

    key: str
    ratio: float
    group: str
    cut: int
    donor: tuple[int, ...]
    rows: tuple[Row, ...]
    natural: bool


def common_length(rows: Sequence[tuple[int, ...]]) -> int:
    """Leading tokens that all share."""
    first, last = min(rows), max(rows)
    for at, (one, other) in enumerate(zip(first, last, strict=False)):
        if one != other:
            return at
    return min(len(first), len(last))


def make_units(
    groups: Groups, ratios: Sequence[float], *, per_ratio: int, rows: int, canvas: int, margin: int, page_size: int,
    max_tokens: int, seed: int,
) -> list[Unit]:  # fmt: skip
    """Units for each ratio, from groups chosen by `seed`. Raises ConfigError when no group reaches any ratio.

    The ratio of a unit is that of its longest row; rows that are too long for the model are left out.
    """
    rng = random.Random(f"profile-{seed}")
    names = sorted(groups)
    rng.shuffle(names)
    chosen = {name: _sample(rng, groups[name], rows + 1, max_tokens - canvas) for name in names}
    names = [name for name in names if chosen[name]]
    units = []
    for ratio in sorted(ratios):
        made = (_unit(name, chosen, names, ratio, canvas, margin, page_size) for name in names)
        units += [unit for unit in made if unit is not None][:per_ratio]
    if not units:
        message = (
            f"ratios: no row is long enough to share {min(ratios):.0%} of prompt and canvas ({canvas} tokens) in whole "
            f"pages of {page_size} tokens, with {margin} tokens behind it, within {max_tokens} tokens"
        )
        raise ConfigError(message, field="ratios", value=list(ratios), limit="ratios that the data reaches")
    return units


def _sample(rng: random.Random, rows: Sequence[Row], count: int, longest: int) -> list[Row]:
    """Rows spread over the kinds."""
    fit = [row for row in rows if len(row.tokens) <= longest]
    rng.shuffle(fit)
    kinds: dict[str, list[Row]] = {}
    for row in fit:
        kinds.setdefault(row.kind, []).append(row)
    out: list[Row] = []
    while len(out) < min(count, len(fit)):
        out += [of_kind.pop() for of_kind in kinds.values() if of_kind]
    return out[:count]


def _unit(
    name: str, chosen: dict[str, list[Row]], names: Sequence[str], ratio: float, canvas: int, margin: int,
    page_size: int,
) -> Unit | None:  # fmt: skip
    all_rows = chosen[name]
    donor, measured = (all_rows[0], all_rows[1:]) if len(all_rows) > 1 else (all_rows[0], all_rows)
    shared = common_length([row.tokens for row in all_rows]) if len(all_rows) > 1 else len(donor.tokens) - 1
    longest = max(len(row.tokens) for row in measured) + canvas
    most = max(0, shared - margin) // page_size * page_size
    cut = min(most, round(ratio * longest / page_size) * page_size)
    part = cut + margin
    if not cut or abs(cut / longest - ratio) > _NEAR:
        return None
    natural = len(all_rows) > 1 and shared - part < page_size
    tokens = donor.tokens if natural else _other_end(donor.tokens, part, name, chosen, names)
    return Unit(f"{ratio:g}/{name}", ratio, name, cut, tokens, tuple(measured), natural)


def _other_end(
    tokens: tuple[int, ...], part: int, name: str, chosen: dict[str, list[Row]], names: Sequence[str]
) -> tuple[int, ...]:
    """The first `part` tokens, and then the end of a row of the next group."""
    if len(names) < 2:
        return tokens
    other = chosen[names[(names.index(name) + 1) % len(names)]][0].tokens
    end = other[part:] if len(other) > part + 8 else other[-max(8, len(tokens) - part) :]
    return tokens[:part] + end[: max(8, len(tokens) - part)]
