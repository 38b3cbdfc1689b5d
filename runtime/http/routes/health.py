"""Whether the server lives and takes requests."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.responses import Response

from ...errors import EngineClosedError, QueueFullError
from ...request.sampling_params import SamplingParams
from ...service.service import PROBE_PRIORITY, GenerateInput, Service
from ..api_error import ApiError
from ..replies import JSONReply
from ..state import ServerState, ready_state, server_state

router = APIRouter(tags=["health"])
HEALTH_PROMPT_TOKEN = 1
_POLL_S = 0.05


@router.get("/health", summary="200 when requests are taken, else 503")
@router.get("/ready", summary="As /health")
@router.head("/health", include_in_schema=False)
@router.head("/ready", include_in_schema=False)
async def health(state: Annotated[ServerState, Depends(ready_state)]) -> Response:
    """503 while starting, draining, or when a process died."""
    return JSONReply({"status": state.status.state})


@router.get("/health_generate", summary="As /health, after a sign of life from the scheduler")
async def health_generate(state: Annotated[ServerState, Depends(ready_state)]) -> Response:
    """Decodes one token; 503 when neither that nor any other forward is done in time.

    A queue that is full, or long, is no failure: the probe only wants to see that work goes on. It comes behind
    everybody, so that nobody is put back for it.
    """
    service, limit = state.service, state.config.health_timeout_s
    try:
        async with asyncio.timeout(limit):
            before = (await service.stats()).nfe
            rid = f"health-{secrets.token_hex(8)}"
            probe = asyncio.create_task(decode_one_token(service, rid, priority=PROBE_PRIORITY))
            try:
                while not await _answered(probe) and (await service.stats()).nfe == before:
                    pass
            finally:
                probe.cancel()
                await asyncio.gather(probe, return_exceptions=True)
    except TimeoutError:
        message = f"neither a token nor another forward came within {limit} seconds"
        raise ApiError(503, message, kind="ServiceUnavailableError") from None
    return JSONReply({"status": "up"})


async def _answered(probe: asyncio.Task[None]) -> bool:
    """Whether the probe's token is there, after a moment at most. Raises what it raised, but for a full queue."""
    await asyncio.wait((probe,), timeout=_POLL_S)
    if not probe.done():
        return False
    if isinstance(probe.exception(), QueueFullError):
        await asyncio.sleep(_POLL_S)
        return False
    probe.result()
    return True


@router.get("/ping", summary="200 when the HTTP server answers and its service is not dead")
@router.head("/ping", include_in_schema=False)
async def ping(state: Annotated[ServerState, Depends(server_state)]) -> Response:
    """For probes that must not see warm-up as a failure."""
    status = state.status
    if status.state == "dead":
        raise ApiError(503, f"dead: {status.reason}", kind="ServiceUnavailableError")
    return JSONReply({"status": status.state})


async def decode_one_token(service: Service, rid: str, max_new_tokens: int = 1, priority: int = 0) -> None:
    """Run one tiny request that touches no cache. Raises a ShoalError when it does not end well."""
    sampling = SamplingParams(max_new_tokens=max_new_tokens, ignore_eos=True)
    prompt = [min(HEALTH_PROMPT_TOKEN, service.info.vocab_size - 1)] * 2
    item = GenerateInput(rid=rid, prompt=prompt, sampling=sampling, cache_mode="none", priority=priority, stream=False)
    async with aclosing(service.generate(item)) as outputs:
        async for output in outputs:
            if output.error is not None:
                raise output.error
            if output.finish_reason in ("stop", "length"):
                return
    raise EngineClosedError("the request was ended before its token came")
