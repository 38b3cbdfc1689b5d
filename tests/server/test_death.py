"""kill -9 of each process under load: every client gets an answer, the server ends, nothing is left."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time

import httpx
import pytest

from .process import ServerProcess

BODY = {"text": "red", "sampling_params": {"max_new_tokens": 512, "steps": 512, "block_length": 8, "ignore_eos": True},
        "cache_mode": "dual"}  # fmt: skip
CLIENTS = 16
ROLES = ("tokenizer", "scheduler", "worker", "detokenizer")


@pytest.mark.parametrize("role", ROLES)
def test_a_killed_process_under_load(tmp_path, role):
    sockets = tmp_path / "sockets"
    sockets.mkdir()
    flags = ("--kv-cache-tokens", "16384", "--max-running-requests", "4")
    server = ServerProcess(tmp_path / "log", *flags, environment={"TMPDIR": str(sockets)})
    server.wait_ready()
    processes = httpx.get(f"{server.url}/server_info").json()["processes"]
    assert set(processes) == {"http", *ROLES}
    assert len(list(sockets.glob("shoal-*/*"))) >= len(ROLES)
    ends: queue.SimpleQueue[tuple[float, bool]] = queue.SimpleQueue()
    threads = [threading.Thread(target=run_client, args=(server.url, index % 2 == 0, ends)) for index in range(CLIENTS)]
    for thread in threads:
        thread.start()
    while httpx.get(f"{server.url}/get_load").json()[0]["num_reqs"] < CLIENTS:
        time.sleep(0.02)

    killed = time.monotonic()
    os.kill(processes[role], signal.SIGKILL)
    assert sees_503(server.url, killed + 3)
    for thread in threads:
        thread.join(10)
    outcomes = [ends.get_nowait() for _ in range(CLIENTS)]
    assert all(told for _, told in outcomes), "a client was left without an error"
    assert max(at for at, _ in outcomes) - killed < 5
    assert server.process.wait(10) == 1
    assert f"the {role} process ended by signal SIGKILL" in server.log_text()
    assert not list(sockets.iterdir())
    assert not [pid for pid in processes.values() if os.path.exists(f"/proc/{pid}")]


def run_client(url, stream, ends):
    """One request; when it ended, and whether it was with an error in words."""
    told = False
    try:
        with httpx.stream("POST", f"{url}/generate", json={**BODY, "stream": stream}, timeout=60) as reply:
            text = reply.read().decode()
            told = reply.status_code in (500, 503) or '{"error":' in text
    finally:
        ends.put((time.monotonic(), told))


def sees_503(url, deadline):
    """Whether /health says 503 before the server is gone."""
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/health").status_code == 503:
                return True
        except httpx.TransportError:
            return False
        time.sleep(0.02)
    return False
