"""`--dp-size`: replicas behind sglang's router, started, watched and stopped by one command."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
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
    assert [f"--port={url.rpartition(':')[2]}" in own for url, own in zip(made.urls, (first, second), strict=True)]
    assert len(set(made.urls)) == 2


def test_replicas_get_gpus_of_their_own():
    made = replicas(EngineConfig(device="auto", tp_size=2), gpus=4)
    assert ["--device=cuda:0" in made.command(0), "--device=cuda:2" in made.command(1)] == [True, True]
    with pytest.raises(ConfigError, match="dp_size is 3; with tp_size 2 it needs 6 GPUs of 4"):
        replicas(EngineConfig(tp_size=2), gpus=4, count=3)
    with pytest.raises(ConfigError, match="it needs 3 GPUs of 2"):
        replicas(EngineConfig(device="cuda:1"), gpus=2)


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
