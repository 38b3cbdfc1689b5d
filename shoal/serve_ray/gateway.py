"""A gateway: the HTTP application before the replicas, as the ingress of the Serve application."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from ..runtime.http.app import create_app
from ..runtime.http.config import keys_from_environment
from ..runtime.logs import configure_logging
from .config import Arguments
from .service import RayService

REPLICAS = "Replica"
"""Name of the replicas' deployment."""


class Gateway:
    """The deployment's class, with shoal's HTTP routes (`serve.ingress`)."""

    async def __init__(self, arguments: Arguments, handle: DeploymentHandle[Any]):  # type: ignore[misc]
        keys: dict[str, Any] = keys_from_environment()
        server = replace(arguments.server, **keys)
        configure_logging(server.log_level, server.log_json, server.log_requests)
        app_name = serve.get_replica_context().app_name
        self._service = RayService(arguments, handle, lambda: running_replicas(app_name))
        self._app = create_app(self._service, server, server.served_model_name or arguments.engine.model_path)
        await self._service.start()
        self._app.state.server.warm = True

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Ray's call for the application."""
        return self._app

    async def check_health(self) -> None:
        """Ray's call: the gateway is healthy while it answers, whatever the replicas do."""
        await asyncio.sleep(0)

    async def __del__(self) -> None:
        """Ray's call, after the requests in flight have ended or their time is over."""
        await self._service.shutdown(0.0)


def running_replicas(app_name: str) -> int:
    """Replicas that take requests now, as Ray's controller knows them. Blocks."""
    application = serve.status().applications.get(app_name)
    deployment = application and application.deployments.get(REPLICAS)
    return int(deployment.replica_states.get("RUNNING", 0)) if deployment else 0
