"""Builds the Serve application: deployments with their resources, health checks, scaling and routers."""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.schema import LoggingConfig

from .config import Arguments
from .gateway import REPLICAS, Gateway
from .replica import Replica

_GATEWAY_REQUESTS = 4096
_SHUTDOWN_MARGIN_S = 10.0
_HEALTH_PERIOD_S, _HEALTH_TIMEOUT_S = 5.0, 30.0
_ROUND_ROBIN = "ray.serve.experimental.round_robin_router:RoundRobinRouter"


def build(args: dict[str, Any]) -> Any:
    """See `shoal.serve_ray.app`."""
    arguments = Arguments.of(args)
    ray, drain = arguments.ray, arguments.server.drain_timeout_s
    common = {
        "health_check_period_s": _HEALTH_PERIOD_S, "health_check_timeout_s": _HEALTH_TIMEOUT_S,
        "logging_config": LoggingConfig(enable_access_log=False),  # the gateway's application writes its own
    }  # fmt: skip
    replica = serve.deployment(
        Replica,
        name=REPLICAS,
        ray_actor_options={"num_cpus": ray.replica_cpus, "num_gpus": arguments.num_gpus},
        max_ongoing_requests=arguments.max_ongoing_requests,
        max_queued_requests=ray.max_waiting_requests,
        graceful_shutdown_timeout_s=drain + _SHUTDOWN_MARGIN_S,
        request_router_config=_router(arguments),
        **_number(arguments),
        **common,
    )
    gateway = serve.deployment(
        serve.ingress()(Gateway),
        name="Gateway",
        num_replicas=ray.num_gateways,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=_GATEWAY_REQUESTS,
        graceful_shutdown_timeout_s=drain + _SHUTDOWN_MARGIN_S,
        **common,
    )
    return gateway.bind(arguments, replica.bind(arguments))


def _number(arguments: Arguments) -> dict[str, Any]:
    """How many replicas."""
    ray = arguments.ray
    if ray.max_replicas is None:
        return {"num_replicas": ray.num_replicas}
    scaling = AutoscalingConfig(
        min_replicas=ray.num_replicas,
        max_replicas=ray.max_replicas,
        target_ongoing_requests=ray.target_ongoing_requests or arguments.engine.max_running_requests,
        upscale_delay_s=ray.upscale_delay_s,
        downscale_delay_s=ray.downscale_delay_s,
    )
    return {"autoscaling_config": scaling}


def _router(arguments: Arguments) -> RequestRouterConfig:
    ray = arguments.ray
    if ray.router == "power_of_two":
        return RequestRouterConfig()
    if ray.router == "round_robin":
        return RequestRouterConfig(request_router_class=_ROUND_ROBIN)
    return RequestRouterConfig(
        request_router_class="shoal.serve_ray.router:PrefixRouter",
        request_router_kwargs={"balance_abs": ray.balance_abs, "balance_rel": ray.balance_rel},
        request_routing_stats_period_s=ray.summary_period_s,
    )
