"""What drift allows beside what answers allow: the two disagree where the tokens that matter are few."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .choice import Cell
from .options import ONCE

PUBLISHED_COSINE = 0.97
"""The limit of the published profiles: arXiv 2606.07571."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One ratio: the depth that drift allows, the depth that was chosen, and what the former does to the worst kind.

    Attributes:
        by_drift: deepest depth at which, and above which, every layer's mean cosine is at least PUBLISHED_COSINE.
        chosen: the profile's depth.
        kind: the kind of row that loses most at `by_drift`.
        share: its right answers there, as a share of its rows; without known answers, its texts as in mode none.
        share_none: the same in mode none.
    """

    ratio: float
    by_drift: int
    chosen: int
    kind: str = ""
    share: float = 1.0
    share_none: float = 1.0

    @property
    def words(self) -> str:
        """Whether drift and answers agree, in a sentence."""
        head = f"Ratio {self.ratio:g}: a cosine of {PUBLISHED_COSINE} allows depth {self.by_drift}, answers allow"
        if self.by_drift == self.chosen:
            return f"{head} the same."
        if self.by_drift < self.chosen:
            return f"{head} {self.chosen}: drift is the stricter one."
        return (
            f"{head} {self.chosen}: they disagree. At depth {self.by_drift} {self.kind} falls from "
            f"{self.share_none:.3f} to {self.share:.3f}."
        )


def verdicts(cells: Sequence[Cell], picked: Sequence[Cell]) -> list[Verdict]:
    """For each ratio, by capture `first` refreshed once per request."""
    chosen = {cell.ratio: cell.depth for cell in picked}
    found = []
    for ratio in sorted({cell.ratio for cell in cells}):
        mine = sorted(
            (cell for cell in cells if (cell.capture, cell.ratio, cell.interval) == ("first", ratio, ONCE)),
            key=lambda cell: cell.depth,
        )
        good = [cell for cell in mine if cell.depth and cell.cosine >= PUBLISHED_COSINE]
        if not good:
            found.append(Verdict(ratio, 0, chosen.get(ratio, 0)))
            continue
        kind, share, share_none = max(_shares(good[-1]), key=lambda of: of[2] - of[1])
        found.append(Verdict(ratio, good[-1].depth, chosen.get(ratio, 0), kind, share, share_none))
    return found


def _shares(cell: Cell) -> list[tuple[str, float, float]]:
    """Kind, share here, share in mode none."""
    out = []
    for kind, tally in cell.kinds.items():
        if tally.accuracy is None or tally.right_none is None:
            out.append((kind, tally.agreement, 1.0))
        else:
            out.append((kind, tally.accuracy, tally.right_none / tally.rows))
    return out
