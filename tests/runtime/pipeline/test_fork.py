"""Children made by fork of the process that has a pipeline: they can neither use it, nor stop it, nor keep it alive."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from shoal.runtime.request.trace_options import TraceOptions

from ..forking import in_child, in_own_loop
from .running import PROMPT, last, request, running


async def test_a_child_is_refused_and_its_end_stops_nothing():
    async with running() as client:
        assert (await last(client, request("a"))).finish_reason == "length"
        pipeline = client.pipeline
        assert pipeline is not None
        calls: list[Callable[[], Any]] = [
            lambda: last(client, request("b")), client.abort, client.flush_cache, client.cache_snapshot, client.stats,
            lambda: client.tokenize("abc"), lambda: client.detokenize(PROMPT), client.stop_profile,
            lambda: client.start_profile(TraceOptions(output_dir="/tmp")), client.start,
        ]  # fmt: skip
        words = in_child(lambda: "\n".join(in_own_loop(call) for call in calls)).splitlines()
        assert len(words) == len(calls)
        for word in words:
            assert word.startswith("EngineClosedError: the pipeline was made in another process"), word

        def end() -> str:
            assert client.status.state == "dead"
            states = [in_own_loop(call) for call in (client.closed, client.shutdown, pipeline.stop)]
            pipeline.kill()
            return " ".join(states)

        assert "was made in another process" in in_child(end, ends=True)
        assert client.status.state == "up"
        assert (await last(client, request("c"))).finish_reason == "length"


async def test_a_child_that_lives_on_does_not_keep_the_processes():
    """They end when their standard input does: a child must not hold the other end of it."""
    reader, writer = os.pipe()
    async with running() as client:
        child = os.fork()
        if not child:
            os.close(writer)
            os.read(reader, 1)  # until the parent has closed its end
            os._exit(0)
        os.close(reader)
        pipeline = client.pipeline
        assert pipeline is not None
        processes = list(pipeline.processes.values())
        await client.shutdown()
    assert [process.returncode for process in processes] == [0] * 4
    os.close(writer)
    os.waitpid(child, 0)
