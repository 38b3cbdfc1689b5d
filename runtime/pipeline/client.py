"""`PipelineClient`: the Service over processes; lives in the HTTP server's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

import zmq

from ..birthplace import Birthplace
from ..config import EngineConfig
from ..daemon_call import in_a_daemon
from ..errors import (
    CacheInUseError,
    EngineClosedError,
    EngineError,
    InvalidRequestError,
    QueueFullError,
    ShoalError,
    WireError,
)
from ..model.hub import resolve_model_folder
from ..request.facts import Facts
from ..request.input import GenerateInput
from ..request.output import RequestOutput
from ..service.info import ServiceInfo
from ..service.service import ServiceStatus
from .abort_lane import RETRY_SECONDS, AbortLane
from .asker import Asker
from .child import FAILED
from .config import PipelineConfig
from .errors import unpack_error
from .inbox import Inbox, Outbox
from .messages import (
    Abort,
    AbortAll,
    Begin,
    Denoised,
    Failed,
    Outputs,
    Ready,
    Refused,
    Reply,
    ToClient,
    ToTokenizer,
)
from .output_stream import OutputStream, deliver
from .processes import Pipeline, child_config, how_it_ended
from .questions import Questions
from .requests import generate_message
from .roll_call import RollCall

logger = logging.getLogger(__name__)
_GRACE_SECONDS = 1.0
_LAST_WORDS_SECONDS = 1.0


class PipelineClient(Asker):
    """Serves requests through a Pipeline that it starts and stops. See `Service` for the calls.

    When a process dies, every request in flight ends with an EngineError within a second, the other processes are
    stopped, the sockets are removed, and `closed` returns. A forked child sees it dead and can't harm the processes.

    Args:
        config: of the engine.
        options: of the pipeline.
        log_level, log_json: of the child processes, as in ServerConfig.

    Attributes:
        pipeline: the processes and their sockets; None before the start.
    """

    def __init__(
        self, config: EngineConfig, options: PipelineConfig | None = None, *, log_level: str = "info",
        log_json: bool = False,
    ):  # fmt: skip
        self.config = config
        self.options = options or PipelineConfig()
        self._log = log_level, log_json
        self._birthplace = Birthplace("pipeline")
        self._status = ServiceStatus("starting", "the processes start")
        self._info: ServiceInfo | None = None
        self.pipeline: Pipeline | None = None
        self._context: zmq.Context[Any] | None = None
        self._watched: int | None = None  # what the event loop watches of the inbox
        self._inbox: Inbox[ToClient]
        self._outbox: Outbox[ToTokenizer]
        self._numbers = itertools.count()
        self._streams: dict[str, OutputStream] = {}
        self._by_rid: dict[str, str] = {}
        self._aborts = AbortLane(lambda number: self._outbox.send_nowait(Abort(number)))
        self._questions = Questions()
        self._roll = RollCall(config.tp_size)
        self._failure: ShoalError | None = None
        self._failed = asyncio.Event()
        self._up = asyncio.Event()
        self._dead = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    # Life

    async def start(self) -> None:
        """Start the processes and wait until all are ready.

        On failure it stops them all and raises ModelLoadError, ConfigError or EngineError.
        """
        self._birthplace.check()
        try:
            folder = await in_a_daemon(lambda: resolve_model_folder(self.config.model_path))
            if self._status.state != "starting":
                raise EngineClosedError(self._status.reason)
            self.pipeline = Pipeline(child_config(self.config, folder), self.options, *self._log)
            self._context = zmq.Context()
            endpoints = self.pipeline.endpoints
            self._inbox = Inbox(endpoints, self._context, "client", ToClient)
            self._outbox = Outbox(endpoints, self._context, "tokenizer", ToTokenizer)
            loop = asyncio.get_running_loop()
            self._watched = self._inbox.fileno
            loop.add_reader(self._watched, self._read)
            self.pipeline.start()
            self._tasks.append(loop.create_task(self._watch(self.pipeline)))
            self._read()
            await self._wait_until_ready()
        except BaseException as error:
            await self._die(str(error) or type(error).__name__)
            raise
        self._tasks.append(asyncio.create_task(self._heartbeat()))

    async def _wait_until_ready(self) -> None:
        ends = [asyncio.create_task(event.wait()) for event in (self._up, self._dead)]
        try:
            await asyncio.wait(ends, timeout=self.options.startup_timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in ends:
                task.cancel()
        if self._failure is not None:
            raise self._failure
        if self._status.state == "dead":
            raise EngineError(f"the server could not start: {self._status.reason}")
        if not self._up.is_set():
            limit = self.options.startup_timeout_s
            missing = ", ".join(self._roll.missing)
            message = f"not ready after startup_timeout_s = {limit:g} seconds: {missing}"
            raise EngineError(message, field="startup_timeout_s", value=missing, limit=limit)

    @property
    def status(self) -> ServiceStatus:
        """The state at the moment."""
        return self._status if self._birthplace.is_here else ServiceStatus("dead", self._birthplace.refusal)

    @property
    def info(self) -> ServiceInfo:
        """What runs here. Raises EngineClosedError before the service is up for the first time."""
        if self._info is None:
            raise EngineClosedError(f"the server is {self._status.state}: {self._status.reason}")
        return self._info

    @property
    def facts(self) -> Facts:
        """The worker's facts. Raises EngineClosedError before the service is up for the first time."""
        if self._roll.facts is None:
            raise EngineClosedError(f"the server is {self._status.state}: {self._status.reason}")
        return self._roll.facts

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by name; empty before the start."""
        return {} if self.pipeline is None else self.pipeline.pids

    @property
    def num_in_flight(self) -> int:
        """Requests whose callers still wait."""
        return len(self._streams)

    @property
    def bad_frames(self) -> int:
        """Invalid frames that came so far; they were dropped."""
        return self._inbox.bad_frames

    async def closed(self) -> ServiceStatus:
        """Wait until the service is dead, by failure or by shutdown; its last status."""
        if self._birthplace.is_here:
            await self._dead.wait()
        return self.status

    async def shutdown(self, drain_timeout_s: float = 0.0) -> None:
        """Take no more requests, wait at most `drain_timeout_s` seconds for those in flight, end the rest, stop."""
        if not self._birthplace.is_here:
            return
        if self._status.state == "dead":
            await self._dead.wait()
            return
        self._status = ServiceStatus("draining", "the server is shutting down")
        await self._until_idle(drain_timeout_s)
        if self._streams and not self._dead.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.abort(), _GRACE_SECONDS)
            await self._until_idle(_GRACE_SECONDS)
        await self._die("the server was shut down", EngineClosedError)

    async def _until_idle(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._streams and time.monotonic() < deadline and not self._dead.is_set():
            await asyncio.sleep(min(0.02, seconds))

    async def _watch(self, pipeline: Pipeline) -> None:
        ended, failed = asyncio.ensure_future(pipeline.ended()), asyncio.ensure_future(self._failed.wait())
        try:
            await asyncio.wait((ended, failed), return_when=asyncio.FIRST_COMPLETED)
            reason = "a process can't go on"
            if ended.done():
                name, code = ended.result()
                reason = f"the {name} process ended {how_it_ended(code)}"
                if code == FAILED:  # its last message may still be in flight
                    await asyncio.wait((failed,), timeout=_LAST_WORDS_SECONDS)
            self._read()  # what has come meanwhile
        finally:
            ended.cancel()
            failed.cancel()
        if self._failure is not None:
            reason = f"{reason}: {self._failure.message}"
        if self._status.state != "starting":  # else `start` raises it
            logger.error("%s; the server stops", reason)
        await self._die(reason)

    async def _heartbeat(self) -> None:
        """Treat a process that does not answer as dead. The scheduler times the worker's forwards."""
        limit, answered = self.options.watchdog_timeout_s, time.monotonic()
        while True:
            await asyncio.sleep(limit / 4)
            try:
                await asyncio.wait_for(self._ask("alive"), limit)
                answered = time.monotonic()
            except (TimeoutError, ShoalError) as error:  # ShoalError: what they did not read has piled up
                logger.debug("heartbeat: %r", error)
            if time.monotonic() - answered >= limit:
                reason = (
                    f"tokenizer, scheduler or detokenizer did not answer for {limit:g} seconds (watchdog_timeout_s)"
                )
                logger.error("%s; the server stops", reason)
                await self._die(reason)

    async def _die(self, reason: str, kind: type[ShoalError] = EngineError) -> None:
        """Fail every caller, then stop everything. A second call waits for the first."""
        if self._status.state == "dead":
            await self._dead.wait()
            return
        self._status = ServiceStatus("dead", reason)
        for stream in self._streams.values():
            stream.fail(kind(reason))
        self._questions.close(reason)
        self._aborts.close()
        current = asyncio.current_task()
        for task in self._tasks:
            if task is not current:
                task.cancel()
        try:
            if self._watched is not None:
                asyncio.get_running_loop().remove_reader(self._watched)
            if self._context is not None:
                self._context.destroy(linger=0)
            if self.pipeline is not None:
                await self.pipeline.stop()
        finally:
            self._dead.set()

    # Requests

    async def generate(self, request: GenerateInput) -> AsyncGenerator[RequestOutput, None]:
        """Outputs of one request, cumulative; the last one is terminal. See `Service.generate`.

        A caller that is slower than the model gets fewer, larger outputs.
        """
        self._require_up()
        if request.rid in self._by_rid:
            raise InvalidRequestError(f"rid {request.rid!r} is in use", field="rid", value=request.rid)
        # A number of our own: what is left of an aborted request can't be taken for a later one of the same rid.
        number = str(next(self._numbers))
        stream = self._streams[number] = OutputStream(request.rid)
        self._by_rid[request.rid] = number
        finished = sent = False
        try:
            self._send(generate_message(number, request))
            sent = True
            while not finished:
                self._birthplace.check()
                output = await stream.next()
                finished = output.finished
                yield output
        except ShoalError:
            finished = True
            raise
        finally:
            del self._streams[number], self._by_rid[request.rid]
            if sent and not finished and self.status.state != "dead":
                self._aborts.abort(number)

    async def abort(self, rid: str | None = None) -> int:
        """End a request early, or all that the processes hold, known here or not; returns how many."""
        self._require_alive()
        if rid is not None:
            if rid in self._by_rid:
                self._aborts.abort(self._by_rid[rid])
            return int(rid in self._by_rid)
        while True:
            try:
                return int(await self._reply(AbortAll))
            except QueueFullError:
                await asyncio.sleep(RETRY_SECONDS)

    async def flush_cache(self, timeout_s: float = 0.0) -> None:
        """Drop every cached prefix. Raises CacheInUseError when requests are in flight after `timeout_s` seconds."""
        self._birthplace.check()
        await self._until_idle(timeout_s)
        if self._streams:
            message = f"flush refused: {len(self._streams)} requests are under way"
            raise CacheInUseError(message, field="flush_cache", value=len(self._streams), limit=0)
        await self._ask("flush")

    async def _reply(self, question: Callable[[int], ToTokenizer]) -> Any:
        self._require_alive()
        return await self._questions.ask(lambda number: self._send(question(number)))

    def _require_alive(self) -> None:
        self._birthplace.check()
        if self._status.state == "dead" or self._info is None:
            raise EngineClosedError(f"the server is {self._status.state}: {self._status.reason}")

    def _require_up(self) -> None:
        self._birthplace.check()
        if self._status.state != "up":
            raise EngineClosedError(f"the server is {self._status.state}: {self._status.reason}")

    def _send(self, message: ToTokenizer) -> None:
        try:
            sent = not self._aborts.is_behind and self._outbox.send_nowait(message)
        except WireError as e:
            raise InvalidRequestError(e.message, field="request", limit=e.limit) from e
        if not sent:
            raise QueueFullError("the tokenizer is too far behind: try again later", field="tokenizer")

    # What comes in

    def _read(self) -> None:
        if not self._inbox.socket.closed:
            self._inbox.drain(self._receive)

    def _receive(self, message: ToClient) -> None:
        match message:
            case Denoised() | Outputs():
                deliver(message, self._streams)
            case Refused():
                if (stream := self._streams.get(message.rid)) is not None:
                    stream.refuse(unpack_error(message.error))
            case Reply():
                self._questions.answer(message)
            case Ready():
                self._one_ready(message)
            case Failed():
                self._failure = unpack_error(message.error)
                self._failed.set()

    def _one_ready(self, message: Ready) -> None:
        self._roll.answer(message)
        facts = self._roll.facts
        if facts is None:
            return
        if message.name in ("worker", "tokenizer"):
            self._send(Begin(facts))
        if not self._roll.missing and self._status.state == "starting":
            self._info = self._roll.info(self.config, facts)
            self._status = ServiceStatus("up")
            self._up.set()
