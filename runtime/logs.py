"""How the server's processes log: text lines, or one JSON object a line."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import orjson

_TEXT = "[%(asctime)s] %(levelname)s %(name)s: %(message)s"
_EXTRAS = ("http", "request")
_LIBRARIES = ("transformers", "huggingface_hub")


class JSONFormatter(logging.Formatter):
    """One object a line: `time`, `level`, `logger`, `message`, and the record's extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Encode a record."""
        data: dict[str, Any] = {
            "time": round(record.created, 6),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        data.update((name, record.__dict__[name]) for name in _EXTRAS if name in record.__dict__)
        if record.exc_info:
            data["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(data, default=str).decode()


class _LibraryLogger(logging.Logger):
    """The top logger of a library that installs a handler, and so a format of its own, at its import."""

    @property
    def propagate(self) -> bool:
        """Always true: its records go to the root's handler."""
        return True

    @propagate.setter
    def propagate(self, value: bool) -> None:
        pass

    def addHandler(self, hdlr: logging.Handler) -> None:  # noqa: N802
        """Ignored."""


def configure_logging(level: str, as_json: bool, log_requests: bool) -> None:
    """Send every log of this process to stderr, at `level` and above; replaces any earlier configuration.

    Warnings of Python and of libraries are included, whenever the library is imported.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter() if as_json else logging.Formatter(_TEXT))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("shoal.requests").setLevel(logging.INFO if log_requests else logging.WARNING)
    logging.captureWarnings(True)
    for library in _LIBRARIES:
        _adopt(library)
    if as_json:  # a bar is no line of a log
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for noisy in ("httpx", "httpcore", "asyncio", "transformers", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


def _adopt(name: str) -> None:
    """Send a library's records to the root's handler only."""
    logging.setLoggerClass(_LibraryLogger)
    try:
        library = logging.getLogger(name)
    finally:
        logging.setLoggerClass(logging.Logger)
    if not isinstance(library, _LibraryLogger):  # it was imported before
        library.handlers.clear()
        library.propagate = True
