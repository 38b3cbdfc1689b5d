"""The FastAPI application over a service."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match

from ..errors import ShoalError, shorten
from ..service.service import Service
from .api_error import ApiError
from .config import ServerConfig, names
from .generation import ClientGoneError, Generations
from .invalid_body import describe, unreadable
from .keys import KeyCheck
from .metrics import Metrics
from .middleware import AccessLog, BodyLimit
from .origins import HostCheck, JSONBodies, OriginCheck
from .replies import JSONReply
from .routes import (
    administration,
    chat,
    health,
    information,
    lookup,
    messages,
    native,
    openai,
    playground,
    responses,
    score,
)
from .routes import tokens as tokenization
from .state import ServerState
from .wording import shown

_GENERATING_ROUTERS = (native, score, openai, chat, responses, messages)
_ROUTERS = (*_GENERATING_ROUTERS, health, information, administration, lookup, tokenization)
_CLIENT_CLOSED_REQUEST = 499
_GENERATING = frozenset(
    route.path for module in _GENERATING_ROUTERS for route in module.router.routes
    if isinstance(route, APIRoute) and "POST" in (route.methods or ())
)  # fmt: skip
_REFUSED = frozenset({"BadRequestError", "QueueFullError"})


def create_app(service: Service, config: ServerConfig, model_name: str = "") -> FastAPI:
    """The application; its `state.server` is the ServerState. The service is started and shut down elsewhere."""
    from ... import __version__

    metrics = Metrics(model_name)
    routers = (*_ROUTERS, *((playground,) if config.playground else ()))
    routes = {route.path for module in routers for route in module.router.routes if hasattr(route, "path")}
    app = FastAPI(
        title="shoal",
        description="Diffusion language models with bidirectional prefix caching.",
        version=__version__,
        docs_url=None if config.disable_docs else "/docs",
        redoc_url=None,
        openapi_url=None if config.disable_docs else "/openapi.json",
        middleware=[
            Middleware(AccessLog, metrics=metrics, routes=routes),
            Middleware(HostCheck, config=config),
            *_cors(config),
            Middleware(OriginCheck, config=config),
            Middleware(KeyCheck, config=config),
            Middleware(BodyLimit, config=config),
            Middleware(JSONBodies),
        ],
    )
    app.state.server = ServerState(service, config, metrics, Generations(service, metrics))
    for module in routers:
        app.include_router(module.router)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(ShoalError, _shoal_error)
    app.add_exception_handler(RequestValidationError, _invalid_body)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientGoneError, _client_gone)
    return app


def _cors(config: ServerConfig) -> list[Middleware]:
    """CORS headers for browsers, which show a page of another origin the replies only if these allow it."""
    origins = names(config.allowed_origins)
    if not origins:
        return []
    return [Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])]


def _reply(request: Request, error: ApiError, headers: Any = None) -> Response:
    if error.kind in _REFUSED and request.url.path in _GENERATING:
        request.app.state.server.metrics.refused.inc()
    extra = {"retry-after": "1"} if error.retryable else {}
    return JSONReply(error.body_at(request.url.path), error.status, headers={**extra, **dict(headers or {})})


async def _api_error(request: Request, error: Any) -> Response:
    return _reply(request, error)


async def _shoal_error(request: Request, error: Any) -> Response:
    return _reply(request, ApiError.of(error))


async def _invalid_body(request: Request, error: Any) -> Response:
    """A body that is not JSON or has a field of a wrong type."""
    message, field = describe(error)
    kind = request.headers.get("content-type", "")
    if field == "body" and "json" not in kind:
        message += f"; content-type is {shown(kind)}; send application/json"
    return _reply(request, ApiError(400, message, param=field))


async def _http_error(request: Request, error: Any) -> Response:
    """Unknown routes and methods, and bodies that FastAPI can't read."""
    path = shorten(request.url.path)
    if error.status_code == 404:
        return _reply(request, ApiError(404, f"no route {path}", kind="NotFoundError"), error.headers)
    if error.status_code == 405:
        allowed = ", ".join(_methods(request))
        message = f"{request.method} is not allowed on {path}; it takes {allowed}"
        return _reply(request, ApiError(405, message, kind="MethodNotAllowedError"), {"allow": allowed})
    if error.status_code == 400:
        reason = f"the body can't be read: {unreadable(error.__cause__)}"
        return _reply(request, ApiError(400, reason, param="body"))
    return _reply(request, ApiError(error.status_code, str(error.detail)), error.headers)


def _methods(request: Request) -> list[str]:
    """All methods of the routes of this path."""
    routes = [*request.app.routes, *(route for module in _ROUTERS for route in module.router.routes)]
    fits = [
        route for route in routes if hasattr(route, "methods") and route.matches(request.scope)[0] is not Match.NONE
    ]
    return sorted({method for route in fits for method in route.methods or ()})


async def _client_gone(request: Request, error: Any) -> Response:
    return Response(status_code=_CLIENT_CLOSED_REQUEST)
