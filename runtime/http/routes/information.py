"""The model, the options, the load and the metrics."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from ...errors import EngineClosedError
from ...request.stats import SchedulerStats
from ..api_error import ApiError
from ..defaults import Defaults
from ..replies import JSONReply
from ..state import ServerState, ready_state, server_state

router = APIRouter(tags=["information"])
Ready = Annotated[ServerState, Depends(ready_state)]
_SECRETS = ("api_key", "admin_api_key")


@router.get("/model_info", summary="The model")
@router.get("/get_model_info", include_in_schema=False)
async def model_info(state: Annotated[ServerState, Depends(server_state)]) -> Response:
    """What clients need to know about the model and its tokenizer."""
    info = state.service.info
    return JSONReply(
        {
            "model_path": info.model_path,
            "tokenizer_path": info.model_folder,
            "served_model_name": state.model_name,
            "is_generation": True,
            "preferred_sampling_params": None,
            "weight_version": "default",
            "has_image_understanding": False,
            "has_audio_understanding": False,
            "model_type": info.model.get("model_type", info.architecture),
            "architectures": info.model.get("architectures", [info.architecture]),
            "architecture": info.architecture,
            "num_layers": info.model["num_layers"],
            "max_model_len": info.max_tokens,
            "block_length": info.block_length,
            "vocab_size": info.vocab_size,
            "mask_token_id": info.mask_token_id,
            "eos_token_id": info.eos_token_id,
            "stop_token_ids": info.stop_token_ids,
            "has_chat_template": info.has_chat_template,
            "chat_markers": info.chat_markers,
            "depth_profile": info.depth_profile,
        }
    )


@router.get("/server_info", summary="Options and state of the server")
@router.get("/get_server_info", include_in_schema=False)
async def server_info(state: Ready) -> Response:
    """Every option of engine and server except the keys, the model, and the scheduler's numbers."""
    info, stats = state.service.info, await state.stats()
    server = {name: value for name, value in asdict(state.config).items() if name not in _SECRETS}
    return JSONReply(
        {
            **info.engine,
            **server,
            "served_model_name": state.model_name,
            "default_sampling_params": Defaults.of(state.config, info).shown(info),
            "tokenizer_path": info.model_folder,
            "max_total_num_tokens": stats.capacity_tokens,
            "max_req_input_len": info.max_tokens,
            "dp_size": 1,
            "startup_time": state.started,
            "processes": state.processes,
            "version": info.version,
            "status": state.status.state,
            "internal_states": [
                {
                    "last_gen_throughput": stats.gen_throughput,
                    "memory_usage": {"token_capacity": stats.capacity_tokens, "token_usage": stats.token_usage},
                    **asdict(stats),
                }
            ],
        }
    )


@router.get("/v1/loads", summary="Requests and tokens in flight")
async def loads(state: Ready) -> Response:
    """Load of the one worker."""
    stats = await state.stats()
    load = {
        "dp_rank": 0,
        "num_running_reqs": stats.running,
        "num_waiting_reqs": stats.waiting,
        "num_total_reqs": stats.running + stats.waiting,
        "num_used_tokens": _used_tokens(stats),
        "max_total_num_tokens": stats.capacity_tokens,
        "token_usage": stats.token_usage,
        "gen_throughput": stats.gen_throughput,
        "cache_hit_rate": stats.cache_hit_tokens / max(1, stats.cache_query_tokens),
    }
    return JSONReply({"timestamp": time.time(), "dp_rank_count": 1, "loads": [load]})


@router.get("/get_load", include_in_schema=False)
async def get_load(state: Ready) -> Response:
    """The form that routers read."""
    stats = await state.stats()
    load = {
        "dp_rank": 0,
        "num_reqs": stats.running + stats.waiting,
        "num_waiting_reqs": stats.waiting,
        "num_tokens": _used_tokens(stats),
    }
    return JSONReply([load])


@router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
async def metrics(state: Annotated[ServerState, Depends(server_state)]) -> Response:
    """The text exposition; without the scheduler's numbers if no scheduler answers."""
    try:
        stats: SchedulerStats | None = await state.stats()
    except (EngineClosedError, ApiError):
        stats = None
    return Response(state.metrics.render(stats), media_type=CONTENT_TYPE_LATEST)


def _used_tokens(stats: SchedulerStats) -> Any:
    return round(stats.token_usage * stats.capacity_tokens)
