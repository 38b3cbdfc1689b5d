"""What `Engine` and `LocalService` share: the parts of an engine, their intake, and the thread that drives them."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import torch

from ..config import EngineConfig
from ..cpu_tuning import warn_of_spinning
from ..request.input import GenerateInput
from ..request.intake import Intake
from ..request.request import Request
from ..request.spec import RequestSpec
from ..text.chat_markers import PLAIN, ChatMarkers
from ..text.stream import TextStream
from ..worker.device import choose_device
from .build import Parts, build_parts
from .loop import EngineLoop

REST_AFTER_S: float | None = 1.0
"""Seconds without work after which an engine's thread ends on a CPU, until there is some again."""


class EngineCore:
    """An engine without a way to call it. Raises ModelLoadError or ConfigError.

    Args:
        config: its options.
        parts: of `build_parts` for these options, for measurements and tests; None: it builds them.

    Attributes:
        parts: model, worker and scheduler; nobody but the loop's thread may touch the last two.
        intake: makes specs of what is asked.
        loop: the thread that drives the scheduler.
    """

    def __init__(self, config: EngineConfig, parts: Parts | None = None):
        self.config = config
        self.parts = parts or _build(config)
        self.intake = Intake(config, self.parts.facts, self.parts.tokenizer)
        on_cpu = self.parts.decoder.device.type == "cpu"
        self.loop = EngineLoop(self.parts.scheduler, idle_s=REST_AFTER_S if on_cpu else None)

    def take(self, inputs: Iterable[GenerateInput]) -> list[Request]:
        """Requests for the scheduler, checked. Raises InvalidRequestError or PoolTooSmallError."""
        return self.open(self.intake.specs(inputs))

    def open(self, specs: Iterable[RequestSpec]) -> list[Request]:
        """Requests for the scheduler, each with a stream for its text."""
        tokenizer = self.parts.tokenizer
        return [Request(spec, TextStream(tokenizer, tuple(spec.sampling.stop))) for spec in specs]

    def chat_markers(self) -> ChatMarkers:
        """What the chat template puts around each message. Raises ModelLoadError, naming it, when it is broken."""
        return PLAIN if self.parts.tokenizer is None else self.parts.tokenizer.chat_markers()


def _build(config: EngineConfig) -> Parts:
    """`build_parts`; for a CPU in a thread that ends with it.

    OpenMP (libgomp) keeps a team for every thread that has computed in parallel. When the teams together outnumber
    the cores they sleep between operations, and short ones take longer to be woken than to run. So the thread that
    makes the engine must not leave one behind, beside that of the engine's own thread; and that one ends when it has
    had nothing to do for a while, for the sake of other engines in the process.
    """
    if choose_device(config.device) != "cpu":
        return build_parts(config)
    warn_of_spinning(torch.get_num_threads())
    with ThreadPoolExecutor(1, "shoal-build", torch.set_num_threads, (torch.get_num_threads(),)) as apart:
        return apart.submit(build_parts, config).result()
