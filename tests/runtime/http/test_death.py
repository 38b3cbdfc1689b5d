"""kill -9 of each process under load: every client gets an answer, the server ends, nothing is left."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time

import httpx
import pytest

from .process import ServerProcess, wait_for, wait_load

# 512 forward passes of 4 requests of 512 tokens: nobody is done before the end.
BODY = {"text": "red", "sampling_params": {"max_new_tokens": 512, "steps": 512, "block_length": 8, "ignore_eos": True},
        "cache_mode": "none"}  # fmt: skip
CLIENTS = 16
ROLES = ("tokenizer", "scheduler", "worker", "detokenizer")


@pytest.mark.parametrize("role", ROLES)
def test_a_killed_process_under_load(tmp_path, short_folder, role):
    flags = ("--kv-cache-tokens", "16384", "--max-running-requests", "4")
    server = ServerProcess(tmp_path / "log", *flags, environment={"TMPDIR": str(short_folder)})
    try:
        server.wait_ready()
        kill_and_look(server, role, short_folder)
    finally:
        server.process.kill()


def kill_and_look(server, role, sockets):
    with server.client() as client:
        processes = client.get("/server_info").json()["processes"]
        assert set(processes) == {"http", *ROLES}
        assert len(list(sockets.glob("shoal-*/*"))) >= len(ROLES)
        ends: queue.SimpleQueue[tuple[float, bool]] = queue.SimpleQueue()
        threads = [threading.Thread(target=run_client, args=(server.url, i % 2 == 0, ends)) for i in range(CLIENTS)]
        for thread in threads:
            thread.start()
        wait_load(client, CLIENTS)

    health: queue.SimpleQueue[int] = queue.SimpleQueue()
    looks = threading.Thread(target=look_at_health, args=(server.url, health))
    looks.start()
    wait_for(lambda: not health.empty())
    killed = time.monotonic()
    os.kill(processes[role], signal.SIGKILL)
    for thread in threads:
        thread.join(30)
    outcomes = [ends.get_nowait() for _ in range(CLIENTS)]
    assert all(told for _, told in outcomes), "a client was left without an error"
    assert max(at for at, _ in outcomes) - killed < 5
    assert server.process.wait(30) == 1
    looks.join(30)
    assert [health.get_nowait() for _ in range(health.qsize())][-1] == 503
    assert f"the {role} process ended by signal SIGKILL" in server.log_text()
    assert not list(sockets.iterdir())
    assert not [pid for pid in processes.values() if os.path.exists(f"/proc/{pid}")]


def run_client(url, stream, ends):
    """One request; when it ended, and whether it was with an error in words."""
    told = False
    try:
        with httpx.stream("POST", f"{url}/generate", json={**BODY, "stream": stream}, timeout=120) as reply:
            text = reply.read().decode()
            told = reply.status_code in (500, 503) or '{"error":' in text
    finally:
        ends.put((time.monotonic(), told))


def look_at_health(url, statuses):
    """What /health says, until the server is gone."""
    with httpx.Client(base_url=url, timeout=30) as client:
        while True:
            try:
                statuses.put(client.get("/health").status_code)
            except httpx.TransportError:
                return
            time.sleep(0.01)
