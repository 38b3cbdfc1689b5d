"""The playground: a page at `/` that talks to this server's own routes. It holds no data, so it needs no key."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response

FOLDER = Path(__file__).parents[1] / "playground"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FILES = tuple(sorted(path.name for path in FOLDER.iterdir() if path.suffix in _TYPES))
PATHS = frozenset({"/", *(f"/playground/{name}" for name in FILES)})
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
router = APIRouter(include_in_schema=False)


def _file(name: str) -> Callable[[], Coroutine[Any, Any, Response]]:
    content = (FOLDER / name).read_bytes()
    kind = f"{_TYPES[Path(name).suffix]}; charset=utf-8"

    async def reply() -> Response:
        return Response(content, headers=_HEADERS, media_type=kind)

    return reply


for _path in sorted(PATHS):
    router.add_api_route(_path, _file(_path.rpartition("/")[2] or "index.html"), methods=["GET", "HEAD"])
