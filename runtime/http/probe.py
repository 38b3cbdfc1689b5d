"""A sign of life from the scheduler: one small request, shared by all who ask."""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import aclosing

from ..errors import EngineClosedError, QueueFullError
from ..request.input import GenerateInput
from ..request.sampling_params import SamplingParams
from ..service.service import PROBE_PRIORITY, Service
from .api_error import ApiError

_PROMPT_TOKEN = 1
_POLL_S = 0.05


class SharedProbe:
    """At most one probe at a time, and at most one an interval, however many ask: it needs no key.

    Args:
        service: what is probed.
        limit_s: seconds after which a probe has failed.
        interval_s: seconds for which its result, good or bad, is given to those who ask later.
    """

    def __init__(self, service: Service, limit_s: float, interval_s: float):
        self._service = service
        self._limit_s = limit_s
        self._interval_s = interval_s
        self._latest: asyncio.Task[None] | None = None
        self._ended = 0.0

    async def check(self) -> None:
        """Return after a sign of life. Raises ApiError (503) when there was none in time, or what the probe raised."""
        if self._latest is None or (self._latest.done() and time.monotonic() - self._ended >= self._interval_s):
            self._latest = asyncio.create_task(self._probe())
            self._latest.add_done_callback(self._done)
        await asyncio.shield(self._latest)  # one who leaves does not end it for the others

    def _done(self, task: asyncio.Task[None]) -> None:
        self._ended = time.monotonic()
        if not task.cancelled():
            task.exception()  # it was seen, also when everybody has left

    async def _probe(self) -> None:
        """Decode one token, until that or any other forward is done.

        A queue that is full, or long, is no failure: the probe only wants to see that work goes on. Its priority is
        below every client's, so it never preempts.
        """
        service = self._service
        try:
            async with asyncio.timeout(self._limit_s):
                before = (await service.stats()).nfe
                rid = f"health-{secrets.token_hex(8)}"
                token = asyncio.create_task(decode_one_token(service, rid, priority=PROBE_PRIORITY))
                try:
                    while not await _answered(token) and (await service.stats()).nfe == before:
                        pass
                finally:
                    token.cancel()
                    await asyncio.gather(token, return_exceptions=True)
        except TimeoutError:
            message = f"neither a token nor another forward came within {self._limit_s} seconds"
            raise ApiError(503, message, kind="ServiceUnavailableError") from None


async def _answered(token: asyncio.Task[None]) -> bool:
    """Whether the token is there, after a moment at most. Raises what its request raised, but for a full queue."""
    await asyncio.wait((token,), timeout=_POLL_S)
    if not token.done():
        return False
    if isinstance(token.exception(), QueueFullError):
        await asyncio.sleep(_POLL_S)
        return False
    token.result()
    return True


async def decode_one_token(service: Service, rid: str, max_new_tokens: int = 1, priority: int = 0) -> None:
    """Run one tiny request that touches no cache. Raises a ShoalError when it does not end well."""
    sampling = SamplingParams(max_new_tokens=max_new_tokens, ignore_eos=True)
    prompt = [min(_PROMPT_TOKEN, service.info.vocab_size - 1)] * 2
    item = GenerateInput(rid=rid, prompt=prompt, sampling=sampling, cache_mode="none", priority=priority, stream=False)
    async with aclosing(service.generate(item)) as outputs:
        async for output in outputs:
            if output.error is not None:
                raise output.error
            if output.finish_reason in ("stop", "length"):
                return
    raise EngineClosedError("the request was ended before its token came")
