"""State that the routes of one server share: service, options, metrics, and whether it takes requests."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from dataclasses import dataclass, field

from fastapi import Request

from ..cpu_tuning import return_freed_memory
from ..request.stats import SchedulerStats
from ..service.service import Service, ServiceStatus
from .api_error import ApiError
from .config import ServerConfig
from .generation import Generations
from .metrics import Metrics
from .probe import SharedProbe

IS_ADMIN = "shoal.is_admin"
"""Key of a request's ASGI scope: whether it has the admin key."""
_ANSWER_S = 10.0
_RETURN_MEMORY_S = 1.0


@dataclass(slots=True)
class ServerState:
    """One server.

    Attributes:
        warm: the warm-up request is done.
        draining: the server is about to end; requests in flight go on.
        started: wall-clock seconds since the epoch, for `created` fields.
        large_bodies: held by the request whose large body is being parsed.
        digest_key: key of the digests that replace salts; a plain hash of a tenant's name could be guessed.
        probe: of /health_generate.
    """

    service: Service
    config: ServerConfig
    metrics: Metrics
    generations: Generations
    warm: bool = False
    draining: bool = False
    started: float = field(default_factory=time.time)
    large_bodies: asyncio.Lock = field(default_factory=asyncio.Lock)
    digest_key: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    probe: SharedProbe = field(init=False)
    _returning: asyncio.TimerHandle | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.probe = SharedProbe(self.service, self.config.health_timeout_s, self.config.health_interval_s)

    @property
    def status(self) -> ServiceStatus:
        """The service's state, or the server's own reason not to take requests."""
        status = self.service.status
        if status.state == "up" and self.draining:
            return ServiceStatus("draining", "the server is shutting down")
        if status.state == "up" and not self.warm:
            return ServiceStatus("starting", "the server is warming up")
        return status

    async def stats(self) -> SchedulerStats:
        """The scheduler's numbers. Raises ApiError (503) when it does not answer soon, or EngineClosedError."""
        try:
            return await asyncio.wait_for(self.service.stats(), _ANSWER_S)
        except TimeoutError:
            message = f"the scheduler did not answer within {_ANSWER_S} seconds"
            raise ApiError(503, message, kind="ServiceUnavailableError") from None

    def require_up(self) -> None:
        """Raise ApiError (503) unless requests are taken."""
        status = self.status
        if status.state != "up":
            raise ApiError(503, f"{status.state}: {status.reason}", kind="ServiceUnavailableError", code=status.state)

    def return_memory_soon(self) -> None:
        """Return freed memory to the system, once for all large bodies that end within a second."""
        if self._returning is None:
            self._returning = asyncio.get_running_loop().call_later(_RETURN_MEMORY_S, self._return_memory)

    def _return_memory(self) -> None:
        self._returning = None
        return_freed_memory()

    @property
    def model_name(self) -> str:
        """The name of the model in the OpenAI routes."""
        return self.config.served_model_name or self.service.info.model_path

    @property
    def processes(self) -> dict[str, int]:
        """Process ids by role: `http`, and the service's own where it has any."""
        return {"http": os.getpid(), **getattr(self.service, "pids", {})}

    @property
    def at_a_time(self) -> int:
        """Answers of one request that the scheduler holds at a time: as many as may run, so that others do not wait for
        a whole batch.
        """
        return int(self.service.info.engine["max_running_requests"])

    @property
    def default_cache_mode(self) -> str:
        """The cache mode of requests that name none."""
        return str(self.service.info.engine["cache_mode"])


def is_admin(request: Request) -> bool:
    """Whether the request came with the admin key; never on a server without one."""
    return bool(request.scope.get(IS_ADMIN))


def server_state(request: Request) -> ServerState:
    """The state of the server that a request came to (a FastAPI dependency)."""
    state: ServerState = request.app.state.server
    return state


def ready_state(request: Request) -> ServerState:
    """As `server_state`; ApiError (503) unless requests are taken."""
    state = server_state(request)
    state.require_up()
    return state
