"""shoal on Ray Serve: `shoal.serve_ray:app` builds the application. Needs `pip install shoal[ray]`."""

from __future__ import annotations

from typing import Any


def app(args: dict[str, Any]) -> Any:
    """The Serve application: a gateway with shoal's HTTP routes before replicas, each with a model of its own.

    Args:
        args: fields of EngineConfig, PipelineConfig, ServerConfig and RayConfig by name, as in `args` of a Serve
            configuration file.

    Raises ConfigError, naming the field, for an unknown one and for a value out of range.
    """
    # Here, so that the modules beside this one can be imported where Ray is not installed.
    from .application import build

    return build(args)
