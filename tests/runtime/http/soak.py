"""Hostile and normal clients against a real server process; a report that judges itself.

python -m tests.runtime.http.soak --minutes 20 --out soak.json

A quiet phase (normal clients alone), one in which every hostile request is refused, one in which all kinds are mixed,
and the end: 5 seconds after the last client has left the server may hold nothing. Exit code 1 when a criterion fails.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx

from shoal.provenance import commit, hardware

from .hostile import BODIES, MIXED, REFUSED, UNANSWERED, Attack, large
from .process import ServerProcess, held_pages, metric_values, wait_idle

FLAGS = ("--kv-cache-tokens", "4096", "--max-running-requests", "8", "--max-queued-requests", "64",
         "--request-timeout-s", "60")  # fmt: skip
PHASES = {"quiet": 0.15, "refused": 0.15, "mixed": 0.7}
NORMAL_CLIENTS, HOSTILE_CLIENTS, REFUSED_CLIENTS = 2, 3, 10
REFUSED_PAUSE_S = 10.0
SETTLE_S = 5.0
PAGES_OF_A_PROMPT = 150
"""KV pages that a prompt of 500 tokens holds while it runs, and a few more: with fewer free ones, it evicts others."""
MEMORY_FACTOR, MEMORY_SLACK_MB = 1.10, 8.0
"""What a process may have at the end: 10 percent more than after one round of everything, and what a heap jitters."""
LATENCY_FACTOR = 2.0


class Soak:
    """One run.

    Args:
        server: the process, ready.
        seconds: how long the phases take together.
        seed: of the choices.
    """

    def __init__(self, server: ServerProcess, seconds: float, seed: int):
        self._server = server
        self._seconds = seconds
        self._chooser = random.Random(seed)
        self._start = time.monotonic()
        self._phase = "quiet"
        self._latencies: dict[str, list[float]] = defaultdict(list)
        self._replies: dict[str, Counter[str]] = defaultdict(Counter)
        self._memory: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._held: list[tuple[float, int]] = []
        with server.client() as client:
            self._pids = client.get("/server_info").json()["processes"]

    async def run(self) -> dict[str, Any]:
        """All phases; the report."""
        await self._during(self._normals(), 1.0, "warm-up")
        await self._one_of_each()
        before = self._resident()
        for phase, share in PHASES.items():
            self._phase = phase
            hostile = {"quiet": [], "refused": self._hostile(REFUSED, REFUSED_CLIENTS, REFUSED_PAUSE_S),
                       "mixed": self._hostile(MIXED, HOSTILE_CLIENTS, 0.2)}[phase]  # fmt: skip
            await self._during([*self._normals(), *hostile, self._watch], share * self._seconds, phase)
        self._phase = "after"
        orphans = await asyncio.to_thread(self._orphans)
        return self._report(before, self._resident(), orphans)

    async def _during(self, work: list[Callable[[], Coroutine[Any, Any, None]]], seconds: float, phase: str) -> None:
        tasks = [asyncio.create_task(one()) for one in work]
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()
        print(f"{time.monotonic() - self._start:7.1f} s  {phase} done", file=sys.stderr, flush=True)

    # Clients

    def _normals(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        return [self._normal] * NORMAL_CLIENTS

    async def _normal(self) -> None:
        async with httpx.AsyncClient(base_url=self._server.url, verify=False, timeout=120) as client:
            while True:
                route, body = self._chooser.choice(NORMAL)
                start = time.monotonic()
                try:
                    reply = await client.post(route, json=body)
                    self._replies["normal"][str(reply.status_code)] += 1
                    if reply.status_code == 200:
                        self._latencies[self._phase].append(time.monotonic() - start)
                except httpx.HTTPError as error:
                    self._replies["normal"][type(error).__name__] += 1
                await asyncio.sleep(0.05)

    def _hostile(
        self, attacks: tuple[Attack, ...], count: int, pause: float
    ) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        async def client() -> None:
            while True:
                await self._attack(self._chooser.choice(attacks))
                await asyncio.sleep(pause)

        return [client] * count

    async def _attack(self, attack: Attack) -> None:
        for status in await attack(self._server, self._chooser):
            self._replies[attack.__name__][status] += 1

    async def _one_of_each(self) -> None:
        """What a process takes once is no growth; neither are pages of a pool when they are first written to, so the
        cache is full afterwards."""
        self._phase = "warm-up"
        for name in BODIES:
            large(name)
        for attack in (*MIXED, *REFUSED, *REFUSED):
            await self._attack(attack)
        async with httpx.AsyncClient(base_url=self._server.url, verify=False, timeout=120) as client:
            while await self._free_pages(client) > PAGES_OF_A_PROMPT:
                body = {"input_ids": [self._chooser.randrange(5, 140) for _ in range(500)], "max_new_tokens": 0}
                (await client.post("/generate", json=body)).raise_for_status()
        await asyncio.to_thread(self._orphans)

    async def _free_pages(self, client: httpx.AsyncClient) -> float:
        """Free pages of the pool that has fewer of them."""
        lines = (await client.get("/metrics")).text.splitlines()
        free = [float(line.split()[-1]) for line in lines if line.startswith('shoal:pages{held="free"')]
        assert len(free) == 2
        return min(free)

    # What is watched

    async def _watch(self) -> None:
        async with httpx.AsyncClient(base_url=self._server.url, verify=False, timeout=60) as client:
            while True:
                now = round(time.monotonic() - self._start, 1)
                for role, megabytes in self._resident().items():
                    self._memory[role].append((now, megabytes))
                self._held.append((now, (await client.get("/get_load")).json()[0]["num_reqs"]))
                await asyncio.sleep(max(1.0, self._seconds / 200))

    def _resident(self) -> dict[str, float]:
        """Resident memory of every process, MB."""
        found = {}
        for role, pid in self._pids.items():
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            found[role] = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))
        return {role: round(megabytes, 1) for role, megabytes in found.items()}

    def _orphans(self) -> int:
        """Requests that the scheduler holds, and pages held by requests, SETTLE_S after all clients have left."""
        time.sleep(SETTLE_S)
        with self._server.client() as client:
            pages, requests = held_pages(client)
            wait_idle(client)  # what is left after all belongs to this phase, not to the next
        return pages + requests

    # Judgement

    def _report(self, before: dict[str, float], after: dict[str, float], orphans: int) -> dict[str, Any]:
        with self._server.client() as client:
            values = metric_values(client)
        failed = sum(v for k, v in values.items() if k.startswith("shoal:http_requests_total") and 'status="500"' in k)
        seen = sum(replies["500"] for replies in self._replies.values())
        answered = sum(self._replies[attack.__name__]["200"] for attack in UNANSWERED)
        normal = {phase: _latency(self._latencies[phase]) for phase in PHASES}
        unanswered = sum(n for status, n in self._replies["normal"].items() if not status.isdigit())
        ratio = normal["refused"]["p99_s"] / max(normal["quiet"]["p99_s"], 1e-9)
        growth = {role: after[role] - MEMORY_SLACK_MB - MEMORY_FACTOR * before[role] for role in before}
        criteria = [
            _criterion("replies_500", max(failed, seen), 0),
            _criterion("refusable_requests_with_a_200", answered, 0),
            _criterion("orphans", orphans, 0),
            _criterion("normal_requests_without_reply", unanswered, 0),
            _criterion("memory_growth_mb_over_limit", round(max(0.0, *growth.values()), 1), 0),
            _criterion("normal_p99_refused_over_quiet", round(ratio, 2), LATENCY_FACTOR),
        ]
        return {
            "passed": all(c["passed"] for c in criteria),
            "criteria": criteria,
            "seconds": round(time.monotonic() - self._start, 1),
            "normal": normal,
            "replies": {kind: dict(sorted(counts.items())) for kind, counts in sorted(self._replies.items())},
            "memory_before_mb": before,
            "memory_after_mb": after,
            "memory_mb": self._memory,
            "requests_held": self._held,
            "server_flags": FLAGS,
        }


NORMAL: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/generate", {"text": "red", "max_new_tokens": 16, "steps": 2, "block_length": 8}),
    ("/generate", {"text": "blue", "max_new_tokens": 16, "steps": 4, "block_length": 8, "stream": True}),
    ("/v1/completions", {"prompt": "red plum", "max_tokens": 8, "echo": True}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "red"}], "max_tokens": 16}),
    ("/score", {"text": "red", "choices": ["apple", "plum 12"]}),
    ("/tokenize", {"prompt": "red plum"}),
)


def _latency(seconds: list[float]) -> dict[str, Any]:
    ordered = sorted(seconds) or [0.0]
    return {"count": len(seconds), "p50_s": round(ordered[len(ordered) // 2], 4),
            "p99_s": round(ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)], 4)}  # fmt: skip


def _criterion(name: str, value: float, limit: float) -> dict[str, Any]:
    return {"name": name, "value": value, "limit": limit, "passed": value <= limit}


def soak(seconds: float, seed: int = 0, log: Path | None = None) -> dict[str, Any]:
    """Start a server, run, stop it; the report."""
    with tempfile.TemporaryDirectory() as folder, ServerProcess(log or Path(folder) / "server.log", *FLAGS) as server:
        return asyncio.run(Soak(server, seconds, seed).run())


def _compact(text: str) -> str:
    """JSON with each pair of numbers on one line."""
    return re.sub(r"\[\s+([-0-9.]+),\s+([-0-9.]+)\s+\]", r"[\1, \2]", text)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file for the report; standard output when absent")
    parser.add_argument("--log", type=Path, help="file for the server's log")
    arguments = parser.parse_args()
    report = soak(60 * arguments.minutes, arguments.seed, arguments.log)
    command = f"python -m tests.runtime.http.soak --minutes {arguments.minutes:g} --seed {arguments.seed}"
    report = {"command": command, "commit": commit(), "hardware": hardware(), **report}
    text = _compact(json.dumps(report, indent=1)) + "\n"
    if arguments.out is None:
        print(text, end="")
    else:
        arguments.out.write_text(text, encoding="utf-8")
    for one in report["criteria"]:
        print(f"{'pass' if one['passed'] else 'FAIL'}  {one['name']}: {one['value']} (limit {one['limit']})",
              file=sys.stderr)  # fmt: skip
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
