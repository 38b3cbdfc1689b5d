"""Children made by fork: they have no thread of the engine, so they refuse at once, and the parent's engine goes on."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from shoal.frontend import EngineBackend, driver, function, gen
from shoal.frontend.backend import Call, Reply
from shoal.frontend.errors import ProgramEndedError
from shoal.runtime.config import EngineConfig
from shoal.runtime.engine.engine import Engine
from shoal.runtime.engine.service import LocalService
from shoal.runtime.request.input import GenerateInput
from shoal.runtime.request.sampling_params import SamplingParams
from shoal.runtime.text.parts import TextPart

from ...frontend.gate import Gate
from ..forking import in_child, in_own_loop
from ..tiny import assert_nothing_lost, make_engine, tokens

SHORT = SamplingParams(max_new_tokens=8, steps=2, ignore_eos=True)
PROMPT = tokens(20)
REFUSED = "was made in another process"


async def _first(stream: AsyncIterator[Any]) -> Any:
    return await anext(stream)


CALLS: dict[str, Callable[[Engine], Any]] = {
    "generate": lambda e: e.generate(PROMPT, SHORT),
    "generate nothing": lambda e: e.generate([], SHORT),
    "stream": lambda e: next(e.stream(PROMPT, SHORT)),
    "async_generate": lambda e: asyncio.run(e.async_generate(PROMPT, SHORT)),
    "async_stream": lambda e: asyncio.run(_first(e.async_stream(PROMPT, SHORT))),
    "score": lambda e: e.score(PROMPT, [[5], [6]]),
    "async_score": lambda e: asyncio.run(e.async_score(PROMPT, [[5], [6]])),
    "pin": lambda e: e.pin(PROMPT),
    "unpin": lambda e: e.unpin(PROMPT),
    "cached_tokens": lambda e: e.cached_tokens(PROMPT),
    "flush_cache": lambda e: e.flush_cache(),
    "cache_snapshot": lambda e: e.cache_snapshot(),
    "render_cache": lambda e: e.render_cache(),
    "check": lambda e: e.check(),
}


@pytest.fixture(scope="module")
def engine(folders):
    with make_engine(folders["llada"]) as made:
        made.generate(PROMPT, SHORT)
        yield made
        assert_nothing_lost(made)


def answers(engine: Engine) -> list[int]:
    return list(engine.generate(PROMPT, SHORT).token_ids)


@pytest.mark.parametrize("name", CALLS)
def test_what_needs_the_engines_thread_is_refused_in_a_child(engine, name):
    before = answers(engine)
    words = in_child(lambda: CALLS[name](engine))
    assert words.startswith("EngineClosedError: the engine ")
    assert REFUSED in words
    assert f"({os.getpid()})" in words
    assert answers(engine) == before


def test_every_public_method_of_the_engine_answers_or_refuses(engine):
    """What is not in CALLS needs no thread, or has nothing to do in a child."""
    harmless = {
        "abort": lambda e: e.abort("nobody"), "shutdown": lambda e: e.shutdown(),
        "encode": lambda e: e.encode("abc"), "encode_parts": lambda e: e.encode_parts([TextPart("abc", True)]),
        "chat_markers": lambda e: e.chat_markers(), "page_size": lambda e: e.page_size,
        "tokenizer": lambda e: e.tokenizer, "depth_profile": lambda e: e.depth_profile,
        "model_config": lambda e: e.model_config, "default_sampling_params": lambda e: e.default_sampling_params,
    }  # fmt: skip
    public = {name for name in vars(Engine) if not name.startswith("_")}
    assert public == harmless.keys() | CALLS.keys() - {"generate nothing"} | {"pinned"}

    def child() -> str:
        for call in harmless.values():
            call(engine)
        return "answered"

    assert in_child(child) == "answered"
    assert "EngineClosedError" in in_child(lambda: engine.pinned(PROMPT).__enter__())


def test_a_stream_that_began_before_the_fork_goes_on_in_the_parent_alone(engine):
    stream = engine.stream(PROMPT, SamplingParams(max_new_tokens=16, steps=16, block_length=16, ignore_eos=True))
    begun = next(stream)
    assert not begun.finished
    assert REFUSED in in_child(lambda: [output.text for output in stream])
    assert list(stream)[-1].finish_reason == "length"


def test_a_lock_that_is_held_at_the_fork_holds_nobody_up(engine):
    with engine.core.loop._state:
        assert REFUSED in in_child(lambda: engine.generate(PROMPT, SHORT))
        assert in_child(engine.shutdown, ends=True) == "None"


@pytest.mark.parametrize("how", ["shutdown", "with", "del", "atexit"])
def test_the_end_of_a_child_leaves_the_parents_engine_alone(llada, how):
    engine = make_engine(llada)
    before = answers(engine)

    def child() -> str:
        nonlocal engine
        if how == "shutdown":
            engine.shutdown()
        elif how == "with":
            with engine:
                pass
        elif how == "del":
            del engine
            gc.collect()
        return "done"

    assert in_child(child, ends=how == "atexit") == "done"
    assert answers(engine) == before
    assert_nothing_lost(engine)
    engine.shutdown()


def test_a_callback_that_forks_makes_a_child_that_delivers_nothing(llada):
    """The child goes on in the engine's thread: it must not run the parent's requests too."""
    reader, writer = os.pipe()
    parent, seen = os.getpid(), []

    def forks(output: Any) -> None:
        seen.append(output.rid)
        os.write(writer, b"x")
        if len(seen) == 1:
            os.fork()

    with make_engine(llada) as engine:
        engine.generate([tokens(20, 1), tokens(20, 2)], SHORT, on_output=forks)
        assert os.getpid() == parent
        os.wait()
        os.close(writer)
        assert os.read(reader, 100) == b"xx"
        os.close(reader)
        assert_nothing_lost(engine)


def test_a_child_can_make_an_engine_of_its_own(engine, llada):
    before = answers(engine)

    def child() -> list[int]:
        with make_engine(llada) as own:
            return answers(own)

    assert in_child(child) == str(before)


_engine: Engine


def _ask(number: int) -> str:
    try:
        return f"answered {_engine.generate(tokens(20, number), SHORT)}"
    except Exception as error:
        return str(error)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_workers_of_a_pool_refuse(engine):
    global _engine
    _engine = engine
    with multiprocessing.get_context("fork").Pool(2) as pool:
        words = pool.map_async(_ask, range(4)).get(120)
    assert [REFUSED in word for word in words] == [True] * 4
    assert answers(engine)


@function
def _program(s):
    s += "abc" + gen("answer", max_tokens=8, ignore_eos=True)


def test_programs_in_a_child_raise(engine):
    backend = EngineBackend(engine)
    state = _program.run(backend=backend)
    text = state.text()
    words = in_child(lambda: _program.run(backend=backend)["answer"])
    assert words.startswith("ProgramError")
    assert REFUSED in words
    assert in_child(state.text) == text  # what was done before the fork can be read
    assert in_child(lambda: state["answer"]) == state["answer"]
    assert in_child(lambda: state["other"]).startswith("UnknownVariableError")


class StreamGate(Gate):
    """Streams wait at it too."""

    async def stream(self, call: Call) -> AsyncGenerator[Reply, None]:
        self.began.put(call.tokens)
        await driver.finished(self._opened)
        async for reply in super().stream(call):
            yield reply


def test_a_program_that_was_under_way_goes_on_in_the_parent_alone(engine):
    gate = StreamGate(engine)
    state = _program.run(backend=gate, stream=True)
    gate.began.get(timeout=120)
    reads: list[Callable[[], Any]] = [
        lambda: state["answer"],
        lambda: state.text(),
        lambda: list(state.text_iter()),
        lambda: list(state.text_iter("answer")),
        lambda: state.append("more"),
        lambda: asyncio.run(state.get("answer")),
    ]
    for read in reads:
        words = in_child(read)
        assert words.startswith(ProgramEndedError.__name__), words
        assert REFUSED in words
    gate.open()
    assert len(state["answer"]) == 8


@pytest_asyncio.fixture
async def service(llada) -> AsyncIterator[LocalService]:
    made = LocalService(EngineConfig(model_path=str(llada), depth=4, layers_per_band=2, kv_cache_tokens=1024,
                                     page_size=4, device="cpu"))  # fmt: skip
    await made.start()
    yield made
    await made.shutdown()


def _input(rid: str) -> GenerateInput:
    return GenerateInput(rid=rid, prompt=PROMPT, sampling=SHORT)


async def _last(service: Any, rid: str) -> Any:
    return [output async for output in service.generate(_input(rid))][-1]


async def test_a_service_in_this_process_is_dead_in_a_child(service):
    assert (await _last(service, "a")).finish_reason == "length"

    for call in (
        lambda: _last(service, "b"), service.abort, service.flush_cache, service.cache_snapshot, service.stats,
        lambda: service.tokenize("abc"), service.start,
    ):  # fmt: skip
        words = in_child(lambda call=call: in_own_loop(call))  # type: ignore[misc]
        assert words.startswith("EngineClosedError: the service "), words
        assert REFUSED in words
    assert "dead" in in_child(lambda: service.status)
    assert "dead" in in_child(lambda: in_own_loop(service.closed))
    assert in_child(lambda: in_own_loop(service.shutdown)) == "None"
    assert service.status.state == "up"
    assert (await _last(service, "c")).finish_reason == "length"
