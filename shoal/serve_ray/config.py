"""Options of shoal on Ray Serve, and all options from the `args` of a Serve configuration file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

from ..idle_flags import Options, check_idle_flags
from ..runtime.checks import OPTION
from ..runtime.config import EngineConfig
from ..runtime.errors import ConfigError
from ..runtime.http.config import ServerConfig
from ..runtime.nearest_name import did_you_mean
from ..runtime.pipeline.config import PipelineConfig

RayRouter = Literal["prefix", "power_of_two", "round_robin"]
_CONNECTIONS = "Ray's proxy owns the connections (http_options of the Serve configuration)"
_NO_EFFECT = {
    **dict.fromkeys(("host", "port", "keep_alive_s", "max_connections", "max_header_bytes", "max_headers",
                     "header_timeout_s", "send_timeout_s"), _CONNECTIONS),
    "profile_dir": "replicas record no traces on Ray",
    "api_key": "the environment has it (SHOAL_API_KEY): configurations of Ray are stored and shown",
    "admin_api_key": "the environment has it (SHOAL_ADMIN_API_KEY): configurations of Ray are stored and shown",
}  # fmt: skip

_SCALING = ("target_ongoing_requests", "upscale_delay_s", "downscale_delay_s")
_PREFIX = ("balance_abs", "balance_rel", "summary_period_s", "summary_stride", "summary_limit")


@dataclass(frozen=True, slots=True, kw_only=True)
class RayConfig:
    """Options of replicas on Ray Serve. Raises ConfigError, naming the field, for values out of range.

    Attributes:
        num_replicas: replicas of the model; with `max_replicas` the fewest.
        max_replicas: most replicas: their number follows the requests in flight. None: it is constant.
        target_ongoing_requests: requests in flight for each replica that autoscaling aims at. None:
            max_running_requests.
        upscale_delay_s: seconds for which more replicas must have been wanted before some are added.
        downscale_delay_s: seconds for which fewer must have been wanted before some are removed.
        num_gateways: processes that take HTTP requests and tokenize.
        replica_cpus: cores that Ray reserves for a replica; on a CPU device also its threads.
        max_ongoing_requests: requests that a replica holds at a time, running and waiting; the rest waits in the
            gateways. None: twice max_running_requests.
        max_waiting_requests: requests that may wait in a gateway for a replica with room; more are refused (503).
        router: how a gateway chooses a replica: `prefix` (the one that holds the longest prefix of the prompt, unless
            it is overloaded), or Ray's own `power_of_two` and `round_robin`.
        balance_abs, balance_rel: a replica is overloaded if it has both more than `balance_abs` requests above the
            least loaded one and more than `balance_rel` times as many.
        summary_period_s: seconds between two summaries of a replica's tree.
        summary_stride: tokens between the prefixes that a summary names: what it can't see of a prefix is less than
            that.
        summary_limit: most prefixes in a summary, of 8 bytes each.
    """

    num_replicas: int = 1
    max_replicas: int | None = None
    target_ongoing_requests: float | None = None
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    num_gateways: int = 1
    replica_cpus: float = 1.0
    max_ongoing_requests: int | None = None
    max_waiting_requests: int = 1024
    router: RayRouter = "prefix"
    balance_abs: int = 8
    balance_rel: float = 1.5
    summary_period_s: float = 5.0
    summary_stride: int = 64
    summary_limit: int = 2048

    def __post_init__(self) -> None:
        for name in ("num_replicas", "num_gateways", "max_waiting_requests", "summary_stride"):
            OPTION.integer(name, getattr(self, name), 1)
        OPTION.integer("summary_limit", self.summary_limit, 1, 1 << 17)
        OPTION.integer("balance_abs", self.balance_abs, 0)
        OPTION.number("balance_rel", self.balance_rel, 1)
        OPTION.number("replica_cpus", self.replica_cpus, 0)
        if self.max_replicas is not None:
            OPTION.integer("max_replicas", self.max_replicas, self.num_replicas)
        if self.max_ongoing_requests is not None:
            OPTION.integer("max_ongoing_requests", self.max_ongoing_requests, 1)
        if self.target_ongoing_requests is not None:
            OPTION.number("target_ongoing_requests", self.target_ongoing_requests, 0, above=True)
        for name in ("upscale_delay_s", "downscale_delay_s"):
            OPTION.number(name, getattr(self, name), 0, of="seconds")
        OPTION.number("summary_period_s", self.summary_period_s, 0, above=True, of="seconds")
        OPTION.one_of("router", self.router, get_args(RayRouter))


@dataclass(frozen=True, slots=True)
class Arguments:
    """All options of the application."""

    engine: EngineConfig
    pipeline: PipelineConfig
    server: ServerConfig
    ray: RayConfig

    @classmethod
    def of(cls, args: Mapping[str, Any]) -> Arguments:
        """From names and values. Raises ConfigError, naming the field, for an unknown name, an option that has no
        effect on Ray, and a value out of range.
        """
        kinds = (EngineConfig, PipelineConfig, ServerConfig, RayConfig)
        known = {field.name: kind for kind in kinds for field in fields(kind)}
        for name in args:
            if name not in known:
                message = f"unknown argument {name!r}{did_you_mean(name, known)}"
                raise ConfigError(message, field=name, value=args[name], limit="a field of the configuration")
            if name in _NO_EFFECT:
                message = f"{name} can't be set on Ray: {_NO_EFFECT[name]}; leave it out"
                raise ConfigError(message, field=name, limit="not on Ray")
            if get_type_hints(known[name])[name] is bool:
                OPTION.flag(name, args[name])
        made: list[Any] = [kind(**{f.name: args[f.name] for f in fields(kind) if f.name in args}) for kind in kinds]
        arguments = cls(*made)
        _check_idle(args, arguments.ray)
        check_idle_flags(args.keys(), Options(arguments.engine, arguments.pipeline, arguments.server))
        if arguments.engine.device == "auto":
            OPTION.refuse("device", "auto", "cpu or cuda: Ray has to know what a replica needs")
        if ":" in arguments.engine.device:
            OPTION.refuse("device", arguments.engine.device, "cpu or cuda: Ray chooses the GPUs of a replica")
        return arguments

    @property
    def num_gpus(self) -> int:
        """GPUs of a replica."""
        return 0 if self.engine.device == "cpu" else self.engine.tp_size

    @property
    def max_ongoing_requests(self) -> int:
        """Requests that a replica holds at a time."""
        return self.ray.max_ongoing_requests or 2 * self.engine.max_running_requests


def _check_idle(args: Mapping[str, Any], ray: RayConfig) -> None:
    """Raise ConfigError for an option that is given and has no effect beside the others."""
    constant = (_SCALING, ray.max_replicas is None, "without max_replicas", "the number of replicas is constant")
    other = (_PREFIX, ray.router != "prefix", f"with router {ray.router}", "it looks at no prefixes")
    for names, idle, beside, reason in (constant, other):
        for name in names if idle else ():
            if name in args:
                message = f"{name} has no effect {beside}: {reason}; leave it out"
                raise ConfigError(message, field=name, limit=f"not {beside}")
