"""What happens when a process dies, hangs, fails to start, or is told to stop; and that nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

from shoal.runtime.child import Spec
from shoal.runtime.engine_config import EngineConfig
from shoal.runtime.errors import ConfigError, EngineClosedError, EngineError, ModelLoadError
from shoal.runtime.pipeline_client import PipelineClient
from shoal.runtime.pipeline_config import PipelineConfig
from shoal.runtime.wire import ROLES

from .running import Traces, alive, arrived, held, last, make_client, request, until_running, wait_gone

LONG = {"size": 512, "steps": 512, "block_length": 8}
SLOW = {"null_tokens": 1, "delay": 0.05}  # 25 seconds for a LONG request


async def start(**options) -> tuple[PipelineClient, Traces]:
    client = make_client(**{"load_format": "dummy", **options})  # no tokenizer to load: prompts are token ids
    await client.start()
    return client, Traces(client)


@pytest.mark.parametrize("role", ROLES)
async def test_a_killed_process_ends_everything_with_errors(role):
    """kill -9 while 16 requests run that take much longer than all of this."""
    client, traces = await start(**SLOW)
    requests = [asyncio.create_task(last(client, request(str(number), **LONG))) for number in range(16)]
    await until_running(client, 16)
    begin = time.monotonic()
    os.kill(client.pids[role], signal.SIGKILL)
    outputs = await asyncio.wait_for(asyncio.gather(*requests), 5)
    status = await asyncio.wait_for(client.closed(), 5)
    assert time.monotonic() - begin < 5
    assert status.state == "dead"
    assert f"the {role} process ended by signal SIGKILL" in status.reason
    for output in outputs:
        assert output.finish_reason == "error"
        assert isinstance(output.error, EngineError)
        assert role in output.error.message
    traces.assert_gone()
    for call in (client.stats(), client.tokenize("a"), client.abort(), last(client, request("late"))):
        with pytest.raises(EngineClosedError, match=role):
            await call
    await client.shutdown()


async def test_a_hanging_scheduler_is_noticed():
    client, traces = await start(watchdog=0.6)
    os.kill(client.pids["scheduler"], signal.SIGSTOP)
    output = await asyncio.wait_for(last(client, request("a")), 60)
    assert isinstance(output.error, EngineError)
    assert "watchdog_timeout_s" in output.error.message
    await asyncio.wait_for(client.closed(), 60)
    traces.assert_gone()


async def test_a_hanging_worker_is_noticed():
    client, traces = await start(watchdog=1.5)
    os.kill(client.pids["worker"], signal.SIGSTOP)
    output = await asyncio.wait_for(last(client, request("a")), 60)
    assert isinstance(output.error, EngineError)
    assert "the worker did not answer for 1.5 seconds" in client.status.reason
    await asyncio.wait_for(client.closed(), 60)
    traces.assert_gone()


@pytest.mark.parametrize(
    ("options", "error", "field"),
    [
        ({"model_path": "nowhere/at-all/x"}, ModelLoadError, "model"),
        ({"layers_per_band": 99}, ConfigError, "layers_per_band"),
        ({"depth_profile": "no-such-file.json"}, ConfigError, "depth_profile"),
    ],
)
async def test_a_start_that_fails_raises_a_typed_error_and_leaves_nothing(options, error, field, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    client = make_client(**options)
    with pytest.raises(error) as caught:
        await client.start()
    assert caught.value.field == field
    assert client.status.state == "dead"
    assert list(tmp_path.glob("shoal-*")) == []
    assert not any(map(alive, client.pids.values()))
    await asyncio.wait_for(client.closed(), 30)
    await client.shutdown()


def test_a_model_that_is_being_fetched_holds_up_no_end(monkeypatch):
    fetched = threading.Event()
    monkeypatch.setattr("shoal.runtime.pipeline_client.resolve_model_folder", lambda _: fetched.wait())

    async def start_and_stop() -> None:
        client = make_client()
        starting = asyncio.create_task(client.start())
        await asyncio.sleep(0)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await client.shutdown()
        assert client.status.state == "dead"

    thread = threading.Thread(target=asyncio.run, args=(start_and_stop(),), daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    fetched.set()


async def test_before_the_start_nothing_is_served():
    client = make_client()
    assert client.status.state == "starting"
    for call in (client.stats(), client.tokenize("a"), last(client, request("a"))):
        with pytest.raises(EngineClosedError, match="starting"):
            await call
    with pytest.raises(EngineClosedError):
        _ = client.info
    await client.shutdown()
    assert client.status.state == "dead"


async def test_shutdown_drains():
    client, traces = await start()
    with held(client, "worker"):
        task = asyncio.create_task(last(client, request("a", **LONG)))
        await arrived(client)
        stop = asyncio.create_task(client.shutdown(60))
        await asyncio.sleep(0)
        assert client.status.state == "draining"
        with pytest.raises(EngineClosedError, match="draining"):
            await last(client, request("b"))
    assert (await task).finish_reason == "length"
    await stop
    traces.assert_gone()


async def test_what_is_not_done_in_time_is_aborted_at_shutdown():
    client, traces = await start(**SLOW)
    tasks = [asyncio.create_task(last(client, request(f"a{n}", **LONG))) for n in range(16)]
    await until_running(client, 16)
    begin = time.monotonic()
    await client.shutdown(0.01)
    assert time.monotonic() - begin < 4
    assert {output.finish_reason for output in await asyncio.gather(*tasks)} <= {"abort", "error"}
    assert any(output.finish_reason == "abort" for output in await asyncio.gather(*tasks))
    traces.assert_gone()
    await client.shutdown()


PROGRAM = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from tests.pipeline.running import make_client

async def main():
    client = make_client(load_format="dummy")
    await client.start()
    print(client._pipeline.endpoints.directory, *client.pids.values(), flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_children_and_sockets_do_not_outlive_a_killed_parent():
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", PROGRAM, root]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as parent:
        assert parent.stdout is not None
        directory, *pids = parent.stdout.readline().split()
        assert len(pids) == 4
        assert all(alive(int(pid)) for pid in pids)
        assert Path(directory).is_dir()
        parent.kill()
    wait_gone([int(pid) for pid in pids], Path(directory))


@pytest.mark.parametrize(
    ("line", "code"),
    [("whole", 0), ("none", 0), ("half", 0), ("kept open", 1)],
)
def test_a_process_that_is_no_longer_wanted_ends_without_a_word(line, code, tmp_path):
    """Its sockets' directory went before it got there; the thread that watches standard input has seen nothing yet."""
    script = "import shoal.runtime.child as child; child._watch_parent = lambda spec: None; child.main()"
    config = EngineConfig(model_path="shop")
    spec = Spec("scheduler", str(tmp_path / "gone"), os.getpid(), config, PipelineConfig(), "info", False)
    text = msgspec.json.encode(spec) + b"\n"
    words = {"whole": text, "none": b"", "half": text[: len(text) // 2], "kept open": text}[line]
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(words)
        process.stdin.flush()
        if line != "kept open":
            process.stdin.close()
        error = process.stderr.read().decode()
        assert process.wait(60) == code
    assert ("FileNotFoundError" in error) == (line == "kept open")
    assert bool(error) == (line == "kept open")
