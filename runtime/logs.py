"""How the server's processes log: text lines, or one JSON object a line."""

from __future__ import annotations

import logging
import sys
from typing import Any

import orjson

_TEXT = "[%(asctime)s] %(levelname)s %(name)s: %(message)s"
_EXTRAS = ("http", "request")


class JSONFormatter(logging.Formatter):
    """One object a line: `time`, `level`, `logger`, `message`, and what a record carries beside."""

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


def configure_logging(level: str, as_json: bool, log_requests: bool) -> None:
    """Send every log of this process to stderr, at `level` and above; replaces what was configured before."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter() if as_json else logging.Formatter(_TEXT))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("shoal.requests").setLevel(logging.INFO if log_requests else logging.WARNING)
    for noisy in ("httpx", "httpcore", "asyncio", "transformers", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
