"""Whether the server lives and takes requests."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.responses import Response

from ..api_error import ApiError
from ..replies import JSONReply
from ..state import ServerState, ready_state, server_state

router = APIRouter(tags=["health"])


@router.get("/health", summary="200 when requests are taken, else 503")
@router.get("/ready", summary="As /health")
@router.head("/health", include_in_schema=False)
@router.head("/ready", include_in_schema=False)
async def health(state: Annotated[ServerState, Depends(ready_state)]) -> Response:
    """503 while starting, draining, or when a process died."""
    return JSONReply({"status": state.status.state})


@router.get("/health_generate", summary="As /health, after a sign of life from the scheduler")
async def health_generate(state: Annotated[ServerState, Depends(ready_state)]) -> Response:
    """200 if a forward, the probe's or any other, has just finished, else 503. Callers share one probe."""
    await state.probe.check()
    return JSONReply({"status": "up"})


@router.get("/ping", summary="200 when the HTTP server answers and its service is not dead")
@router.head("/ping", include_in_schema=False)
async def ping(state: Annotated[ServerState, Depends(server_state)]) -> Response:
    """For probes that must not see warm-up as a failure."""
    status = state.status
    if status.state == "dead":
        raise ApiError(503, f"dead: {status.reason}", kind="ServiceUnavailableError")
    return JSONReply({"status": status.state})
