"""What breaks, and when it ends: failures of the worker and of the loop, shutdown, garbage collection, the exit."""

from __future__ import annotations

import asyncio
import gc
import random
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.runtime.engine import core as core_module
from shoal.runtime.engine.build import build_parts
from shoal.runtime.engine.engine import Engine
from shoal.runtime.engine.loop import EngineLoop
from shoal.runtime.errors import EngineClosedError, EngineError, ModelLoadError
from shoal.runtime.request.output import RequestOutput
from shoal.runtime.request.sampling_params import SamplingParams

from ..freeze import Freeze, frozen_with
from ..tiny import assert_nothing_lost, make_engine, tokens, worker_of

SHORT = SamplingParams(max_new_tokens=8, steps=2, ignore_eos=True)
LONG = SamplingParams(max_new_tokens=120, steps=120, block_length=120, ignore_eos=True)


class Caller(threading.Thread):
    """Calls something, keeps what came of it."""

    def __init__(self, call: Any):
        super().__init__(daemon=True)
        self._call = call
        self.result: Any = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._call()
        except BaseException as error:
            self.error = error

    def finish(self) -> Caller:
        self.join(120)
        assert not self.is_alive(), "a caller hangs"
        return self


def fail_once(engine: Engine, monkeypatch: pytest.MonkeyPatch, after: int = 0) -> None:
    runner = worker_of(engine).executor.runner
    plain, calls = runner.forward, []

    def forward(entries):
        calls.append(len(entries))
        if len(calls) == after + 1:
            raise RuntimeError("no kernel image")
        return plain(entries)

    monkeypatch.setattr(runner, "forward", forward)


@pytest.mark.parametrize("after", [0, 1, 2, 3])
@pytest.mark.parametrize("mode", ["dual", "bicache", "lm"])
def test_a_worker_failure_ends_that_batch_only(llada, monkeypatch, mode, after):
    """Four requests, two at a time: the failing forward's two end with an error, the other two are served."""
    with make_engine(llada, max_running_requests=2) as engine:
        fail_once(engine, monkeypatch, after)
        ends: list[RequestOutput] = []
        prompts = [tokens(20, s) for s in range(4)]
        if mode == "lm" and after == 2:  # the pass whose KVs would have been captured: the answers are complete
            engine.generate(prompts, SHORT, cache_mode=mode, on_output=ends.append)
        else:
            with pytest.raises(EngineError, match="RuntimeError: no kernel image") as caught:
                engine.generate(prompts, SHORT, cache_mode=mode, on_output=ends.append)
            assert caught.value.field == "rid"
        failed = 0 if mode == "lm" and after == 2 else 2
        assert sorted(str(output.finish_reason) for output in ends) == ["error"] * failed + ["length"] * (4 - failed)
        assert engine.generate(tokens(20, 9), SHORT, cache_mode=mode).finish_reason == "length"
        assert_nothing_lost(engine)


def test_a_failure_after_the_capture_leaves_the_capture(llada, monkeypatch):
    with make_engine(llada) as engine:
        fail_once(engine, monkeypatch, after=1)
        with pytest.raises(EngineError):
            engine.generate(tokens(21, 1), SHORT)
        assert engine.generate(tokens(21, 1), SHORT).cached_tokens == 20
        assert_nothing_lost(engine)


def test_a_failing_first_forward_captures_nothing(llada, monkeypatch):
    with make_engine(llada) as engine:
        fail_once(engine, monkeypatch)
        with pytest.raises(EngineError):
            engine.generate([tokens(21, 1), tokens(21, 1)], SHORT)
        assert engine.core.parts.scheduler.memory.tree.num_nodes in (0, 1)
        engine.flush_cache()
        assert engine.generate(tokens(21, 1), SHORT).cached_tokens == 0
        assert_nothing_lost(engine)


async def test_failures_reach_the_asynchronous_callers(llada, monkeypatch):
    with make_engine(llada) as engine:
        fail_once(engine, monkeypatch, after=1)
        with pytest.raises(EngineError):
            await engine.async_generate(tokens(21, 1), SHORT)
        fail_once(engine, monkeypatch, after=1)
        stream = engine.async_stream(tokens(21, 1), SHORT)
        assert not (await anext(stream)).finished
        with pytest.raises(EngineError):
            await anext(stream)
        assert_nothing_lost(engine)


@pytest.mark.parametrize("abort_fails", [False, True])
def test_an_exception_in_the_loop_ends_everybody_and_nobody_hangs(llada, monkeypatch, abort_fails):
    engine = make_engine(llada, max_running_requests=2)
    scheduler = engine.core.parts.scheduler
    ready, submitted = threading.Event(), threading.Semaphore(0)
    plain, plain_submit, steps = scheduler.step, engine.core.loop.submit, []

    def step():
        steps.append(0)
        if len(steps) > 3:
            ready.wait(60)
            raise AssertionError("a bug")
        return plain()

    def submit(*arguments):
        plain_submit(*arguments)
        submitted.release()

    monkeypatch.setattr(scheduler, "step", step)
    monkeypatch.setattr(engine.core.loop, "submit", submit)
    if abort_fails:
        monkeypatch.setattr(scheduler, "abort", lambda rid: 1 / 0)
    callers = [Caller(lambda s=s: engine.generate([tokens(9, s)] * 2, LONG)) for s in range(3)]
    callers.append(Caller(lambda: list(engine.stream(tokens(9, 7), LONG))))
    for _ in callers:
        assert submitted.acquire(timeout=60)
    ready.set()
    for caller in callers:
        caller.finish()
        assert isinstance(caller.error, EngineError | EngineClosedError)
        assert "a bug" in str(caller.error)
    with pytest.raises(EngineClosedError, match="a bug"):
        engine.generate(tokens(9), SHORT)
    with pytest.raises(EngineClosedError):
        engine.check()
    engine.shutdown()


def test_shutdown_ends_what_runs_and_what_waits(llada):
    engine = make_engine(llada, max_running_requests=2)
    stream = engine.stream(tokens(9, 7), LONG)
    with Freeze(engine, bool):
        next(stream)
        callers = [Caller(lambda s=s: engine.generate([tokens(9, s)] * 2, LONG)) for s in range(3)]
        while engine.core.loop._inbox.qsize() < 3:
            time.sleep(0.001)
        engine.core.loop.close(wait=False)
    engine.shutdown()
    engine.shutdown()
    for caller in callers:
        caller.finish()
        assert isinstance(caller.error, EngineClosedError)
    stream.close()


def test_closing_a_stream_or_cancelling_after_shutdown_is_quiet(llada):
    engine = make_engine(llada)
    stream = engine.stream(tokens(9, 7), LONG)
    next(stream)
    engine.shutdown()
    stream.close()
    engine.abort("anything")


async def test_cancelling_while_the_engine_closes(llada):
    engine = make_engine(llada)
    with frozen_with(engine, 3) as frozen:
        task = asyncio.create_task(engine.async_generate([tokens(9, s) for s in range(3)], LONG))
        await asyncio.to_thread(frozen.held.wait)
        engine.core.loop.close(wait=False)
    engine.shutdown()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_calls_after_shutdown(llada):
    with make_engine(llada) as engine:
        assert engine.generate(tokens(9), SHORT).finish_reason == "length"
    with pytest.raises(EngineClosedError):
        engine.generate(tokens(9), SHORT)
    with pytest.raises(EngineClosedError):
        next(engine.stream(tokens(9), SHORT))
    with pytest.raises(EngineClosedError):
        await engine.async_generate(tokens(9), SHORT)
    with pytest.raises(EngineClosedError):
        await anext(engine.async_stream(tokens(9), SHORT))
    for call in (engine.check, engine.flush_cache, engine.cache_snapshot):
        with pytest.raises(EngineClosedError):
            call()
    assert engine.model_config.num_layers == 6


def test_the_context_manager_closes_on_an_error_too(llada):
    with pytest.raises(KeyError), make_engine(llada) as engine:
        raise KeyError
    with pytest.raises(EngineClosedError):
        engine.check()


def test_a_forgotten_engine_is_collected_with_its_pools_and_its_thread(llada, monkeypatch):
    monkeypatch.setattr(core_module, "REST_AFTER_S", 60.0)  # its thread would not end by itself
    engine = make_engine(llada)
    engine.generate(tokens(9), SHORT)
    engine.check()
    pool = weakref.ref(worker_of(engine).executor.kv)
    thread = engine.core.loop.thread
    assert thread is not None
    del engine
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()
    gc.collect()
    assert pool() is None


def test_an_engine_on_a_cpu_is_built_in_a_thread_that_ends(llada, monkeypatch):
    """Else the caller's thread keeps a second OpenMP team, and small operations of the engine's wait to be woken."""
    seen = []

    def record(config):
        seen.append((threading.current_thread(), torch.get_num_threads()))
        return build_parts(config)

    monkeypatch.setattr(core_module, "build_parts", record)
    with make_engine(llada):
        ((thread, count),) = seen
        assert thread is not threading.current_thread()
        assert not thread.is_alive()
        assert count == torch.get_num_threads()
    with pytest.raises(ModelLoadError, match="no model"):
        Engine("no model", device="cpu")


def test_the_thread_of_an_engine_at_rest_ends_and_comes_back(llada, monkeypatch):
    monkeypatch.setattr(core_module, "REST_AFTER_S", 0.01)
    with make_engine(llada) as engine:
        assert engine.core.loop.thread is None  # nothing asked for yet
        answers: list[Any] = []
        threads: list[threading.Thread] = []
        for _ in range(3):
            answers.append(engine.generate(tokens(9), SHORT, cache_mode="none").token_ids)
            thread = engine.core.loop.thread
            if thread is not None:  # it may have gone already
                thread.join(60)
                threads.append(thread)
                assert not thread.is_alive()
            assert engine.core.loop.thread is None
        assert answers[1:] == answers[:-1]
        assert len(set(threads)) == len(threads)
    with pytest.raises(EngineClosedError):
        engine.generate(tokens(9), SHORT)


def test_work_that_comes_while_the_thread_is_about_to_end_is_done(llada, monkeypatch):
    """Short calls of two threads, now and then a moment apart, against a thread that ends whenever it can."""
    monkeypatch.setattr(core_module, "REST_AFTER_S", 0.0002)
    starts = []
    run = EngineLoop._run

    def counted(loop: EngineLoop) -> None:
        starts.append(1)
        run(loop)

    monkeypatch.setattr(EngineLoop, "_run", counted)
    with make_engine(llada) as engine:
        expected = engine.generate(tokens(5), SamplingParams(max_new_tokens=4), cache_mode="none").token_ids

        def ask(seed):
            chooser = random.Random(seed)
            for number in range(60):
                if number % 10 == seed:
                    output = engine.generate(tokens(5), SamplingParams(max_new_tokens=4), cache_mode="none")
                    assert output.token_ids == expected
                else:
                    engine.cached_tokens(tokens(5))
                time.sleep(chooser.choice([0.0, 0.0001, 0.0005, 0.002]))
            return True

        with ThreadPoolExecutor(2) as pool:
            assert all(pool.map(ask, range(2)))
    assert len(starts) > 5


def test_a_system_that_gives_no_thread_is_told_of_and_does_no_lasting_harm(llada, monkeypatch):
    """The call raises, and is not carried out by a later one's thread."""
    with make_engine(llada) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", lambda thread: no_thread())
            with pytest.raises(RuntimeError, match="can't start new thread"):
                engine.generate(tokens(9), SHORT)
        assert engine.generate(tokens(9), SHORT).finish_reason == "length"
        assert engine.core.parts.scheduler.counters.requests == 1


def no_thread() -> None:
    """As the standard library does it."""
    raise RuntimeError("can't start new thread")


def test_an_engine_that_never_worked_can_be_closed(llada):
    engine = make_engine(llada)
    engine.shutdown()
    engine.shutdown()
    with pytest.raises(EngineClosedError):
        engine.generate(tokens(9), SHORT)


def test_a_program_may_end_without_shutdown(llada):
    """At any moment: idle, and while a request runs."""
    program = f"""
from shoal import Engine, SamplingParams
engine = Engine({str(llada)!r}, device="cpu", kv_cache_tokens=512)
engine.generate([5, 6], SamplingParams(max_new_tokens=8))
stream = engine.stream([5, 6], SamplingParams(max_new_tokens=128, ignore_eos=True))
print(next(stream).finish_reason)
"""
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=200, cwd=root
    )
    assert done.stdout == "None\n"
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
