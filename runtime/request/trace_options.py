"""What a trace of the worker records."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ..checks import PARAMETER

ACTIVITIES = ("CPU", "GPU")
MAX_STEPS = 500
"""A trace ends by itself after so many scheduling steps: it grows in the worker's memory until it is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceOptions:
    """What to record. Raises InvalidRequestError, naming the field.

    Attributes:
        output_dir: absolute path of the folder for the trace; it is made when it is missing.
        num_steps: scheduling steps (messages to the worker) after which the trace ends by itself.
        activities: of `CPU` and `GPU`; what the machine lacks is left out.
        with_stack: record Python's call stacks.
        record_shapes: record the shapes of operators' inputs.
    """

    output_dir: str
    num_steps: int = MAX_STEPS
    activities: tuple[str, ...] = ACTIVITIES
    with_stack: bool = False
    record_shapes: bool = False

    def __post_init__(self) -> None:
        if not os.path.isabs(self.output_dir) or "\0" in self.output_dir:
            PARAMETER.refuse("output_dir", self.output_dir, "an absolute path")
        if not 1 <= self.num_steps <= MAX_STEPS:
            PARAMETER.refuse("num_steps", self.num_steps, f"from 1 to {MAX_STEPS}")
        if not self.activities or not set(self.activities) <= set(ACTIVITIES):
            PARAMETER.refuse("activities", list(self.activities), f"a list of {' and '.join(ACTIVITIES)}")
