"""What hostile clients send. Each attack gives the statuses of its replies, or words for what came instead."""

from __future__ import annotations

import asyncio
import functools
import json
import random
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from .process import ServerProcess

Attack = Callable[[ServerProcess, random.Random], Awaitable[list[str]]]
IDS = [80] * 600
MEGABYTES = 7_900_000
SLOW: dict[str, Any] = {
    "text": "red",
    "sampling_params": {"max_new_tokens": 256, "steps": 256, "block_length": 8, "ignore_eos": True},
}
ROUTES = ("/generate", "/score", "/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize",
          "/abort_request", "/flush_cache", "/start_profile")  # fmt: skip
NAMES = ("text", "input_ids", "prompt", "messages", "choices", "sampling_params", "n", "stream", "max_tokens", "stop",
         "temperature", "seed", "rid", "cache_salt", "priority", "timeout_s", "canvas", "shared_prefix", "tokens",
         "block_length", "steps", "threshold", "cache_mode", "output_dir")  # fmt: skip
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    10**30,
    1.5,
    "",
    "x",
    "\ud800",
    [],
    [[]],
    ["a", 1],
    {},
    {"a": []},
    [None],
    "1" * 5000,
)


async def _post(server: ServerProcess, route: str, body: Any, timeout: float = 120.0) -> list[str]:
    # Certificates take 20 ms to load: a pause in the clients would look like one of the server.
    async with httpx.AsyncClient(base_url=server.url, verify=False, timeout=timeout) as client:
        try:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            reply = await client.post(route, content=content, headers={"content-type": "application/json"})
            return [str(reply.status_code)]
        except httpx.HTTPError as error:
            return [type(error).__name__]


BODIES: dict[str, Callable[[], Any]] = {
    "score 64": lambda: {"input_ids": [80], "choices": [IDS] * 64},
    "score 256": lambda: {"input_ids": [80], "choices": [IDS] * 256},
    "/generate": lambda: {"text": "1" * MEGABYTES},
    "/tokenize": lambda: {"prompt": "1" * MEGABYTES},
    "/v1/chat/completions": lambda: {"messages": [{"role": "user", "content": "1" * MEGABYTES}]},
    "/score": lambda: {"text": "red", "choices": ["1" * MEGABYTES]},
    "stop": lambda: {"text": "red", "sampling_params": {"stop_token_ids": [7] * 1_000_000}},
    "ids": lambda: {"input_ids": [80] * (MEGABYTES // 4)},
    "canvas": lambda: {"text": "red", "canvas": [-1] * (MEGABYTES // 4)},
    "wrong prompts": lambda: {"input_ids": [{}] * (MEGABYTES // 4)},
    "names": lambda: {"text": "red", **{f"k{i}": 1 for i in range(MEGABYTES // 14)}},
}


@functools.cache
def large(name: str) -> bytes:
    """Bodies of megabytes, encoded once: the clients should not be what is slow."""
    return json.dumps(BODIES[name]()).encode()


async def oversized_score(server: ServerProcess, chooser: random.Random) -> list[str]:
    """153,600 or 38,400 forward passes."""
    return await _post(server, "/score", large(chooser.choice(("score 64", "score 256"))))


async def huge_text(server: ServerProcess, chooser: random.Random) -> list[str]:
    """A text of 7.9 million tokens."""
    route = chooser.choice(("/generate", "/tokenize", "/score"))
    return await _post(server, route, large(route))


async def huge_message(server: ServerProcess, chooser: random.Random) -> list[str]:
    """As one message of a chat, which a template renders before it is looked at."""
    return await _post(server, "/v1/chat/completions", large("/v1/chat/completions"))


async def many_stop_tokens(server: ServerProcess, chooser: random.Random) -> list[str]:
    """A million of them."""
    return await _post(server, "/generate", large("stop"))


async def many_entries(server: ServerProcess, chooser: random.Random) -> list[str]:
    """Millions of token ids, prompts or names."""
    return await _post(server, "/generate", large(chooser.choice(("ids", "canvas", "wrong prompts", "names"))))


async def deep_n(server: ServerProcess, chooser: random.Random) -> list[str]:
    """More answers than a request may have."""
    body = {"text": ["red"] * 64, "n": chooser.choice((32, 10**6)), "max_new_tokens": 8}
    return await _post(server, "/generate", body)


async def many_steps(server: ServerProcess, chooser: random.Random) -> list[str]:
    """More positions, or forward passes, than a request may have."""
    return await _post(server, "/generate", {"text": ["red"] * 1024, "max_new_tokens": chooser.choice((8192, 10**9))})


async def bad_json(server: ServerProcess, chooser: random.Random) -> list[str]:
    """No JSON, or JSON that is deep."""
    body = chooser.choice((b"{", b'{"text": "red"', b"\xff\xfe", b"[" * 100_000, b'{"text": NaN}', b"null", b""))
    return await _post(server, chooser.choice(ROUTES), body)


async def wrong_types(server: ServerProcess, chooser: random.Random) -> list[str]:
    """Fields of any type on any route."""
    body = {name: chooser.choice(VALUES) for name in chooser.sample(NAMES, chooser.randrange(1, 6))}
    if chooser.random() < 0.5:
        body = {"text": "red", "prompt": "red", "max_tokens": 8, **body}
    return await _post(server, chooser.choice(ROUTES), body)


async def big_batch_that_leaves(server: ServerProcess, chooser: random.Random) -> list[str]:
    """1,024 answers of which nobody waits for the first."""
    return await _post(server, "/generate", {"text": ["red"] * 32, "n": 32, "max_new_tokens": 64, "ignore_eos": True},
                       timeout=chooser.random() * 2)  # fmt: skip


async def priority_abuse(server: ServerProcess, chooser: random.Random) -> list[str]:
    """Everything is urgent."""
    return await _post(server, "/generate", {"text": "red", "max_new_tokens": 32, "priority": 10**9})


async def score_that_leaves(server: ServerProcess, chooser: random.Random) -> list[str]:
    """As much as one /score may be, for a moment."""
    body = {"input_ids": [80, 81], "choices": [[82] * 60] * 60}
    return await _post(server, "/score", body, timeout=chooser.random() * 2)


async def leave_mid_stream(server: ServerProcess, chooser: random.Random) -> list[str]:
    """Read a little of a stream, then close the connection."""
    async with httpx.AsyncClient(base_url=server.url, verify=False, timeout=60) as client:
        try:
            async with client.stream("POST", "/generate", json={**SLOW, "stream": True}) as reply:
                async for _ in reply.aiter_raw():
                    if chooser.random() < 0.3:
                        break
                return [f"{reply.status_code} left"]
        except httpx.HTTPError as error:
            return [type(error).__name__]


async def abort_by_id(server: ServerProcess, chooser: random.Random) -> list[str]:
    """Start something slow and end it from another connection."""
    rid = f"hostile-{chooser.getrandbits(64):x}"
    score = {"input_ids": [80], "choices": [[81] * 40] * 20, "rid": rid}
    route, body = chooser.choice((("/generate", {**SLOW, "rid": rid}), ("/score", score)))
    running = asyncio.create_task(_post(server, route, body))
    await asyncio.sleep(chooser.random())
    async with httpx.AsyncClient(base_url=server.url, verify=False, timeout=60) as client:
        told = await client.post("/abort_request", json={"rid": rid})
    return [f"abort {told.status_code}", *await running]


async def slow_headers(server: ServerProcess, chooser: random.Random) -> list[str]:
    """Ten connections that never finish their headers."""
    writers = []
    for _ in range(10):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"POST /generate HTTP/1.1\r\nhost: 127.0.0.1\r\nx-slow: ")
            writers.append(writer)
        except OSError:
            pass
    await asyncio.sleep(chooser.random() * 3)
    for writer in writers:
        writer.close()
    return ["left"]


async def huge_header(server: ServerProcess, chooser: random.Random) -> list[str]:
    """Four megabytes in one header."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        head = b"GET /ping HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\nx-long: "
        writer.write(head + b"a" * (4 << 20) + b"\r\n\r\n")
        async with asyncio.timeout(60):
            await writer.drain()
            line = await reader.readline()
        writer.close()
        return [line.split()[1].decode() if line else "closed"]
    except (OSError, TimeoutError) as error:
        return [type(error).__name__]


UNANSWERED: tuple[Attack, ...] = (
    oversized_score, huge_text, huge_message, many_stop_tokens, many_entries, deep_n, many_steps, huge_header,
)  # fmt: skip
"""None of them may ever get a 200."""
REFUSED: tuple[Attack, ...] = (*UNANSWERED, bad_json)
MIXED: tuple[Attack, ...] = (
    *REFUSED, wrong_types, big_batch_that_leaves, priority_abuse, score_that_leaves, leave_mid_stream, abort_by_id,
    slow_headers,
)  # fmt: skip
