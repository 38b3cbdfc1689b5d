"""A worker of two ranks: two processes that answer as one, are aborted as one, and end as one."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from shoal import Engine, SamplingParams
from shoal.runtime.errors import ConfigError, EngineError
from shoal.runtime.pipeline.messages import Committed
from shoal.runtime.pipeline.rank_check import RankCheck, digest_of
from shoal.runtime.request.forward import StepResult

from .running import PROMPT, Traces, last, make_client, request, until_running, wait_idle

LONG = {"size": 512, "steps": 512, "block_length": 8}


def listening(pid: int) -> set[str]:
    """Addresses (hexadecimal) of TCP sockets that a process listens on."""
    links = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.exists() or entry.is_symlink()]
    inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return {line[1].partition(":")[0] for line in lines if line[3] == "0A" and line[9] in inodes}


async def test_two_ranks_answer_abort_and_die_as_one():
    """One pair of processes for all of it: their start is what takes time."""
    client = make_client(null=False, tp_size=2)
    await client.start()
    traces = Traces(client)
    assert set(client.pids) == {"tokenizer", "scheduler", "worker", "worker-1", "detokenizer"}
    assert client.info.engine["tp_size"] == 2
    for name in ("worker", "worker-1"):  # gloo's connections, on ports that the system chose
        assert listening(client.pids[name]) == {"0100007F"}

    found = await asyncio.gather(*(last(client, request(mode, cache_mode=mode)) for mode in ("none", "bicache")))
    with Engine("shop", device="cpu", kv_cache_tokens=16384) as engine:
        params = SamplingParams(max_new_tokens=32, ignore_eos=True)
        expected = [engine.generate(PROMPT, params, cache_mode=mode) for mode in ("none", "bicache")]
    assert [output.token_ids for output in found] == [output.token_ids for output in expected]

    running = asyncio.create_task(last(client, request("aborted", **LONG)))
    await until_running(client, 1)
    await client.abort("aborted")
    assert (await running).finish_reason == "abort"
    await wait_idle(client)

    requests = [asyncio.create_task(last(client, request(str(number), **LONG))) for number in range(4)]
    await until_running(client, 4)
    os.kill(client.pids["worker-1"], signal.SIGKILL)
    outputs = await asyncio.wait_for(asyncio.gather(*requests), 20)
    await asyncio.wait_for(client.closed(), 20)
    assert all(isinstance(output.error, EngineError) for output in outputs)
    assert client.status.reason == "the worker-1 process ended by signal SIGKILL"
    traces.assert_gone()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["worker", "worker-1"])
async def test_a_rank_that_hangs_is_noticed(name):
    client = make_client(null=False, tp_size=2, watchdog=3.0)
    await client.start()
    traces = Traces(client)
    client._tasks[1].cancel()  # the heartbeat: on a slow machine it might find the others too slow before
    running = asyncio.create_task(last(client, request("a", **LONG)))
    await until_running(client, 1)
    os.kill(client.pids[name], signal.SIGSTOP)
    output = await asyncio.wait_for(running, 60)
    assert isinstance(output.error, EngineError)
    assert "the worker did not answer for 3 seconds" in client.status.reason
    await asyncio.wait_for(client.closed(), 60)
    traces.assert_gone()


def test_an_engine_in_one_process_refuses_ranks():
    with pytest.raises(ConfigError, match="tp_size is 2") as caught:
        Engine("shop", tp_size=2)
    assert caught.value.field == "tp_size"
    with pytest.raises(ConfigError, match="tp_size is 0"):
        Engine("shop", tp_size=0)
    with pytest.raises(ConfigError, match="tp_size is 2; it must be 1 with quantization fp8"):
        Engine("shop", tp_size=2, quantization="fp8")


def test_ranks_that_commit_different_tokens_are_stopped():
    """Rank 1 is a forward ahead, rank 2 behind; the third forward differs."""
    forwards = [[StepResult("a", [number], [7])] for number in range(3)]
    check = RankCheck(3)
    check.compare(Committed(1, digest_of(forwards[0])))
    check.compare(Committed(1, digest_of(forwards[1])))
    check.expect(forwards[0])
    check.expect(forwards[1])
    check.compare(Committed(2, digest_of(forwards[0])))
    check.compare(Committed(2, digest_of(forwards[1])))
    check.expect(forwards[2])
    with pytest.raises(EngineError, match="ranks 0 and 2 of the worker committed different tokens"):
        check.compare(Committed(2, digest_of([StepResult("a", [2], [8])])))
