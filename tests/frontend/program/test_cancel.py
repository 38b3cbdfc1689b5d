"""Programs that are cancelled, alone or among others: their calls are aborted and nothing stays behind."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

import shoal as sgl
from shoal.frontend import EngineBackend, ProgramCancelledError
from shoal.frontend.program.tape import Tape

from ...runtime.freeze import Freeze, frozen_with
from ...runtime.tiny import assert_nothing_lost
from ..gate import Gate, all_calls

LONG: dict[str, Any] = {"max_tokens": 96, "steps": 96, "block_length": 8, "ignore_eos": True}


async def test_fifty_programs_of_which_some_are_cancelled(sharing):
    """At once, behind their first answer, with two branches under way; the others end as they would alone."""
    backend = Gate(sharing)
    reached = [asyncio.Event() for _ in range(50)]

    @sgl.function
    async def program(s, number):
        s += "abcdefghijklmnopqrstuvwxyz"[: 16 + number % 7] + sgl.gen("a", max_tokens=8)
        await s.get("a")
        reached[number].set()
        forks = s.fork(2)
        forks += ["x", "y"]
        forks += sgl.gen("b", max_tokens=16, steps=16, block_length=8, ignore_eos=True)
        forks.join()
        await s.get("b")
        s += "z" + sgl.gen("c", max_tokens=8)

    async def cancel(number: int) -> None:
        if number % 2:
            await reached[number].wait()
        tasks[number].cancel()

    tasks = [asyncio.ensure_future(program.run_async(number, backend=backend)) for number in range(50)]
    given_up = range(0, 50, 3)
    await asyncio.gather(*map(cancel, given_up))
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert_nothing_lost(sharing)
    exact = EngineBackend(sharing, cache_mode="none")
    for number, state in enumerate(ended):
        if number in given_up:
            assert isinstance(state, asyncio.CancelledError)
            continue
        assert isinstance(state, sgl.ProgramState)
        assert [type(state[name]) for name in "abc"] == [str, list, str]
        assert state.error() is None
        assert state.usage.calls == 4
    alone = [await program.run_async(number, backend=exact) for number in (1, 2)]
    together = await asyncio.gather(*[program.run_async(number, backend=exact) for number in (1, 2)])
    assert [s.text() for s in alone] == [s.text() for s in together]


async def test_cancelling_a_run_aborts_its_calls_and_those_of_its_branches(sharing):
    backend = Gate(sharing)
    states = []

    @sgl.function
    async def program(s):
        states.append(s)
        s += "abcdefghijklmnopqrst" + sgl.gen("done", max_tokens=4)
        await s.get("done")
        forks = s.fork(3)
        states.extend(forks)
        forks += sgl.gen("x", **LONG)
        forks.join()
        s += sgl.gen("y", **LONG)
        await s.get("y")

    with frozen_with(sharing, 3, canvas=96) as frozen:
        task = asyncio.ensure_future(program.run_async(backend=backend))
        await asyncio.to_thread(frozen.held.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (backend.done, backend.cancelled) == (1, 3)
    assert_nothing_lost(sharing)
    parent, *branches = states
    assert isinstance(await parent.get("done"), str)
    for state in branches:
        with pytest.raises(sgl.ProgramError, match=r"gen\('x'\) failed: the program was cancelled") as caught:
            await state.get("x")
        assert isinstance(caught.value.__cause__, ProgramCancelledError)
    with pytest.raises(sgl.ProgramError, match="cancelled"):
        await parent.get("y")
    with pytest.raises(sgl.ProgramEndedError):
        parent.append("more")


@pytest.mark.parametrize("reads", [False, True])
async def test_cancelling_a_batch_ends_its_programs_and_gives_back_its_pins(sharing, reads):
    backend = Gate(sharing)

    @sgl.function
    def program(s, text):
        s += "abcdefghijklmnopqrstuvwxyz" + text + sgl.gen("x", **LONG)
        if reads:
            s["length"] = len(s["x"])

    with frozen_with(sharing, 4, canvas=96) as frozen:
        work = asyncio.ensure_future(program.run_batch_async([{"text": c} for c in "abcd"], backend=backend))
        await asyncio.to_thread(frozen.held.wait)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
    assert (backend.done, backend.cancelled) == (0, 4)
    for thread in threading.enumerate():  # the thread that gives back the pins
        if thread.name.startswith("shoal-batch"):
            await asyncio.to_thread(thread.join)
    assert_nothing_lost(sharing)


def test_closing_a_batch_early_cancels_the_rest(sharing):
    backend = Gate(sharing, lambda call: call.sampling.max_new_tokens > 4)

    @sgl.function
    def program(s, tokens):
        s += "abcdefghijklmnopqrstuvwxyz" + sgl.gen("x", max_tokens=tokens)

    run = program.run_batch([{"tokens": 4 if i == 0 else 8} for i in range(6)], backend=backend, generator_style=True)
    assert isinstance(next(run)["x"], str)
    for _ in range(6):
        backend.began.get()
    run.close()
    assert (backend.done, backend.cancelled) == (1, 5)
    assert_nothing_lost(sharing)


def test_a_run_whose_function_raises_gives_up_its_calls(sharing):
    backend = Gate(sharing, all_calls)
    kept = []

    @sgl.function
    def program(s):
        kept.append(s)
        s += "abc" + sgl.gen("x", max_tokens=4)
        backend.began.get()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        program.run(backend=backend)
    with pytest.raises(sgl.ProgramError, match="was cancelled"):
        kept[0]["x"]
    assert (backend.done, backend.cancelled) == (0, 1)
    assert_nothing_lost(sharing)


def test_cancelling_a_stream(sharing):
    @sgl.function
    def program(s):
        s += "abc" + sgl.gen("x", **LONG)
        s += sgl.gen("y", **LONG)

    with Freeze(sharing, lambda outputs: any(output.text for output in outputs)):
        state = program.run(backend=sharing, stream=True)
        assert next(state.text_iter("x"))
        state.cancel()
        for read in (state.sync, lambda: state["x"], lambda: state["y"], lambda: list(state.text_iter("x"))):
            with pytest.raises(sgl.ProgramError, match="was cancelled"):
                read()
    assert isinstance(state.error(), sgl.ProgramError)
    assert_nothing_lost(sharing)


def test_no_branch_is_missed_by_a_cancel_of_another_thread(sharing, monkeypatch):
    """Forks at the moment in which the cancel has looked for branches: they are cancelled too, or not made at all."""
    state = sgl.ProgramState(Tape(EngineBackend(sharing), {}))
    state += "abcdefgh"
    state.sync()
    branches = Tape.branches
    made: list[sgl.ProgramState] = []
    refused: list[sgl.ProgramEndedError] = []

    def fork_behind(tape: Tape) -> list[Tape]:
        found = branches(tape)
        if tape is state._tape and not made and not refused:
            try:
                made.append(state.fork(1)[0])
            except sgl.ProgramEndedError as error:
                refused.append(error)
        return found

    monkeypatch.setattr(Tape, "branches", fork_behind)
    state._tape.cancel().result(60)
    assert len(made) + len(refused) == 1
    for branch in made:
        reading = branch._reading("text")
        with pytest.raises(sgl.ProgramError, match="cancelled"):
            reading.result(60)


def test_cancelling_what_is_done_changes_nothing(sharing):
    @sgl.function
    def program(s):
        s += "abc" + sgl.gen("x", max_tokens=4)

    state = program.run(backend=sharing)
    state.cancel()
    assert state.error() is None
    assert state.text() == "abc" + state["x"]
