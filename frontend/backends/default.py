"""The default backend, and the choice of a backend for what a program is given."""

from __future__ import annotations

from typing import Any, cast

from ...runtime.errors import shorten
from .. import driver
from ..backend import Backend
from ..errors import NoBackendError

_default: Backend | None = None


def set_default_backend(backend: Any) -> None:
    """Set the default backend: an Engine, a server's URL, or a backend; None removes it."""
    global _default
    _default = None if backend is None else as_backend(backend)


def as_backend(backend: Any = None) -> Backend:
    """The backend for an Engine, a URL or a backend; for None the default. Raises NoBackendError."""
    if backend is None:
        if _default is None:
            message = "no backend: give backend=, or call shoal.set_default_backend with an Engine or a server's URL"
            raise NoBackendError(message, field="backend")
        return _default
    if isinstance(backend, str):
        from .http import HTTPBackend

        return HTTPBackend(backend)
    if hasattr(backend, "async_generate") and hasattr(backend, "async_score"):
        from .engine import EngineBackend

        return EngineBackend(backend)
    if not hasattr(backend, "generate") or not hasattr(backend, "markers"):
        message = f"backend is {shorten(backend)}; it must be an Engine, a server's URL, or a backend"
        raise NoBackendError(message, field="backend", value=backend)
    return cast(Backend, backend)


def flush_cache(backend: Any = None) -> None:
    """Drop every cached prefix of a backend."""
    driver.run(as_backend(backend).flush_cache())


def get_server_info(backend: Any = None) -> dict[str, Any]:
    """Facts of a backend's server or engine, as `Backend.server_info` returns them."""
    return driver.run(as_backend(backend).server_info())
