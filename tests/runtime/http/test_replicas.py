"""`--dp-size`: replicas behind sglang's router, started, watched and stopped by one command."""

from __future__ import annotations

import contextlib
import functools
import http.client
import itertools
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import httpx
import pytest

from shoal.launch_server import main
from shoal.replicas import ReplicaConfig, Replicas
from shoal.runtime.config import EngineConfig
from shoal.runtime.errors import ConfigError
from shoal.runtime.http.config import ServerConfig
from shoal.runtime.pipeline.config import PipelineConfig

from ..pipeline.running import alive
from .process import free_port, wait_for


def replicas(engine: EngineConfig, gpus: int = 0, server: ServerConfig | None = None, count: int = 2) -> Replicas:
    return Replicas(ReplicaConfig(dp_size=count), engine, PipelineConfig(), server or ServerConfig(), gpus)


def test_replicas_get_every_option_a_port_and_their_share(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    server = ServerConfig(host="0.0.0.0", port=1, api_key="secret", log_json=True, playground=False)
    made = replicas(EngineConfig(device="cpu", page_size=8, model_path="-m"), server=server)
    first, second = (made.command(number)[3:] for number in (0, 1))
    assert {"--device=cpu", "--page-size=8", "--model-path=-m", "--host=127.0.0.1", "--log-json"} <= set(first)
    assert "--no-playground" in first
    assert "secret" not in " ".join(first)
    assert made.environment()["SHOAL_API_KEY"] == "secret"
    assert made.environment()["OMP_NUM_THREADS"] == "4"
    for url, own in zip(made.urls, (first, second), strict=True):
        assert f"--port={url.rpartition(':')[2]}" in own
    assert len(set(made.urls)) == 2


def test_replicas_get_gpus_of_their_own():
    made = replicas(EngineConfig(device="auto", tp_size=2), gpus=4)
    assert ["--device=cuda:0" in made.command(0), "--device=cuda:2" in made.command(1)] == [True, True]
    with pytest.raises(ConfigError, match="dp_size is 3; with tp_size 2 it needs 6 GPUs of 4"):
        replicas(EngineConfig(tp_size=2), gpus=4, count=3)
    with pytest.raises(ConfigError, match="it needs 3 GPUs of 2") as caught:
        replicas(EngineConfig(device="cuda:1"), gpus=2)
    assert caught.value.limit == 1


class Child:
    """A process that runs until `code` is set."""

    def __init__(self) -> None:
        self.code: int | None = None

    returncode = property(lambda self: self.code)

    def poll(self) -> int | None:
        return self.code

    def terminate(self) -> None:
        self.code = 0

    def wait(self, timeout: float) -> None:
        assert self.code is not None


def test_the_pause_before_a_new_start_is_short_again_after_a_replica_got_ready(monkeypatch):
    """Also while the router runs; an answer that is no HTTP means that a replica is not ready."""
    made = replicas(EngineConfig(device="cpu"))
    now, started, answers = 0.0, list[tuple[float, bool, Child]](), [http.client.BadStatusLine("x")]

    def start(command: list[str], environment: dict[str, str]) -> Child:
        child = Child()
        started.append((now, "sglang_router.launch_router" in command, child))
        return child

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        running = [child for _, is_router, child in started if not is_router and child.code is None]
        if any(is_router for _, is_router, _ in started) and len(running) == 2:
            running[0].code = 1
        if len(started) == 9:
            made._stop()

    def urlopen(url: str, timeout: float) -> contextlib.nullcontext[types.SimpleNamespace]:
        if answers:
            raise answers.pop()
        return contextlib.nullcontext(types.SimpleNamespace(status=200))

    monkeypatch.setattr("shoal.replicas._start", start)
    monkeypatch.setattr("shoal.replicas.time", types.SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    monkeypatch.setattr("shoal.replicas.urllib.request.urlopen", urlopen)
    monkeypatch.setattr("shoal.replicas.signal.signal", lambda *_: None)
    assert made.run() == 0
    assert [is_router for _, is_router, _ in started] == [False, False, True, *[False] * 6]
    times = [at for at, _, _ in started[2:]]
    assert max(after - before for before, after in itertools.pairwise(times)) < 2


def test_without_the_router_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["shop", "--dp-size", "2"]) == 2
    assert "pip install 'shoal[router]'" in capsys.readouterr().err
    assert main(["shop", "--dp-size", "0"]) == 2
    assert "dp_size is 0" in capsys.readouterr().err


def test_a_model_that_can_not_be_split_is_refused_at_once(capsys):
    assert main(["shop", "--tp-size", "3"]) == 2
    assert "tp_size is 3; it must divide the model's num_kv_heads = 4" in capsys.readouterr().err


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def ready(url: str) -> int:
    """Workers that the router finds healthy."""
    try:
        if httpx.get(f"{url}/readiness", timeout=10).status_code != 200:
            return 0
        workers = httpx.get(f"{url}/workers", timeout=10).json()["workers"]
        return sum(bool(worker["is_healthy"]) for worker in workers)
    except (httpx.TransportError, KeyError, ValueError):
        return 0


@pytest.mark.slow
def test_a_replica_that_is_killed_comes_back_and_nothing_is_left_at_the_end(tmp_path):
    pytest.importorskip("sglang_router")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "shoal.launch_server", "shop", "--device", "cpu", "--dp-size", "2",
               "--port", str(port), "--kv-cache-tokens", "16384", "--drain-timeout", "2"]  # fmt: skip
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        assert wait_for(lambda: ready(url) == 2, 180), (tmp_path / "log").read_text()[-3000:]
        body = {"text": "red", "sampling_params": {"max_new_tokens": 8, "ignore_eos": True}}
        ask = functools.partial(httpx.post, f"{url}/generate", json=body, timeout=60)
        assert ask().status_code == 200
        everybody = children(process.pid)
        assert len(everybody) == 3  # two replicas and the router
        os.kill(everybody[0], signal.SIGKILL)
        assert wait_for(lambda: ask().status_code == 200, 60)  # the other one answers
        assert wait_for(lambda: len(set(children(process.pid)) - set(everybody)) == 1, 60)
        assert wait_for(lambda: ready(url) == 2, 180)
        assert ask().status_code == 200
        everybody = children(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        deadline = time.monotonic() + 30
        while any(map(alive, everybody)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(map(alive, everybody))
    finally:
        process.kill()
        process.wait()
