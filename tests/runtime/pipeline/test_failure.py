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

from shoal.runtime.config import EngineConfig
from shoal.runtime.engine.service import LocalService
from shoal.runtime.errors import ConfigError, EngineClosedError, EngineError, ModelLoadError, QueueFullError
from shoal.runtime.pipeline.child import SPARED_SIGNALS, Spec
from shoal.runtime.pipeline.client import PipelineClient
from shoal.runtime.pipeline.config import PipelineConfig
from shoal.runtime.pipeline.messages import ROLES, Role
from shoal.runtime.pipeline.processes import Pipeline

from .running import Traces, alive, arrived, held, last, make_client, request, until, until_running, wait_gone

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


@pytest.mark.parametrize("role", ["tokenizer", "scheduler", "detokenizer"])
async def test_a_hanging_process_is_noticed(role):
    client, traces = await start(watchdog=0.6)
    os.kill(client.pids[role], signal.SIGSTOP)
    output = await asyncio.wait_for(last(client, request("a")), 60)
    assert isinstance(output.error, EngineError)
    assert "watchdog_timeout_s" in output.error.message
    await asyncio.wait_for(client.closed(), 60)
    traces.assert_gone()


async def test_processes_that_read_nothing_any_more_are_noticed(monkeypatch):
    """What waits for them has piled up, so that not even the question whether they live can be sent."""
    client, traces = await start(watchdog=0.6)

    def refuse(message):
        raise QueueFullError("the tokenizer is too far behind")

    monkeypatch.setattr(client, "_send", refuse)
    status = await asyncio.wait_for(client.closed(), 60)
    assert "did not answer for 0.6 seconds" in status.reason
    traces.assert_gone()


async def test_a_hanging_worker_is_noticed():
    client, traces = await start(watchdog=1.5)
    client._tasks[1].cancel()  # the heartbeat: on a slow machine it might find the others too slow before
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
async def test_a_start_that_fails_raises_a_typed_error_and_leaves_nothing(
    options, error, field, short_folder, monkeypatch
):
    monkeypatch.setenv("TMPDIR", str(short_folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    client = make_client(**options)
    with pytest.raises(error) as caught:
        await client.start()
    assert caught.value.field == field
    assert client.status.state == "dead"
    assert list(short_folder.glob("shoal-*")) == []
    assert not any(map(alive, client.pids.values()))
    await asyncio.wait_for(client.closed(), 30)
    await client.shutdown()


def test_a_model_that_is_being_fetched_holds_up_no_end(monkeypatch):
    fetched = threading.Event()
    monkeypatch.setattr("shoal.runtime.pipeline.client.resolve_model_folder", lambda _: fetched.wait())

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


def test_the_process_of_a_server_does_not_wait_for_a_model_that_is_being_fetched():
    """Nor for the threads of the Hub's client, which are no daemons. A server in one process neither."""
    program = """
import sys, time, huggingface_hub
from concurrent.futures import ThreadPoolExecutor

def fetch(*arguments, **options):
    print("fetching", flush=True)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(time.sleep, 600).result()

huggingface_hub.snapshot_download = fetch
from shoal.launch_server import main
sys.exit(main(["a/b", "--port", "0", *sys.argv[1:]]))
"""
    for flags in ([], ["--in-process"]):
        command = [sys.executable, "-c", program, *flags]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            try:
                assert process.stdout.readline() == "fetching\n"
                process.terminate()
                assert process.wait(60) == 0
            finally:
                process.kill()


@pytest.mark.parametrize("in_process", [False, True])
async def test_a_service_that_is_shut_down_while_it_starts_does_not_come_up(in_process):
    made = LocalService(EngineConfig(device="cpu")) if in_process else make_client()
    starting = asyncio.create_task(made.start())
    await asyncio.sleep(0)
    await made.shutdown()
    with pytest.raises(EngineClosedError, match="shut down"):
        await starting
    assert made.status.state == "dead"
    assert getattr(made, "pids", {}) == {}


async def test_a_process_that_ends_before_it_was_told_anything_is_named(monkeypatch):
    """There is nobody left to write to."""
    popen = subprocess.Popen

    def gone(command, **options):
        process = popen([sys.executable, "-c", "raise SystemExit(7)"], **options)
        process.wait()
        return process

    monkeypatch.setattr(subprocess, "Popen", gone)
    client = make_client(load_format="dummy")
    with pytest.raises(EngineError, match="the tokenizer process ended with code 7"):
        await client.start()
    await asyncio.wait_for(client.closed(), 30)
    Traces(client).assert_gone()


async def test_the_last_words_of_a_process_may_come_after_its_end(monkeypatch):
    """The thread that reads the socket may be the slower one."""
    ended: list[float] = []
    wait = Pipeline.ended

    async def noted(pipeline: Pipeline):
        role, code = await wait(pipeline)
        ended.append(time.monotonic())
        return role, code

    monkeypatch.setattr(Pipeline, "ended", noted)
    client = make_client(load_format="dummy", layers_per_band=99)
    read = client._read

    def read_late() -> None:
        if ended and time.monotonic() > ended[0] + 0.1:
            read()
        else:
            asyncio.get_running_loop().call_later(0.02, read_late)

    monkeypatch.setattr(client, "_read", read_late)
    with pytest.raises(ConfigError, match="layers_per_band"):
        await client.start()
    assert ended
    Traces(client).assert_gone()


async def test_signals_to_the_whole_group_change_nothing_while_the_processes_start():
    """Ctrl-C, a supervisor's SIGTERM, a terminal that closes: before a process can ignore them."""
    client = make_client(load_format="dummy")
    starting = asyncio.create_task(client.start())
    await until(lambda: len(client.pids) == 4)
    for pid in client.pids.values():
        for kind in SPARED_SIGNALS:
            os.kill(pid, kind)
    await starting
    assert (await last(client, request("a"))).finish_reason == "length"
    await client.shutdown()
    for kind in SPARED_SIGNALS:
        assert kind not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_shutdown_that_is_cancelled_or_comes_twice_leaves_nothing(cancelled):
    """With a process that does not end by itself: the first one waits for it."""
    client, traces = await start()
    with held(client, "detokenizer"):
        first = asyncio.create_task(client.shutdown())
        await until(lambda: client.status.state == "dead")
        if cancelled:
            first.cancel()
        await client.shutdown()
        traces.assert_gone()
    (end,) = await asyncio.gather(first, return_exceptions=True)
    assert isinstance(end, asyncio.CancelledError) == cancelled
    assert (await asyncio.wait_for(client.closed(), 30)).state == "dead"


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
from tests.runtime.pipeline.running import make_client

async def main():
    client = make_client(load_format="dummy")
    starting = asyncio.create_task(client.start())
    while sys.argv[2] == "up" and client.status.state == "starting" or len(client.pids) < 4:
        await asyncio.sleep(0.01)
    print(client.pipeline.endpoints.directory, *client.pids.values(), flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["SIGKILL", "SIGHUP to the group"])
@pytest.mark.parametrize("when", ["starting", "up"])
def test_children_and_sockets_do_not_outlive_a_killed_parent(when, kind):
    """Nor a terminal that closes."""
    root = str(Path(__file__).resolve().parents[3])
    command = [sys.executable, "-c", PROGRAM, root, when]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root, start_new_session=True) as parent:
        assert parent.stdout is not None
        directory, *pids = parent.stdout.readline().split()
        assert len(pids) == 4
        assert all(alive(int(pid)) for pid in pids)
        assert Path(directory).is_dir()
        if kind == "SIGKILL":
            parent.kill()
        else:
            os.killpg(parent.pid, signal.SIGHUP)
    wait_gone([int(pid) for pid in pids], Path(directory))


UNWATCHED = [
    sys.executable, "-c",
    "import shoal.runtime.pipeline.__main__ as child; child._watch_parent = lambda spec: None; child.main()",
]  # fmt: skip


def told(role: Role, directory: Path) -> bytes:
    """The line that a process of the pipeline reads first."""
    config = EngineConfig(model_path="shop")
    return msgspec.json.encode(Spec(role, str(directory), os.getpid(), config, PipelineConfig(), "info", False)) + b"\n"


@pytest.mark.parametrize(
    ("line", "code"),
    [("whole", 0), ("none", 0), ("half", 0), ("kept open", 1)],
)
def test_a_process_that_is_no_longer_wanted_ends_without_a_word(line, code, tmp_path):
    """Its sockets' directory went before it got there; the thread that watches standard input has seen nothing yet."""
    text = told("scheduler", tmp_path / "gone")
    words = {"whole": text, "none": b"", "half": text[: len(text) // 2], "kept open": text}[line]
    with subprocess.Popen(UNWATCHED, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
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


def test_the_detokenizer_clears_the_sockets_away_whatever_fails_when_it_is_no_longer_wanted(tmp_path):
    """It is the one that does, when the parent was killed; here the directory's mode is wrong."""
    directory = tmp_path / "sockets"
    directory.mkdir(mode=0o755)
    line = told("detokenizer", directory)
    done = subprocess.run(UNWATCHED, input=line, stderr=subprocess.PIPE, timeout=60, check=True)
    assert done.stderr == b""
    assert not directory.exists()
