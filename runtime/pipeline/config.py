"""Options of the processes around the engine; a default stands here and nowhere else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, shorten


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineConfig:
    """Options of the pipeline. Raises ConfigError, naming the field, for values out of range.

    Attributes:
        startup_timeout_s: seconds that loading the model and starting all processes may take.
        watchdog_timeout_s: seconds after which a process that does not answer, or a forward that does not end, stops
            the server.
        null_worker: commit made-up tokens at once instead of running the model (to measure all but the model).
        null_tokens: tokens that such a worker commits in a step.
        null_delay_s: seconds that each of its forwards takes.
    """

    startup_timeout_s: float = 1800.0
    watchdog_timeout_s: float = 300.0
    null_worker: bool = False
    null_tokens: int = 4
    null_delay_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("startup_timeout_s", "watchdog_timeout_s"):
            value = getattr(self, name)
            if not _is_number(value) or value <= 0:
                self._refuse(name, value, "a number of seconds above 0")
        if not _is_number(self.null_delay_s) or self.null_delay_s < 0:
            self._refuse("null_delay_s", self.null_delay_s, "a number of seconds of at least 0")
        if not isinstance(self.null_worker, bool):
            self._refuse("null_worker", self.null_worker, "true or false")
        if not isinstance(self.null_tokens, int) or isinstance(self.null_tokens, bool) or self.null_tokens < 1:
            self._refuse("null_tokens", self.null_tokens, "an integer of at least 1")

    @staticmethod
    def _refuse(name: str, value: object, limit: str) -> None:
        raise ConfigError(f"{name} is {shorten(value)}; it must be {limit}", field=name, value=value, limit=limit)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
