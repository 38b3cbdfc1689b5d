"""The calls of the service over processes: requests, streams, aborts, time-outs, limits, questions."""

from __future__ import annotations

import asyncio
import itertools
import random
from contextlib import aclosing

import pytest
import zmq

from shoal.runtime.errors import (
    CacheInUseError,
    InvalidRequestError,
    ModelLoadError,
    PoolTooSmallError,
    QueueFullError,
    RequestTimeoutError,
)
from shoal.runtime.pipeline.client import PipelineClient
from shoal.runtime.pipeline.sockets import NAMES
from shoal.runtime.text.chat_markers import ChatMarkers

from ..tiny import write_model
from .running import PROMPT, arrived, collect, held, last, request, running, until, until_running, wait_idle

pytestmark = pytest.mark.asyncio(loop_scope="module")
LONG = {"size": 512, "steps": 512, "block_length": 8}


async def test_a_stream_only_grows_and_ends_once(slow_client):
    client = slow_client
    outputs = await collect(client, request("a", 64))
    assert len(outputs) > 2
    for early, late in itertools.pairwise(outputs):
        assert late.text.startswith(early.text)
        assert late.token_ids[: len(early.token_ids)] == early.token_ids
        assert early.finish_reason is None
    end = outputs[-1]
    assert (end.rid, end.finish_reason, end.error) == ("a", "length", None)
    assert (end.prompt_tokens, end.completion_tokens, end.canvas_tokens, end.nfe) == (30, 64, 64, 16)
    assert end.text == await client.detokenize(end.token_ids)
    assert 0 <= end.timings.queue <= (end.timings.first_text or -1) <= end.timings.total


async def test_a_denoising_stream_shows_the_whole_canvas_and_ends_as_a_plain_one_does(slow_client):
    outputs = await collect(slow_client, request("a", 64, stream_mode="denoise"))
    plain = await collect(slow_client, request("b", 64))
    assert len(outputs) > 4
    for output in outputs:
        shown = output.snapshot
        assert shown is not None
        assert shown.tokens[: len(output.token_ids)] == output.token_ids
        assert (len(shown.tokens), shown.blocks, shown.step) == (64, tuple(range(8, 65, 8)), output.nfe)
        for at, token in enumerate(shown.tokens):
            assert (shown.steps[at] > 0) == (shown.confidences[at] is not None) == (token >= 0)
            assert shown.texts[at] == ("" if token < 0 else await slow_client.detokenize([token]))
    assert outputs[-1].snapshot is not None
    assert outputs[-1].snapshot.steps == tuple(1 + at // 4 for at in range(64))
    assert (outputs[-1].token_ids, outputs[-1].text) == (plain[-1].token_ids, plain[-1].text)
    assert [output.snapshot for output in plain] == [None] * len(plain)


async def test_a_slow_reader_of_a_canvas_gets_fewer_snapshots_and_the_same_last_one(client):
    async with aclosing(client.generate(request("a", 128, stream_mode="denoise"))) as outputs:
        seen = [await anext(outputs)]
        (stream,) = client._streams.values()
        await until(lambda: stream._latest is not None and stream._latest.finish_reason)
        seen += [output async for output in outputs]
    assert len(seen) == 2
    assert seen[-1].snapshot == (await last(client, request("b", 128, stream_mode="denoise"))).snapshot


async def test_without_a_stream_there_is_one_output(client):
    outputs = await collect(client, request("a", 64, stream=False))
    assert [output.finish_reason for output in outputs] == ["length"]
    assert outputs[0].text == (await last(client, request("a", 64))).text != ""


async def test_a_slow_reader_gets_fewer_outputs_and_the_same_end(client):
    """One that takes no second output before the end is there."""
    async with aclosing(client.generate(request("a", 128))) as outputs:
        seen = [await anext(outputs)]
        (stream,) = client._streams.values()
        await until(lambda: stream._latest is not None and stream._latest.finish_reason)
        seen += [output async for output in outputs]
    whole = await last(client, request("b", 128))
    assert len(seen) <= 2 < whole.nfe
    assert (seen[-1].text, seen[-1].token_ids) == (whole.text, whole.token_ids)


async def test_text_and_messages_and_tokens_are_the_same_prompt(client):
    text = "what costs a red apple ?"
    messages = [{"role": "user", "content": text}]
    ids = await client.tokenize(messages)
    assert len(ids) > len(await client.tokenize(text)) > 3
    lengths = [(await last(client, request("a", prompt=p))).prompt_tokens for p in (messages, ids)]
    assert lengths == [len(ids)] * 2
    assert await client.detokenize(ids, skip_special_tokens=False) != await client.detokenize(ids)


async def test_a_stop_string_ends_the_request_where_it_is_complete(client):
    whole = await last(client, request("a", 64))
    stop = whole.text[20:23]
    end = await last(client, request("a", 64, stop=[stop]))
    assert (end.finish_reason, end.matched_stop) == ("stop", stop)
    assert end.text == whole.text[: whole.text.index(stop)]
    assert end.completion_tokens < 64
    assert end.nfe < whole.nfe


async def test_the_cache_is_shared_flushed_and_shown(client):
    prompt = list(range(4, 84))
    await client.flush_cache()
    assert (await client.cache_snapshot())["num_nodes"] == 0
    first, second = [await last(client, request("a", prompt=prompt)) for _ in range(2)]
    assert (first.cached_tokens, first.depth) == (0, 0)
    assert second.cached_tokens >= 48
    assert second.reused_token_layers == second.cached_tokens * second.depth > 0
    salted = await last(client, request("a", prompt=prompt, cache_salt="other"))
    assert salted.cached_tokens == 0
    assert (await client.cache_snapshot())["num_tokens"] >= 80
    stats = await client.stats()
    assert stats.cache_hit_tokens >= second.cached_tokens
    await client.flush_cache()
    assert (await client.cache_snapshot())["num_nodes"] == 0


async def test_stats_count_what_happened(client):
    before = await client.stats()
    await asyncio.gather(*(last(client, request(str(n), 32)) for n in range(5)))
    after = await client.stats()
    assert after.requests - before.requests == 5
    assert after.finished_length - before.finished_length == 5
    assert after.generated_tokens - before.generated_tokens == 160
    assert after.prompt_tokens - before.prompt_tokens == 5 * len(PROMPT)
    assert after.nfe - before.nfe == 5 * 8
    assert after.uptime > before.uptime


@pytest.mark.parametrize(
    ("change", "error", "field"),
    [
        ({"prompt": ""}, InvalidRequestError, "prompt"),
        ({"prompt": []}, InvalidRequestError, "prompt"),
        ({"prompt": [1, -5]}, InvalidRequestError, "prompt"),
        ({"prompt": [10**9]}, InvalidRequestError, "prompt"),
        ({"prompt": [2**70]}, InvalidRequestError, None),
        ({"prompt": "\ud800"}, InvalidRequestError, None),
        ({"prompt": [1.5]}, InvalidRequestError, None),
        ({"prompt": [{"role": "user"}, {}]}, InvalidRequestError, "prompt"),
        ({"prompt": [5] * 600, "size": 64}, InvalidRequestError, "max_new_tokens"),
        ({"cache_mode": "magic"}, InvalidRequestError, None),
    ],
    ids=str,
)
async def test_bad_requests_raise_before_the_first_output(client, change, error, field):
    with pytest.raises(error) as caught:
        await collect(client, request("bad", **change))
    assert field is None or caught.value.field == field
    assert (await last(client, request("bad"))).finish_reason == "length"


async def test_an_id_can_be_used_once_at_a_time(client):
    async with aclosing(client.generate(request("same", **LONG))) as outputs:
        await anext(outputs)
        with pytest.raises(InvalidRequestError, match="in use"):
            await collect(client, request("same"))
    assert (await last(client, request("same"))).finish_reason == "length"


async def test_aborts_by_id_of_all_and_of_nobody(slow_client):
    client = slow_client
    tasks = [asyncio.create_task(last(client, request(f"long-{n}", **LONG))) for n in range(6)]
    await until_running(client, 6)
    assert await client.abort("long-3") == 1
    assert (await tasks[3]).finish_reason == "abort"
    assert await client.abort("nobody") == 0
    assert await client.abort() == 5
    assert {output.finish_reason for output in await asyncio.gather(*tasks)} == {"abort"}
    await wait_idle(client)


async def test_clients_that_leave_at_random_moments_give_everything_back(slow_client):
    client, chooser = slow_client, random.Random(5)

    async def leave(number: int, size: int, outputs_taken: int, after: float) -> None:
        await asyncio.sleep(after)
        async with aclosing(client.generate(request(f"l{number}", size))) as outputs:
            for _ in range(outputs_taken):
                await anext(outputs, None)

    before = await client.stats()
    choices = [(chooser.choice([8, 128, 512]), chooser.randrange(4), chooser.random() * 0.3) for _ in range(200)]
    await asyncio.gather(*(leave(number, *choice) for number, choice in enumerate(choices)))
    await wait_idle(client)
    stats = await client.stats()
    assert stats.aborted - before.aborted > 50
    assert stats.requests - before.requests <= 200
    assert stats.failed == 0
    assert client.num_in_flight == 0
    assert (await last(client, request("after"))).finish_reason == "length"


async def test_a_cancelled_caller_aborts_its_request(slow_client):
    client = slow_client
    before = await client.stats()
    task = asyncio.create_task(last(client, request("gone", **LONG)))
    await until_running(client, 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await wait_idle(client)
    after = await client.stats()
    assert (after.aborted, after.finished_length) == (before.aborted + 1, before.finished_length)
    assert client.num_in_flight == 0


async def test_time_outs_while_running_keep_what_there_is(slow_client):
    client = slow_client
    ends = await asyncio.gather(*(last(client, request(f"t{n}", timeout_s=1, **LONG)) for n in range(20)))
    assert {output.finish_reason for output in ends} == {"abort"}
    for output in ends:
        assert isinstance(output.error, RequestTimeoutError)
        assert (output.error.field, output.error.limit) == ("timeout_s", 1)
        assert output.text == await client.detokenize(output.token_ids)
    assert any(output.completion_tokens for output in ends)
    await wait_idle(client)


async def test_flush_is_refused_while_a_request_is_under_way(client):
    async with aclosing(client.generate(request("busy", **LONG))) as outputs:
        await anext(outputs)
        with pytest.raises(CacheInUseError):
            await client.flush_cache()
    await client.flush_cache(5)


def send_garbage(client: PipelineClient, frames: int) -> None:
    """Noise to every socket, as another program of the same user could send it."""
    chooser = random.Random(3)
    assert client.pipeline is not None
    with zmq.Context() as context:
        for name in NAMES:
            socket = client.pipeline.endpoints.push(context, name)
            socket.setsockopt(zmq.LINGER, 60_000)
            for _ in range(frames):
                socket.send(chooser.randbytes(chooser.randrange(100)))
            socket.close()


async def test_garbage_on_every_socket_is_dropped(client):
    expected = (await last(client, request("a"))).text
    pids = client.pids
    running_too = asyncio.create_task(last(client, request("b", **LONG)))
    await asyncio.to_thread(send_garbage, client, 300)
    await until(lambda: client.bad_frames >= 300)
    assert client.bad_frames == 300
    assert (await running_too).finish_reason == "length"
    assert (await last(client, request("c"))).text == expected
    assert client.status.state == "up"
    assert client.pids == pids


async def test_a_full_queue_and_a_pool_too_small():
    async with running(
        max_running_requests=2, max_queued_requests=3, kv_cache_tokens=512, load_format="dummy"
    ) as client:
        with pytest.raises(PoolTooSmallError, match="over the 512 that the KV pool holds"):
            await collect(client, request("big", 512, prompt=[5] * 100))
        with held(client, "worker"):
            items = [request(f"q{n}", 120, steps=120, block_length=8) for n in range(12)]
            tasks = [asyncio.create_task(last(client, item)) for item in items]
            await arrived(client)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        refused = [r for r in results if isinstance(r, QueueFullError)]
        assert all(error.limit == 3 for error in refused)
        assert len(refused) == 7  # two run, three wait
        served = [r.finish_reason for r in results if not isinstance(r, BaseException)]
        assert served == ["length"] * 5
        assert (await client.stats()).refused == 7
        with held(client, "worker"):
            task = asyncio.create_task(last(client, request("r", 400, prompt=[5] * 40)))
            late = asyncio.create_task(last(client, request("late", timeout_s=0.05)))
            await arrived(client)
            await asyncio.sleep(0.1)
        assert isinstance((await late).error, RequestTimeoutError)
        assert (await task).finish_reason == "length"
        await wait_idle(client)


async def test_higher_priority_goes_first_and_takes_the_place_of_others():
    """The other one still has about 500 forwards of 2 ms before it when the important one is done."""
    async with running(max_running_requests=1, null_tokens=1, delay=0.002, load_format="dummy") as client:
        with held(client, "worker"):
            low = asyncio.create_task(collect(client, request("low", 512, block_length=32)))
            await until_running(client, 1)  # not only there: else both may be found waiting, and nothing is preempted
            first = asyncio.create_task(last(client, request("high", 32, priority=5)))
            await arrived(client)
        high = await first
        assert (high.finish_reason, high.preemptions) == ("length", 0)
        outputs = await low
        assert outputs[-1].timings.total > high.timings.total + 0.5  # it came first, and 500 x 2 ms were left to it
        assert outputs[-1].finish_reason == "length"
        assert outputs[-1].preemptions == 1
        for early, late in itertools.pairwise(outputs):
            assert late.token_ids[: len(early.token_ids)] == early.token_ids
        assert outputs[-1].token_ids == (await last(client, request("again", 512, block_length=32))).token_ids
        assert (await client.stats()).preemptions >= 1


async def test_a_broken_chat_template_is_named_wherever_it_is_needed(tmp_path):
    """Text is served; chats and programs get the reason."""
    folder = write_model(tmp_path / "model", "llada")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}")
    async with running(model_path=str(folder), layers_per_band=2) as client:
        assert len(await client.tokenize("abc")) == 3
        named = r"chat_template\.jinja\) can't be parsed: line 1"
        with pytest.raises(ModelLoadError, match=named):
            await client.tokenize([{"role": "user", "content": "abc"}])
        with pytest.raises(ModelLoadError, match=named):
            ChatMarkers.from_json(client.info.chat_markers)
