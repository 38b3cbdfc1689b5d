"""Limits of the server's connections, and how many the process's open files allow."""

from __future__ import annotations

import resource
from dataclasses import dataclass

from ..errors import ConfigError
from .config import ServerConfig

RESERVE = 32
"""Connections past the limit that are still served, but only for RESERVED_PATHS."""
_OTHER_FILES = 128 + RESERVE
_MOST = 4096


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits of connections: see ServerConfig."""

    max_connections: int
    max_header_bytes: int
    max_headers: int
    header_timeout_s: float
    send_timeout_s: float
    max_held_bytes: int

    @classmethod
    def of(cls, config: ServerConfig) -> ConnectionLimits:
        """The limits of a configuration, within the process's open files. Raises ConfigError for more connections than
        these allow.
        """
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        room = _MOST if files == resource.RLIM_INFINITY else max(1, files - _OTHER_FILES)
        asked = config.max_connections
        if asked is not None and asked > room and files != resource.RLIM_INFINITY:
            message = f"max_connections is {asked}; the limit of {files} open files (ulimit -n) has room for {room}"
            raise ConfigError(message, field="max_connections", value=asked, limit=room)
        return cls(asked or min(_MOST, room), config.max_header_bytes, config.max_headers, config.header_timeout_s,
                   config.send_timeout_s, config.held_bytes)  # fmt: skip
