"""The cache, aborts, and what only an operator should reach."""

from __future__ import annotations

import math
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from fastapi.responses import PlainTextResponse, Response

from .errors import ApiError, bad_request
from .replies import JSONReply
from .schemas import AbortBody
from .state import ServerState, ready_state, server_state

router = APIRouter(tags=["administration"])
_MAX_WAIT_S = 600.0


@router.post("/flush_cache", summary="Drop every cached prefix", response_class=PlainTextResponse)
@router.get("/flush_cache", include_in_schema=False)
async def flush_cache(
    state: Annotated[ServerState, Depends(ready_state)],
    timeout: Annotated[float, Query(description="Seconds to wait for requests under way to end.")] = 0.0,
) -> Response:
    """400, and nothing dropped, when requests are still under way after `timeout` seconds."""
    if not math.isfinite(timeout) or not 0 <= timeout <= _MAX_WAIT_S:
        raise bad_request("timeout", f"timeout is {timeout}; it must be from 0 to {_MAX_WAIT_S}")
    await state.service.flush_cache(timeout)
    return PlainTextResponse("Cache flushed.\n")


@router.post("/abort_request", summary="End requests early")
async def abort_request(body: AbortBody, state: Annotated[ServerState, Depends(server_state)]) -> Response:
    """End the request with id `rid` (with all its prompts and answers), or all of them with `abort_all`.

    An id that is not under way is no error: the request may just have ended.
    """
    if body.abort_all:
        return JSONReply({"aborted": await state.service.abort(None)})
    if not body.rid:
        raise bad_request("rid", "rid must be the id of a request, unless abort_all is true")
    return JSONReply({"aborted": await state.generations.abort(body.rid)})


@router.get("/cache", summary="The radix tree")
async def cache(state: Annotated[ServerState, Depends(ready_state)]) -> Response:
    """Its nodes with their first tokens, depth, ratio, pages and hits, and its totals."""
    return JSONReply(await state.service.cache_snapshot())


@router.api_route("/start_profile", methods=["GET", "POST"], include_in_schema=False)
@router.api_route("/stop_profile", methods=["GET", "POST"], include_in_schema=False)
async def profile() -> Response:
    """Not part of this version."""
    raise ApiError(501, "profiling over HTTP is not part of this version", kind="NotImplementedError")
