"""Hostile beside normal clients: the soak in short, and ten refused requests in the ordinary suite."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from .process import metric_values, wait_idle
from .soak import soak

DIGITS = "1" * 900_000
HOSTILE = [
    ("/score", {"input_ids": [80], "choices": [[80] * 600] * 64}),
    ("/score", {"text": "red", "choices": [DIGITS]}),
    ("/generate", {"text": DIGITS}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": DIGITS}]}),
    ("/generate", {"text": "red", "sampling_params": {"stop_token_ids": [7] * 200_000}}),
]


def resident(pids: dict[str, int]) -> dict[str, int]:
    """Resident memory of each process, kB."""
    lines = {role: Path(f"/proc/{pid}/status").read_text().splitlines() for role, pid in pids.items()}
    return {role: next(int(line.split()[1]) for line in lines[role] if line.startswith("VmRSS")) for role in lines}


async def test_ten_refused_requests_leave_no_work_and_no_memory(server, client):
    """Beside normal requests, all of which are answered. Limits of memory: 10 percent, and 16 MB of a heap's jitter."""
    pids = client.get("/server_info").json()["processes"]
    normal = {"text": "red", "max_new_tokens": 8, "steps": 1, "block_length": 8}
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as api:

        async def attack() -> list[int]:
            replies = await asyncio.gather(*(api.post(route, json=body) for route, body in HOSTILE * 2),
                                           *(api.post("/generate", json=normal) for _ in range(4)))  # fmt: skip
            return [reply.status_code for reply in replies]

        await attack()  # what a process takes once
        made = metric_values(client)['shoal:num_requests_total{model_name="shop"}']
        before = resident(pids)
        assert await attack() == [400] * 10 + [200] * 4
    wait_idle(client, 5)
    assert metric_values(client)['shoal:num_requests_total{model_name="shop"}'] == made + 4
    after = resident(pids)
    assert {role: after[role] - before[role] for role in pids if after[role] > 1.1 * before[role] + 16_000} == {}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_minute_of_hostile_and_normal_clients():
    """Latencies are for the long run on a machine with nothing else to do."""
    report = soak(60.0)
    failed = [c for c in report["criteria"] if not c["passed"] and c["name"] != "normal_p99_refused_over_quiet"]
    assert failed == [], report["replies"]
    assert report["replies"]["normal"]["200"] > 20
