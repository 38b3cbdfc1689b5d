"""Cache modes and refresh schedules as rows of tables: what each reuses, captures and recomputes.

A new mode or schedule is a new row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..config import CacheMode
from ..refresh_schedules import RefreshSchedule


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """What a request of one cache mode does.

    Attributes:
        captures: what it adds to the radix tree, and therefore reuses from other requests. `prompt`: the prompt after
            its first forward, with boundary states, to the profile's depth. `finished`: prompt and answer at its end,
            all layers. None: nothing.
        refreshes: each block starts with a refresh; otherwise every step computes everything.
        keeps_join: a refresh starts at the join; otherwise at the first token.
        refreshes_prefix: every `refresh_interval` NFE a refresh recomputes the prefix above its depth.
        step_stop: a block step computes from the block's first position to the `block`'s end or the `canvas`'s;
            `all`: everything from the first token on.
    """

    captures: Literal["prompt", "finished"] | None = None
    refreshes: bool = True
    keeps_join: bool = False
    refreshes_prefix: bool = False
    step_stop: Literal["block", "canvas", "all"] = "block"


MODES: dict[CacheMode, Mode] = {
    "none": Mode(refreshes=False, step_stop="all"),
    "prefix": Mode(step_stop="canvas"),
    "dual": Mode(),
    "lm": Mode(captures="finished", keeps_join=True),
    "bicache": Mode(captures="prompt", keeps_join=True, refreshes_prefix=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What a block start computes, in modes that refresh.

    Attributes:
        keeps_settled: a refresh starts at the first block that was not full at the latest refresh: the blocks before it
            are settled and keep their KVs. Otherwise it computes everything behind the join.
    """

    keeps_settled: bool = False


SCHEDULES: dict[RefreshSchedule, Schedule] = {
    "full": Schedule(),
    "settled": Schedule(keeps_settled=True),
}
