"""Flags that have no effect beside others: a server that is given both refuses to start."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields

from .replicas import ReplicaConfig
from .runtime.config import EngineConfig
from .runtime.errors import ConfigError
from .runtime.http.config import ServerConfig
from .runtime.pipeline.config import PipelineConfig


@dataclass(frozen=True, slots=True)
class Options:
    """All options of a server."""

    engine: EngineConfig
    pipeline: PipelineConfig
    server: ServerConfig
    replicas: ReplicaConfig = field(default_factory=ReplicaConfig)


@dataclass(frozen=True, slots=True)
class IdleFlag:
    """A field whose flag has no effect where `is_idle` holds; `beside` and `reason` say so to the user."""

    field: str
    is_idle: Callable[[Options], bool]
    beside: str
    reason: str


IDLE_FLAGS = (
    *(
        IdleFlag(field.name, lambda o: o.server.in_process, "--in-process", "the server has no processes of its own")
        for field in fields(PipelineConfig)
    ),
    IdleFlag("profile_dir", lambda o: o.server.in_process, "--in-process", "profiles are recorded in the worker's "
             "process"),
    IdleFlag("router_policy", lambda o: o.replicas.dp_size == 1, "a --dp-size of 1", "there is no router"),
    IdleFlag("depth_profile", lambda o: o.engine.depth is not None, "--depth", "the depth is constant"),
    IdleFlag("kv_cache_bytes", lambda o: o.engine.kv_cache_tokens is not None, "--kv-cache-tokens",
             "that sizes the pools"),
    IdleFlag("mem_fraction_static", lambda o: o.engine.kv_cache_tokens is not None, "--kv-cache-tokens",
             "that sizes the pools"),
    IdleFlag("mem_fraction_static", lambda o: o.engine.kv_cache_bytes is not None, "--kv-cache-bytes",
             "that sizes the pools"),
    IdleFlag("audit_tolerance", lambda o: not o.engine.audit_rate, "an --audit-rate of 0", "nothing is audited"),
    IdleFlag("audit_divergence", lambda o: not o.engine.audit_rate, "an --audit-rate of 0", "nothing is audited"),
    IdleFlag("seed", lambda o: o.engine.load_format == "auto" and not o.engine.audit_rate,
             "the model's own weights", "requests seed their draws themselves (`seed`)"),
)  # fmt: skip


def check_idle_flags(given: Collection[str], options: Options) -> None:
    """Raise ConfigError for a field of `given`, the options that the user named, that has no effect."""
    for flag in IDLE_FLAGS:
        if flag.field in given and flag.is_idle(options):
            name = "--" + flag.field.replace("_", "-")
            message = f"{name} has no effect with {flag.beside}: {flag.reason}; leave it out"
            raise ConfigError(message, field=flag.field, limit=f"not with {flag.beside}")
