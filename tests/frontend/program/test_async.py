"""Programs in event loops: reads that wait or refuse to, waits that are given up, streams, runs inside of runs."""

from __future__ import annotations

import asyncio
import threading

import pytest

import shoal as sgl
from shoal.shop.task import PriceList

from ..gate import Gate, all_calls


@sgl.function
def ask(s, prices, question):
    s += sgl.system(prices)
    s += sgl.user(question)
    s += sgl.assistant(sgl.gen("answer", max_tokens=16))


async def test_async_programs(shop, prices: PriceList):
    item, other = prices.items[:2]

    @sgl.function
    async def program(s, name):
        s += sgl.system(prices.text) + sgl.user(f"How much is the {name}?")
        s += sgl.assistant(sgl.gen("answer", max_tokens=8))
        price = await s.get("answer")
        s += sgl.user(f"Which things are {item.colour}?") + sgl.assistant(sgl.gen("things", max_tokens=16))
        s["doubled"] = 2 * int(price)
        assert (await s.get_text()).startswith("<|system|>")
        assert len(await s.get_messages()) == 5
        await s.wait()

    states = await asyncio.gather(*[program.run_async(thing.name, backend=shop) for thing in (item, other)])
    assert [state["doubled"] for state in states] == [2 * item.price, 2 * other.price]
    batch = await program.run_batch_async([{"name": item.name}, {"name": other.name}], backend=shop)
    assert [state["answer"] for state in batch] == [str(item.price), str(other.price)]
    streaming = await program.run_async(item.name, backend=shop, stream=True)
    pieces = [piece async for piece in streaming.text_async_iter("answer")]
    assert "".join(pieces) == str(item.price)
    state = await ask.run_async(prices.text, "How much is the " + other.name + "?", backend=shop)
    assert state["answer"] == str(other.price)


async def test_a_blocking_read_in_an_async_function(sharing):
    backend = Gate(sharing, all_calls)

    @sgl.function
    async def program(s, read):
        s += "a" + sgl.gen("x", max_tokens=8)
        read(s)

    for read in (lambda s: s["x"], lambda s: s.text(), lambda s: s.sync(), lambda s: list(s.text_iter("x"))):
        with pytest.raises(sgl.ExpressionError, match=r"would block the event loop .* use (await )?s\."):
            await program.run_async(read, backend=backend)
    assert backend.done == 0


async def test_a_wait_that_is_given_up_harms_nobody(sharing):
    """The variable, the text and the program live on."""
    backend = Gate(sharing, all_calls)
    after: list[str] = []

    @sgl.function
    async def program(s):
        s += "abc" + sgl.gen("x", max_tokens=8)
        for wait in (s.get("x"), s.get_text(), s.get_tokens(), s.wait()):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(wait, 0.001)
        backend.open()
        after.append(await s.get("x"))
        s += sgl.gen("y", max_tokens=4)

    state = await program.run_async(backend=backend)
    assert state.error() is None
    assert state["x"] == after[0]
    assert state.text() == "abc" + state["x"] + state["y"]


async def test_a_stream_waits_for_what_its_function_has_not_declared_yet(sharing):
    """Reading from outside waits; the function itself gets an error for a name that nothing declares."""

    @sgl.function
    async def program(s):
        s += "abc" + sgl.gen("x", max_tokens=8)
        await s.get("x")
        await asyncio.sleep(0)
        s += sgl.gen("y", max_tokens=8)
        s["z"] = 3
        with pytest.raises(sgl.UnknownVariableError):
            await asyncio.gather(s.get("nothing"))

    state = await program.run_async(backend=sharing, stream=True)
    with pytest.raises(sgl.ExpressionError, match=r"use await s\.get"):
        state["y"]
    assert isinstance(await state.get("y"), str)
    assert await state.get("z") == 3
    with pytest.raises(sgl.UnknownVariableError):
        await state.get("nothing")
    await state.wait()
    assert state.error() is None


async def test_what_the_function_raises_in_a_stream(sharing):
    @sgl.function
    async def program(s):
        s += "abc" + sgl.gen("x", max_tokens=4)
        await s.get("x")
        raise RuntimeError("my own")

    state = await program.run_async(backend=sharing, stream=True)
    with pytest.raises(RuntimeError, match="my own"):
        await state.get("y")
    assert isinstance(await state.get("x"), str)
    whole = state.text_async_iter()
    assert await anext(whole) == "abc"
    assert "".join([piece async for piece in state.text_async_iter("x")]) == state["x"]
    with pytest.raises(RuntimeError, match="my own"):
        [piece async for piece in whole]


async def test_runs_that_would_block_a_loop_say_so(sharing):
    @sgl.function
    async def inner(s):
        s += "abc" + sgl.gen("x", max_tokens=4)

    with pytest.raises(sgl.ExpressionError, match=r"inner\.run would block .* run_async"):
        inner.run(backend=sharing)

    @sgl.function
    def plain(s):
        s += "abc" + sgl.gen("x", max_tokens=4)

    calls = {
        "run": lambda: plain.run(backend=sharing),
        "batch": lambda: plain.run_batch([{}], backend=sharing),
        "info": lambda: sgl.get_server_info(sharing),
    }

    @sgl.function
    async def outer(s, which):
        s += "a"
        calls[which]()

    states = await asyncio.to_thread(outer.run_batch, [{"which": name} for name in calls], backend=sharing)
    for state in states:
        assert isinstance(state.error(), sgl.ExpressionError)
        assert "would block" in str(state.error())


def test_readers_whose_loop_is_gone_do_not_stop_a_program(sharing):
    backend = Gate(sharing, all_calls)
    kept: list[sgl.ProgramState] = []

    @sgl.function
    def program(s):
        kept.append(s)
        s += "abc" + sgl.gen("x", max_tokens=4)

    async def read_and_leave() -> None:
        readers = [asyncio.ensure_future(anext(kept[0].text_async_iter("x"))), asyncio.ensure_future(kept[0].get("x"))]
        await asyncio.sleep(0)
        assert not any(reader.done() for reader in readers)

    thread = threading.Thread(target=program.run, kwargs={"backend": backend})
    thread.start()
    backend.began.get()
    asyncio.run(read_and_leave())
    backend.open()
    thread.join()
    assert kept[0].error() is None
    assert list(kept[0].text_iter("x")) == [kept[0]["x"]]
