"""A probe of the scheduler: one small request, shared by all callers."""

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
    """At most one probe at a time and one per interval, however many callers there are, since it needs no key.

    Args:
        service: to probe.
        limit_s: seconds after which a probe has failed.
        interval_s: seconds for which later callers get its result, good or bad.
    """

    def __init__(self, service: Service, limit_s: float, interval_s: float):
        self._service = service
        self._limit_s = limit_s
        self._interval_s = interval_s
        self._latest: asyncio.Task[None] | None = None
        self._ended = 0.0

    async def check(self) -> None:
        """Return once a forward has finished. Raises ApiError (503) if none did in time, or the probe's error."""
        if self._latest is None or (self._latest.done() and time.monotonic() - self._ended >= self._interval_s):
            self._latest = asyncio.create_task(self._probe())
            self._latest.add_done_callback(self._done)
        await asyncio.shield(self._latest)  # a caller that leaves does not end it for the others

    def _done(self, task: asyncio.Task[None]) -> None:
        self._ended = time.monotonic()
        if not task.cancelled():
            task.exception()  # mark its error as retrieved, also when all callers have left

    async def _probe(self) -> None:
        """Decode one token; return when that or any other forward has finished.

        A full or long queue is no failure, as long as work goes on. The probe's priority is below every client's, so it
        never preempts.
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
    """Whether the token has come, after a short wait. Raises its request's error, except for a full queue."""
    await asyncio.wait((token,), timeout=_POLL_S)
    if not token.done():
        return False
    if isinstance(token.exception(), QueueFullError):
        await asyncio.sleep(_POLL_S)
        return False
    token.result()
    return True


async def decode_one_token(service: Service, rid: str, max_new_tokens: int = 1, priority: int = 0) -> None:
    """Run one tiny request that touches no cache. Raises a ShoalError if it fails."""
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
