"""Freed memory returns to the system once there is nothing to do."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from shoal.runtime.config import EngineConfig
from shoal.runtime.cpu_tuning import return_freed_memory
from shoal.runtime.http import state
from shoal.runtime.http.app import create_app
from shoal.runtime.http.config import ServerConfig
from shoal.runtime.pipeline import worker
from shoal.runtime.pipeline.messages import Drop, Run
from shoal.runtime.request.forward import Forward, Release
from shoal.runtime.request.sampling_params import SamplingParams
from shoal.runtime.service.service import ServiceStatus

from .http.process import wait_for
from .tiny import make_engine, tokens


def resident() -> float:
    """Resident memory of this process, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_memory_between_what_is_in_use_is_returned():
    kept = [bytearray(100_000) for _ in range(1000)]
    del kept[1::2]  # leaves holes of 100 kB
    before = resident()
    return_freed_memory()
    assert resident() < before - 40
    assert len(kept) == 500


class Quiet:
    """An inbox with messages; where the list has a None, none arrives for a while."""

    def __init__(self, messages: list[Any]):
        self._messages = messages

    def is_quiet(self, seconds: float) -> bool:
        if self._messages and self._messages[0] is None:
            del self._messages[0]
            return True
        return False

    def receive(self) -> Any:
        while self._messages and self._messages[0] is None:
            del self._messages[0]
        if not self._messages:
            raise EOFError
        return self._messages.pop(0)


@pytest.mark.parametrize(("device", "times"), [("cpu", 2), ("cuda", 0)])
def test_the_worker_returns_it_once_after_it_has_computed(monkeypatch, device, times):
    run, drop = Run(Forward((), 1)), Drop(Release(("a",)))
    returned: list[int] = []
    inbox = Quiet([None, run, run, None, drop, None, run, None])
    child: Any = SimpleNamespace(
        inbox=lambda *_: inbox, outbox=lambda *_: SimpleNamespace(send=lambda message: None), ready=lambda facts: None,
        spec=SimpleNamespace(engine=EngineConfig(), name="worker", rank=0),
    )  # fmt: skip
    process = worker.WorkerProcess(child)
    facts = SimpleNamespace(device=device, dtype="float32", kv_pages=1, boundary_pages=1)
    does = SimpleNamespace(forward=lambda message: [], release=lambda message: None)
    monkeypatch.setattr(process, "_build", lambda: (does, facts))
    monkeypatch.setattr(worker, "return_freed_memory", lambda: returned.append(1))
    with pytest.raises(EOFError):
        process.run()
    assert len(returned) == times


def test_an_engine_returns_it_when_its_thread_rests(llada, monkeypatch):
    returned: list[int] = []
    monkeypatch.setattr("shoal.runtime.engine.loop.return_freed_memory", lambda: returned.append(1))
    monkeypatch.setattr("shoal.runtime.engine.core.REST_AFTER_S", 0.05)
    with make_engine(llada) as engine:
        engine.generate(tokens(12), SamplingParams(max_new_tokens=8))
        wait_for(lambda: returned)


@pytest.fixture
def app(monkeypatch) -> FastAPI:
    monkeypatch.setattr(state, "_RETURN_MEMORY_S", 0.05)
    service: Any = SimpleNamespace(status=ServiceStatus("up"), info=SimpleNamespace(max_tokens=640))
    made = create_app(service, ServerConfig())
    made.state.server.warm = True
    return made


@pytest.mark.parametrize(("size", "times"), [(70_000, 1), (100, 0)])
async def test_the_http_process_returns_that_of_large_bodies_once_for_many(app, monkeypatch, size, times):
    returned: list[int] = []
    monkeypatch.setattr(state, "return_freed_memory", lambda: returned.append(1))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost:30000") as client:
        body = {"rid": "x" * size, "abort_all": 3}
        replies = await asyncio.gather(*(client.post("/abort_request", json=body) for _ in range(5)))
    assert {reply.status_code for reply in replies} == {400}
    await asyncio.sleep(0.2)
    assert len(returned) == times
