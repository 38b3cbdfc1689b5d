"""Names of refresh schedules; `scheduler/modes.py` has a row for each. Imports nothing, as the frontend needs it."""

from __future__ import annotations

from typing import Literal, get_args

RefreshSchedule = Literal["full", "settled"]
REFRESH_SCHEDULES: tuple[RefreshSchedule, ...] = get_args(RefreshSchedule)
