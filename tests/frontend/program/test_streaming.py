"""Text as it comes: whole, of one variable, of branches, of programs that wait for their reader."""

from __future__ import annotations

import asyncio
import queue
from typing import Any

import pytest

import shoal as sgl

from ..gate import Gate, all_calls

SLOWLY: dict[str, Any] = {"max_tokens": 16, "steps": 16, "block_length": 4, "ignore_eos": True}


def test_streams(shop, prices):
    """Pieces join to the text; reading a variable from outside waits for it; without `stream` there is one piece."""

    @sgl.function
    def program(s):
        s += sgl.system(prices.text) + sgl.user(f"How much is the {prices.items[0].name}? Answer in JSON.")
        s += sgl.assistant(sgl.gen("answer", max_tokens=16, block_length=4, steps=16))

    state = program.run(backend=shop, stream=True)
    pieces = list(state.text_iter("answer"))
    assert len(pieces) > 1
    assert "".join(pieces) == state["answer"]
    assert "".join(state.text_iter()) == state.text()
    waited = program.run(backend=shop, stream=True)
    assert waited["answer"] == state["answer"]
    plain = program.run(backend=shop)
    assert list(plain.text_iter("answer")) == [plain["answer"]] == [state["answer"]]


def test_a_variables_text_ends_with_its_value_not_with_the_program(tiny):
    """A chat: its next turn comes from whoever reads the last answer. With any longer wait both would wait for ever."""
    said: queue.SimpleQueue[str] = queue.SimpleQueue()

    @sgl.function
    def chat(s):
        s += "abc"
        for turn in range(3):
            s += said.get() + sgl.gen(f"answer {turn}", **SLOWLY)

    state = chat.run(backend=tiny, stream=True)
    answers = []
    for turn, text in enumerate("xyz"):
        said.put(text)
        pieces = list(state.text_iter(var_name=f"answer {turn}"))
        assert len(pieces) > 1
        answers.append("".join(pieces))
    assert [state[f"answer {turn}"] for turn in range(3)] == answers
    assert state.text() == "abc" + "".join(text + answer for text, answer in zip("xyz", answers, strict=True))


async def test_the_same_in_an_event_loop(tiny):
    said: asyncio.Queue[str] = asyncio.Queue()

    @sgl.function
    async def chat(s):
        s += "abc"
        for turn in range(2):
            s += await said.get() + sgl.gen(f"answer {turn}", **SLOWLY)

    state = await chat.run_async(backend=tiny, stream=True)
    for turn, text in enumerate("xy"):
        said.put_nowait(text)
        pieces = [piece async for piece in state.text_async_iter(f"answer {turn}", return_meta_data=True)]
        assert "".join(piece for piece, _ in pieces) == await state.get(f"answer {turn}")
        assert [meta["nfe"] for _, meta in pieces] == sorted({meta["nfe"] for _, meta in pieces})
        assert pieces[-1][1]["nfe"] <= 16


def test_variables_that_are_no_calls_come_in_one_piece(tiny):
    @sgl.function
    def program(s):
        s += "abc"
        with s.var_scope("scope"):
            s += "de" + sgl.gen("x", max_tokens=4)
        s["mine"] = "my text"
        s["number"] = 3
        s += sgl.select("choice", ["f", "gh"])
        s.fill("i", sgl.gen("hole", max_tokens=4), "j", name="canvas", ignore_eos=True)

    for stream in (True, False):
        state = program.run(backend=tiny, stream=stream)
        for name in ("scope", "x", "mine", "choice", "hole", "canvas"):
            assert "".join(state.text_iter(name)) == state[name]
        assert list(state.text_iter("number")) == []
        with pytest.raises(sgl.UnknownVariableError):
            list(state.text_iter("nothing"))


def test_branches_of_a_stream_are_streams(tiny):
    """Their text begins with their parent's, and grows as it is committed."""
    shown: list[list[str]] = []

    @sgl.function
    def program(s):
        s += "abc" + sgl.gen("before", max_tokens=4)
        branches = s.fork(2)
        branches += ["x", "y"]
        branches += sgl.gen("inside", **SLOWLY)
        shown.extend(list(branch.text_iter("inside")) for branch in branches)
        for branch in branches:
            assert "".join(branch.text_iter("before")) == s["before"]
        branches.join("concate_and_append")

    state = program.run(backend=tiny, stream=True)
    assert "".join(state.text_iter()) == state.text()
    assert all(len(pieces) > 1 for pieces in shown)
    assert state.text() == "abc" + state["before"] + "x" + "".join(shown[0]) + "y" + "".join(shown[1])


def test_what_the_function_raises_reaches_every_reader(tiny):
    """Also one that waits for a variable that now will never be declared."""

    @sgl.function
    def program(s):
        s += "abc" + sgl.gen("x", max_tokens=4)
        s["x"]
        raise RuntimeError("my own")

    state = program.run(backend=tiny, stream=True)
    with pytest.raises(RuntimeError, match="my own"):
        state["y"]
    with pytest.raises(RuntimeError, match="my own"):
        list(state.text_iter())
    with pytest.raises(RuntimeError, match="my own"):
        list(state.text_iter("y"))
    assert "".join(state.text_iter("x")) == state["x"]
    assert isinstance(state.error(), RuntimeError)


def test_a_failed_call_ends_its_variables_text(tiny):
    """While the function goes on: who reads the variable must not wait for the end of the program."""
    more: queue.SimpleQueue[str] = queue.SimpleQueue()

    @sgl.function
    def program(s):
        s += "abc" + sgl.gen("bad", max_tokens=9999)
        s += more.get()

    state = program.run(backend=tiny, stream=True)
    with pytest.raises(sgl.ProgramError, match=r"gen\('bad'\) failed"):
        list(state.text_iter("bad"))
    more.put("d")
    with pytest.raises(sgl.ProgramError, match=r"gen\('bad'\) failed"):
        list(state.text_iter())


def test_setting_a_variable_whose_call_is_under_way(tiny):
    """Readers get the value that was set; the call ends as it would have, and nothing fails."""
    backend = Gate(tiny, all_calls)

    @sgl.function
    def program(s):
        s += "abc" + sgl.gen("x", max_tokens=4)
        s["x"] = "mine"
        backend.open()
        s += "d" + sgl.gen("y", max_tokens=4)

    state = program.run(backend=backend)
    assert state.error() is None
    assert state["x"] == "mine"
    assert state.text().endswith("d" + state["y"])
