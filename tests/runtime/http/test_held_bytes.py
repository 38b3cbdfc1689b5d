"""Bodies and unread replies of all clients together have a bound, however many connections there are."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from shoal.runtime.errors import ConfigError
from shoal.runtime.http.config import ServerConfig
from shoal.runtime.http.connection_limits import ConnectionLimits
from shoal.runtime.http.gate import Gate
from shoal.runtime.http.middleware import BodyLimit

CONFIG = ServerConfig(max_body_bytes=100_000, max_held_bytes=250_000, body_timeout_s=5.0)


class Held:
    """An application that holds every body over 10 bytes until it is told to answer."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.held = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        size = len((await receive())["body"])
        if size > 10:
            self.held += 1
            await self.go_on.wait()
            self.held -= 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"%d" % size})


async def until_held(app: Held, count: int) -> None:
    while app.held < count:
        await asyncio.sleep(0.01)


async def trickle(size: int, end: asyncio.Event) -> Any:
    """A body whose last byte waits."""
    yield b"x" * (size - 1)
    await end.wait()
    yield b"x"


async def test_large_bodies_past_the_bound_are_told_to_come_back():
    app = Held()
    transport = httpx.ASGITransport(BodyLimit(app, CONFIG))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        large = [asyncio.create_task(client.post("/", content=b"x" * 100_000)) for _ in range(2)]
        await until_held(app, 2)
        refused = await client.post("/", content=b"x" * 100_000)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"]["retryable"] is True
        assert "--max-held-bytes" in refused.json()["message"]
        assert (await client.post("/", content=b"x" * 10)).text == "10", "small ones pass"
        assert (await client.post("/", content=b"x" * 100_001)).status_code == 413
        app.go_on.set()
        assert [(await task).status_code for task in large] == [200, 200]
        again = await asyncio.gather(*(client.post("/", content=b"x" * 100_000) for _ in range(2)))
        assert [reply.status_code for reply in again] == [200, 200]


async def test_bodies_that_are_not_complete_count_and_those_that_come_too_late_do_not(monkeypatch):
    app, end = Held(), asyncio.Event()
    app.go_on.set()
    config = ServerConfig(max_body_bytes=100_000, max_held_bytes=150_000, body_timeout_s=0.3)
    limit = BodyLimit(app, config)

    async def send(size: int, body: Any) -> int:
        parts = body.__aiter__()
        statuses: list[int] = []

        async def receive() -> Any:
            try:
                return {"type": "http.request", "body": await anext(parts), "more_body": True}
            except StopAsyncIteration:
                return {"type": "http.request", "body": b"", "more_body": False}

        async def sent(message: Any) -> None:
            statuses.append(message.get("status", 0))

        await limit({"type": "http", "path": "/generate", "headers": []}, receive, sent)
        return statuses[0]

    never = asyncio.create_task(send(90_000, trickle(90_000, asyncio.Event())))
    await asyncio.sleep(0.01)
    end.set()
    assert await send(90_000, trickle(90_000, end)) == 503
    assert await never == 408
    assert await send(90_000, trickle(90_000, end)) == 200


def test_less_than_one_body_is_no_bound():
    with pytest.raises(ConfigError, match="max_held_bytes is 99; it must be at least max_body_bytes, 100"):
        ServerConfig(max_body_bytes=100, max_held_bytes=99)
    assert ServerConfig(max_body_bytes=100).held_bytes == 3200


def test_unread_replies_past_the_bound_drop_those_who_read_nothing_for_longest():
    dropped: list[str] = []

    def client(name: str, unsent: int, since: float) -> Any:
        return SimpleNamespace(unsent=unsent, unread_since=since, check=lambda now: None,
                               drop=lambda: dropped.append(name))  # fmt: skip

    connections = [client("new", 100_000, 9.0), client("idle", 0, 0.0), client("old", 100_000, 1.0),
                   client("older", 100_000, 0.5)]  # fmt: skip
    gate = Gate(ConnectionLimits.of(CONFIG))
    gate.check(connections, 10.0)
    assert dropped == ["older"]
    gate.check([one for one in connections if one is not connections[3]], 11.0)
    assert dropped == ["older"]
