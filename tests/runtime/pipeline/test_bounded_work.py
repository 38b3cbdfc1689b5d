"""Aborts are never lost, reach everything, and take effect before a long text is tokenized."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from shoal.runtime.errors import InvalidRequestError, QueueFullError
from shoal.runtime.pipeline import sockets
from shoal.runtime.pipeline.abort_lane import AbortLane
from shoal.runtime.pipeline.client import PipelineClient
from shoal.runtime.pipeline.requests import generate_message

from .running import arrived, held, last, request, running, until, until_running, wait_idle

pytestmark = pytest.mark.asyncio(loop_scope="module")
LONG: dict[str, Any] = {"size": 512, "block_length": 8}
WORD = "a" * 1_000_000
"""One token of the bundled model's tokenizer, which takes it a while."""


async def test_the_lane_sends_again_until_all_are_taken_in_order():
    room, taken = 1, []

    def send(rid: str) -> bool:
        nonlocal room
        if room:
            room -= 1
            taken.append(rid)
            return True
        return False

    lane = AbortLane(send)
    for rid in "abcb":
        lane.abort(rid)
    assert taken == ["a"]
    assert lane.is_behind
    room = 2
    await until(lambda: not lane.is_behind)
    assert taken == ["a", "b", "c"]
    lane.abort("d")
    lane.close()
    assert not lane.is_behind


async def test_clients_that_leave_while_the_queue_is_full_leave_nothing_behind(monkeypatch):
    """The tokenizer stands still until nothing more fits on the way to it; then everybody leaves."""
    monkeypatch.setattr(sockets, "_HIGH_WATER", 4)
    async with running(delay=0.05) as client:
        before = await client.stats()
        with held(client, "tokenizer"):
            tasks: list[asyncio.Task[Any]] = []
            while not any(task.done() for task in tasks):
                item = request(f"r{len(tasks)}", prompt=list(range(10, 60)) * 150, **LONG)
                tasks.append(asyncio.create_task(last(client, item)))
                await asyncio.sleep(0.001)
                assert len(tasks) < 2000
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(result) for result in results} == {asyncio.CancelledError, QueueFullError}
        await until(lambda: not client._aborts.is_behind)
        stats = None
        while stats is None or (stats.running, stats.waiting, stats.kv_pages_requests) != (0, 0, 0):
            with contextlib.suppress(QueueFullError):  # the last aborts may still fill the queue
                stats = await client.stats()
            await asyncio.sleep(0.01)
        assert stats.requests - before.requests == stats.aborted - before.aborted
        assert stats.generated_tokens < len(tasks) * 512


async def test_abort_all_reaches_what_no_client_waits_for(slow_client):
    client: PipelineClient = slow_client
    client._send(generate_message("nobody's", request("x", **LONG)))
    await until_running(client, 1)
    task = asyncio.create_task(last(client, request("somebody's", **LONG)))
    await until_running(client, 2)
    with held(client, "worker"):
        assert await client.abort() == 2  # the answer does not wait for a forward in flight
    assert (await task).finish_reason == "abort"
    await wait_idle(client)
    assert await client.abort() == 0


async def test_a_long_text_holds_nobody_and_can_be_aborted_while_it_is_tokenized(client):
    before = (await client.stats()).requests
    order: list[str] = []

    async def run(name: str, **options: Any) -> Any:
        output = await last(client, request(name, **options))
        order.append(name)
        return output

    long = asyncio.create_task(run("long", prompt=WORD))
    aborted = asyncio.create_task(run("aborted", prompt=WORD))
    chat = asyncio.create_task(run("chat", prompt=[{"role": "user", "content": WORD}]))
    counted = asyncio.create_task(client.tokenize(WORD))
    await asyncio.sleep(0)
    assert (await run("short")).finish_reason == "length"
    assert await client.abort("aborted") == 1
    assert (await aborted).finish_reason == "abort"
    assert order == ["short", "aborted"]
    assert (await long).prompt_tokens == 1
    assert (await chat).finish_reason == "length"
    assert len(await counted) == 1
    assert (await client.stats()).requests == before + 3


async def test_what_waits_behind_the_tokenizer_is_dropped_by_an_abort(client):
    """All of it arrives together: the requests never get to the scheduler."""
    before = (await client.stats()).requests
    with held(client, "tokenizer"):
        tasks = [asyncio.create_task(last(client, request(f"w{n}"))) for n in range(50)]
        await asyncio.sleep(0)
        assert [await client.abort(f"w{n}") for n in range(0, 50, 2)] == [1] * 25
    reasons = [output.finish_reason for output in await asyncio.gather(*tasks)]
    assert reasons == ["abort", "length"] * 25
    await arrived(client)
    assert (await client.stats()).requests == before + 25


@pytest.mark.parametrize("prompt", ["1" * 2_000_000, [{"role": "user", "content": "1" * 2_000_000}]])
async def test_a_text_that_cannot_fit_is_refused_by_a_part_of_it(client, prompt):
    with pytest.raises(InvalidRequestError, match=r"of which the first 16384 have about 163\d\d tokens.* 640 tokens"):
        await last(client, request("digits", prompt=prompt))
