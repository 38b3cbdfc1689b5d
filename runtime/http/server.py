"""The life of a server: listen, load, warm up, serve, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, Protocol

import uvicorn

from ..errors import ConfigError, EngineClosedError, ModelLoadError, ShoalError
from ..service.service import Service
from .app import create_app
from .config import ServerConfig
from .connection import Connection
from .connection_limits import ConnectionLimits
from .gate import Gate
from .probe import decode_one_token
from .state import ServerState

logger = logging.getLogger(__name__)
EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
READY = "The server is fired up and ready to roll!"
_WARMUP_TOKENS = 8
_LAST_REPLIES_S = 5
_LAST_WORDS_S = 1.0


class StartableService(Service, Protocol):
    """A service that is not running yet."""

    async def start(self) -> None:
        """Get ready to serve. Raises a ShoalError if that fails."""
        ...


async def serve(service: StartableService, config: ServerConfig, model_name: str) -> int:
    """Serve until SIGTERM, SIGINT or the service's death; the exit code of the process.

    It listens at once and answers 503 until the warm-up is done. On a signal it takes no more requests, lets those in
    flight finish for up to `drain_timeout_s`, ends the rest and stops; a second signal cuts the wait short.
    """
    signals = _Signals()
    gate = Gate(ConnectionLimits.of(config))
    listener = listen(config.host, config.port)
    logger.info("Listening on %s, ready when the model is", _address(listener))
    app = create_app(service, config, config.served_model_name or model_name)
    state: ServerState = app.state.server
    http = _Server(
        uvicorn.Config(
            app, lifespan="off", log_config=None, access_log=False, server_header=False, ws="none",
            http=partial(Connection, gate),  # type: ignore[arg-type]
            timeout_keep_alive=config.keep_alive_s, timeout_graceful_shutdown=_LAST_REPLIES_S,
        ),
        gate,
    )  # fmt: skip
    serving = asyncio.create_task(http.serve(sockets=[listener]))
    starting = asyncio.create_task(_start(service, state, listener))
    dead = asyncio.create_task(service.closed())
    told = asyncio.create_task(signals.first.wait())
    code = EXIT_OK
    try:
        await asyncio.wait((dead, told, serving), return_when=asyncio.FIRST_COMPLETED)
        if told.done():
            await _drain(state, signals, starting)
        else:
            code = EXIT_FAILED
            if (refusal := await _refusal(starting)) is not None:
                code = EXIT_USAGE if isinstance(refusal, ConfigError | ModelLoadError) else EXIT_FAILED
            else:
                logger.error("The server stops: %s", dead.result().reason if dead.done() else "the HTTP server stopped")
            if not serving.done() and state.warm:
                await asyncio.sleep(_LAST_WORDS_S)  # clients get a 503 now, not a closed port
        starting.cancel()
        await service.shutdown(0.0)
    finally:
        for task in (starting, dead, told):
            task.cancel()
        http.should_exit = True
        results = await asyncio.gather(starting, dead, told, serving, return_exceptions=True)
        signals.close()
        listener.close()
    return EXIT_FAILED if isinstance(results[-1], Exception) else code


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ConfigError if the address is unavailable."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # A name like localhost has addresses of both kinds, and most clients try the IPv4 one.
        family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"host is {host!r}: {error}", field="host", value=host, limit="an address here") from error
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        message = f"port is {port}: can't listen on {host}: {error.strerror}"
        raise ConfigError(message, field="port", value=port, limit="a free port") from error
    listener.setblocking(False)
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _start(service: StartableService, state: ServerState, listener: socket.socket) -> ShoalError | None:
    """Get ready; returns the error, after logging it, if that fails."""
    begin = time.monotonic()
    try:
        await service.start()
        state.config.check_for(service.info.max_tokens)
        if not state.config.skip_warmup:
            await decode_one_token(service, "warm-up", _WARMUP_TOKENS)
    except ShoalError as error:
        logger.error("The server can't start: %s", error.message)
        await service.shutdown(0.0)
        return error
    except Exception:
        logger.exception("The server can't start")
        await service.shutdown(0.0)
        return None
    state.warm = True
    logger.info("%s serves on %s after %.1f s", state.model_name, _address(listener), time.monotonic() - begin)
    logger.info(READY)
    return None


async def _refusal(starting: asyncio.Task[ShoalError | None]) -> ShoalError | None:
    """Why the start failed, once the service is dead; None if it had succeeded or gives no reason."""
    done, _ = await asyncio.wait((starting,), timeout=_LAST_WORDS_S)
    return starting.result() if done else None


async def _drain(state: ServerState, signals: _Signals, starting: asyncio.Task[ShoalError | None]) -> None:
    state.draining = True
    limit = state.config.drain_timeout_s
    active = state.generations.num_active
    logger.info("Draining: %d requests in flight get up to %.0f s", active, limit)
    deadline = time.monotonic() + limit
    while state.generations.num_active and time.monotonic() < deadline and not signals.second.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(signals.second.wait(), 0.05)
    left = state.generations.num_active
    if left:
        logger.warning("Ending %d requests that are still in flight", left)
    state.generations.end(
        EngineClosedError("the server is shutting down; send the request again, or to another server")
    )


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, which checks its connections once a second."""

    def __init__(self, config: uvicorn.Config, gate: Gate):
        super().__init__(config)
        self._gate = gate

    async def on_tick(self, counter: int) -> bool:
        """See uvicorn.Server: called ten times a second."""
        if counter % 10 == 0:
            connections: set[Any] = self.server_state.connections
            self._gate.check(connections, asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Signals:
    """SIGTERM and SIGINT: the first starts draining, the second ends it."""

    _KINDS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        for kind in self._KINDS:
            self._loop.add_signal_handler(kind, self._got)

    def _got(self) -> None:
        (self.second if self.first.is_set() else self.first).set()

    def close(self) -> None:
        """Ignore them from now on: the process is about to end with its exit code."""
        for kind in self._KINDS:
            self._loop.remove_signal_handler(kind)
            signal.signal(kind, signal.SIG_IGN)


def run_server(service: Any, config: ServerConfig, model_name: str) -> int:
    """`serve` in an event loop of its own (uvloop where it is installed)."""
    try:
        from uvloop import new_event_loop as factory
    except ImportError:
        factory = asyncio.new_event_loop  # type: ignore[assignment]
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(serve(service, config, model_name))
