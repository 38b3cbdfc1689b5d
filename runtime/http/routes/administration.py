"""The cache, aborts and traces: routes for operators."""

from __future__ import annotations

import hmac
import math
import os
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import PlainTextResponse, Response

from ...request.trace_options import TraceOptions
from ..api_error import ApiError, bad_request
from ..batch import check_unicode
from ..field_table import ABORT, PROFILE
from ..fields import check_fields
from ..json_body import JSONBodyRoute
from ..replies import JSONReply
from ..schemas import AbortBody, ProfileBody
from ..state import ServerState, is_admin, ready_state, server_state
from ..wording import shown

router = APIRouter(tags=["administration"], route_class=JSONBodyRoute)
_MAX_WAIT_S = 600.0


@router.post("/flush_cache", summary="Drop every cached prefix", response_class=PlainTextResponse)
async def flush_cache(
    state: Annotated[ServerState, Depends(ready_state)],
    timeout: Annotated[float, Query(description="Seconds to wait for requests in flight to end.")] = 0.0,
) -> Response:
    """400, and nothing is dropped, if requests are still in flight after `timeout` seconds."""
    if not math.isfinite(timeout) or not 0 <= timeout <= _MAX_WAIT_S:
        raise bad_request("timeout", f"timeout is {timeout}; it must be from 0 to {_MAX_WAIT_S}")
    await state.service.flush_cache(timeout)
    return PlainTextResponse("Cache flushed.\n")


@router.post("/abort_request", summary="End requests early")
async def abort_request(body: AbortBody, state: Annotated[ServerState, Depends(server_state)]) -> Response:
    """End the request with id `rid` (with all its prompts and answers), or all of them with `abort_all`.

    An unknown id is no error: the request may just have ended.
    """
    check_fields(ABORT, body.fields())
    if body.abort_all:
        return JSONReply({"aborted": await state.generations.abort_all()})
    if not body.rid:
        raise bad_request("rid", "rid must be the id of a request, unless abort_all is true")
    return JSONReply({"aborted": await state.generations.abort(body.rid)})


@router.get("/cache", summary="The radix tree")
async def cache(request: Request, state: Annotated[ServerState, Depends(ready_state)]) -> Response:
    """Its nodes with their depth, ratio, pages and hits, and its totals.

    Salts show as digests that stay the same while this server runs. The nodes' first tokens show only on a server with
    an admin key, since other clients sent them.
    """
    snapshot = await state.service.cache_snapshot()
    return JSONReply(_without_secrets(snapshot, state.digest_key, tokens=is_admin(request)))


@router.post("/start_profile", summary="Record what the worker does")
async def start_profile(
    state: Annotated[ServerState, Depends(ready_state)], body: ProfileBody | None = None
) -> Response:
    """Record a trace for chrome://tracing or Perfetto in the worker's process, which goes on serving.

    `path` is its file, written on /stop_profile or after `num_steps`. 400 if one is being recorded.
    """
    body = body or ProfileBody()
    check_fields(PROFILE, body.fields())
    for name in ("start_step", "profile_by_stage"):
        if getattr(body, name):
            message = f"{name} is {shown(getattr(body, name))}, which is not supported; leave it out"
            raise ApiError(400, message, param=name, code="unsupported_parameter")
    values = {name: getattr(body, name) for name in ("num_steps", "activities", "with_stack", "record_shapes")}
    given = {name: value for name, value in values.items() if value is not None}
    if "activities" in given:
        given["activities"] = tuple(given["activities"])
    options = TraceOptions(output_dir=_trace_folder(state, body.output_dir), **given)
    return JSONReply({"profiling": True, "path": await state.service.start_profile(options)})


@router.post("/stop_profile", summary="End the recording and write it")
async def stop_profile(state: Annotated[ServerState, Depends(server_state)]) -> Response:
    """`path` is the trace's file. Takes seconds; 400 if none is being recorded (it may have ended by itself)."""
    return JSONReply({"profiling": False, "path": await state.service.stop_profile()})


def _without_secrets(snapshot: dict[str, Any], key: bytes, *, tokens: bool) -> dict[str, Any]:
    """The snapshot, changed in place: salts become digests under `key`; the nodes' tokens stay only with `tokens`."""
    for namespace in snapshot["namespaces"]:
        salt = namespace["salt"].encode("utf-8", "surrogatepass")
        namespace["salt"] = hmac.new(key, salt, "sha256").hexdigest()[:16] if salt else ""
        left = [] if tokens else list(namespace["nodes"])
        while left:
            node = left.pop()
            del node["first_tokens"]
            left += node["children"]
    return snapshot


def _trace_folder(state: ServerState, asked: str | None) -> str:
    """The absolute folder. Without an API key, traces may only go inside --profile-dir."""
    config = state.config
    base = None if config.profile_dir is None else os.path.realpath(config.profile_dir)
    if asked is None:
        if base is None:
            message = "output_dir is missing: name a folder, or start the server with --profile-dir"
            raise bad_request("output_dir", message)
        return base
    if not asked or "\0" in asked:
        raise bad_request("output_dir", f"output_dir is {shown(asked)}; it must be a path")
    check_unicode("output_dir", asked)
    folder = os.path.realpath(os.path.join(base or os.getcwd(), asked))
    inside = base is not None and os.path.commonpath((base, folder)) == base
    if not inside and config.admin_api_key is None and config.api_key is None:
        message = "output_dir is outside of --profile-dir, and no key guards this server: set one (--admin-api-key)"
        raise bad_request("output_dir", message)
    return folder
