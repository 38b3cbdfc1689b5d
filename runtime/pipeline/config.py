"""Options of the processes around the engine; a default stands here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass

from ..checks import OPTION


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
        OPTION.number("startup_timeout_s", self.startup_timeout_s, 0, above=True, of="seconds")
        OPTION.number("watchdog_timeout_s", self.watchdog_timeout_s, 0, above=True, of="seconds")
        OPTION.number("null_delay_s", self.null_delay_s, 0, of="seconds")
        OPTION.flag("null_worker", self.null_worker)
        OPTION.integer("null_tokens", self.null_tokens, 1)
