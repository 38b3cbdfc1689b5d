"""The answers of the processes that are ready, while the pipeline starts."""

from __future__ import annotations

from ..config import EngineConfig
from ..request.facts import Facts
from ..service.info import ServiceInfo
from ..text.chat_markers import PLAIN
from .messages import Ready, process_names


class RollCall:
    """Collects one Ready of each process of a pipeline; `tp_size` of them are ranks of the worker."""

    def __init__(self, tp_size: int) -> None:
        self._names = process_names(tp_size)
        self._ready: dict[str, Ready] = {}

    def answer(self, message: Ready) -> None:
        """A process is ready."""
        self._ready[message.name] = message

    @property
    def missing(self) -> list[str]:
        """Names of the processes that are not ready yet, sorted."""
        return sorted(set(self._names) - self._ready.keys())

    @property
    def facts(self) -> Facts | None:
        """The worker's facts, once worker and tokenizer are ready."""
        worker = self._ready.get("worker")
        return worker.facts if worker is not None and "tokenizer" in self._ready else None

    def info(self, config: EngineConfig, facts: Facts) -> ServiceInfo:
        """What runs here, for clients; the tokenizer must be ready."""
        tokenizer = self._ready["tokenizer"]
        return ServiceInfo.of(
            config, facts, has_tokenizer=tokenizer.has_tokenizer, has_chat_template=tokenizer.has_chat_template,
            chat_markers=tokenizer.chat_markers or PLAIN.to_json(), end_ids=tokenizer.end_ids,
        )  # fmt: skip
