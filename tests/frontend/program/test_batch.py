"""Batches and forks: what is traced, in which order calls go out, what is computed once, pinned and given back."""

from __future__ import annotations

import asyncio
import random
from itertools import pairwise

import pytest

import shoal as sgl
from shoal.frontend.backends.engine import EngineBackend
from shoal.frontend.language.expressions import RoleBegin, RoleEnd, Text
from shoal.frontend.program.batch import plan
from shoal.frontend.program.trace import trace
from shoal.runtime.engine.engine import Engine
from shoal.shop.task import make_list, make_question


def answer(s, prices, question):
    s += sgl.system(prices)
    s += sgl.user(question)
    s += sgl.assistant(sgl.gen("answer", max_tokens=32))


ask = sgl.function(answer)


class Recorder(EngineBackend):
    """Notes what goes out."""

    def __init__(self, engine, **options):
        super().__init__(engine, **options)
        self.calls: list[tuple[int, ...]] = []
        self.events: list[tuple[str, int]] = []

    async def generate(self, call):
        self.calls.append(call.tokens)
        self.events.append(("generate", call.shared_prefix))
        return await super().generate(call)

    async def warm(self, tokens):
        self.events.append(("warm", len(tokens)))
        return await super().warm(tokens)

    async def pin(self, tokens):
        self.events.append(("pin", len(tokens)))
        return await super().pin(tokens)

    async def unpin(self, tokens):
        self.events.append(("unpin", len(tokens)))
        return await super().unpin(tokens)


# --- tracing -----------------------------------------------------------------------------------------------------


def test_a_trace_ends_at_the_first_open_argument():
    found = trace(answer, {"prices": "p", "question": "q"}, {"question"})
    assert found.prefix == [RoleBegin("system"), Text("p"), RoleEnd("system"), RoleBegin("user"), Text("")]
    assert (found.argument, found.straight) == ("question", True)


def test_a_trace_ends_where_the_flow_depends_on_something_open():
    def branching(s, kind, text):
        s += "Always this. "
        s += "one" if kind == "a" else "two"
        s += text + sgl.gen("x", max_tokens=4)

    found = trace(branching, {"kind": "a", "text": "t"}, {"kind", "text"})
    assert found.prefix == [Text("Always this. ")]
    assert (found.argument, found.straight) == ("kind", False)
    assert trace(branching, {"kind": "a", "text": "t"}, {"text"}).prefix[1:] == [Text("one"), Text("")]


@pytest.mark.parametrize(
    "use",
    [lambda x: len(x), lambda x: x[0], lambda x: x.upper(), lambda x: list(x), lambda x: f"{x:>5}",
     lambda x: int(x), lambda x: "a" if x else "b", lambda x: x in ("a",), lambda x: {x: 1}],
)  # fmt: skip
def test_every_use_but_text_ends_the_trace(use):
    def program(s, x):
        s += "before "
        use(x)
        s += "behind"

    found = trace(program, {"x": "1"}, {"x"})
    assert found.prefix == [Text("before ")]
    assert not found.straight


def test_a_program_inside_a_traced_one_calls_nothing(tiny):
    """The trace ends there: its arguments may be open."""
    inner_calls = []

    @sgl.function
    def inner(s, text):
        inner_calls.append(text)
        s += text + sgl.gen("x", max_tokens=4)

    for call in (lambda text: inner(text, backend=tiny), lambda text: inner.run_batch([(text,)], backend=tiny)):

        def program(s, text, call=call):
            s += "before "
            call(text)
            s += "behind"

        found = trace(program, {"text": "a"}, {"text"})
        assert found.prefix == [Text("before ")]
        assert not found.straight
    assert inner_calls == []


def test_a_trace_ends_at_reads_forks_and_errors_and_goes_on_behind_calls():
    def reads(s):
        s += "a" + sgl.gen("x", max_tokens=2)
        return s["x"]

    def forks(s):
        s += "a"
        s.fork(2)

    def raises(s):
        s += "a"
        raise ValueError("no")

    def fills(s):
        s += "a"
        s.fill("b", sgl.gen("x", max_tokens=2))
        with s.user():
            s += "c"
        assert "x" in s

    for program, straight in ((reads, False), (forks, False), (raises, False), (fills, True)):
        found = trace(program, {}, set())
        assert found.prefix[0] == Text("a")
        assert len(found.prefix) == 1
        assert found.straight == straight


def test_a_batch_is_grouped_by_what_its_text_meets_first():
    """Two lists, shuffled: the constant beginning of all, then one group a list; equal arguments are constants."""
    batch = [{"prices": "AB"[i % 2] * 30, "question": f"q{i}"} for i in range(6)]
    group = plan(answer, batch)
    assert [inner.items for inner in group.groups] == [[0, 2, 4], [1, 3, 5]]
    assert group.order() == [0, 2, 4, 1, 3, 5]
    assert group.prefix == [RoleBegin("system"), Text("")]
    assert group.groups[1].prefix[:2] == [RoleBegin("system"), Text("B" * 30)]
    one_list = plan(answer, [{"prices": "P", "question": f"q{i}"} for i in range(3)])
    assert one_list.groups == []
    assert one_list.prefix[1] == Text("P")
    assert plan(answer, [{"prices": str(i), "question": "q"} for i in range(3)]).groups == []


# --- batches -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine():
    with Engine("shop", kv_cache_tokens=4096, check_invariants=True) as engine:
        yield engine


@pytest.fixture
def work():
    rng = random.Random(21)
    lists = [make_list(rng, size, held_out=True) for size in (30, 34)]
    items = [(prices, make_question(rng, prices)) for prices in lists for _ in range(5)]
    rng.shuffle(items)
    return items


def test_a_batch_warms_each_list_once_pins_it_and_calls_list_by_list(engine, work):
    engine.flush_cache()
    backend = Recorder(engine)
    states = ask.run_batch([{"prices": p.text, "question": q.text} for p, q in work], backend=backend)
    assert [state["answer"] for state in states] == [q.answer for _, q in work]
    lengths = [len(engine.encode(f"<|system|>{p.text}<|end|><|user|>")) for p in dict.fromkeys(p for p, _ in work)]
    for kind in ("warm", "pin", "unpin"):
        assert sorted(event[1] for event in backend.events if event[0] == kind) == sorted(lengths)
    assert {event[1] for event in backend.events if event[0] == "generate"} == set(lengths)
    beginnings = [call[: min(lengths)] for call in backend.calls]
    changes = sum(one != other for one, other in pairwise(beginnings))
    assert changes == 1
    for state, (prices, _) in zip(states, work, strict=True):
        prefix = len(engine.encode(f"<|system|>{prices.text}<|end|><|user|>"))
        assert state.get_meta_info("answer")["cached_tokens"] == prefix // 16 * 16
    usage = states.usage
    assert (usage.calls, usage.warm_ups) == (10, 2)
    assert usage.tokens_reused == sum(s.get_meta_info("answer")["cached_tokens"] for s in states)
    assert usage.token_layers_saved == 8 * usage.tokens_reused
    assert "prompt tokens reused" in str(usage)
    engine.flush_cache()  # refused if a pin or a lock were left
    assert engine.cache_snapshot()["num_nodes"] == 0


class Together(Recorder):
    """Warm-ups of two lists end in the same turn of the driver's loop, the first one's last."""

    def __init__(self, engine):
        super().__init__(engine)
        self.first = asyncio.Event()
        self.second = asyncio.Event()

    async def warm(self, tokens):
        mine, other = (self.second, self.first) if self.first.is_set() else (self.first, self.second)
        mine.set()
        await other.wait()
        return


def test_calls_go_out_list_by_list_however_close_the_warm_ups_end(tiny):
    """The driver knows the order; whose warm-up is done first does not change it."""

    @sgl.function
    def program(s, start, end):
        s += start + end + sgl.gen("x", max_tokens=4)

    starts = ["abcdefghijklmnopqrst", "uvwxyzuvwxyzuvwxyzuv"]
    batch = [{"start": starts[i % 2], "end": "ABCDEF"[i]} for i in range(6)]
    backend = Together(tiny)
    states = program.run_batch(batch, backend=backend)
    assert all(state.error() is None for state in states)
    expected = [tuple(tiny.encode(e["start"] + e["end"])) for e in (*batch[::2], *batch[1::2])]
    assert backend.calls == expected


def test_without_reuse_nothing_is_warmed(engine, work):
    engine.flush_cache()
    backend = Recorder(engine, cache_mode="dual")
    batch = [{"prices": p.text, "question": q.text} for p, q in work[:3]]
    states = ask.run_batch(batch, backend=backend)
    before = engine.cache_snapshot()["num_tokens"]
    assert states.usage.warm_ups == states.usage.tokens_reused == before == 0
    assert {shared for kind, shared in backend.events if kind == "generate"} == {0}


def test_functions_that_read_run_in_threads_and_generators_yield_in_order(engine, work):
    @sgl.function
    def twice(s, prices, question):
        s += sgl.system(prices) + sgl.user(question) + sgl.assistant(sgl.gen("first", max_tokens=32))
        s += sgl.user(question) + sgl.assistant(sgl.gen("second", max_tokens=32))
        s["same"] = s["first"] == s["second"]

    batch = [{"prices": p.text, "question": q.text} for p, q in work]
    yielded = list(twice.run_batch(batch, backend=engine, num_threads=3, generator_style=True))
    assert [state["first"] for state in yielded] == [q.answer for _, q in work]
    assert all(state["same"] for state in yielded)
    assert ask.run_batch([], backend=engine) == []
    tuples = ask.run_batch([(p.text, q.text) for p, q in work[:2]], backend=engine)
    assert [state["answer"] for state in tuples] == [q.answer for _, q in work[:2]]


# --- forks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("page_size", "items"), [(1, 60), (16, 60), (16, 12), (16, 13), (16, 14)])
def test_a_fork_of_8_computes_the_parents_prompt_once(page_size, items):
    """Below the depth, branches compute what no whole page covers, and nothing else; the warm-up all of it, once."""
    rng = random.Random(5)
    prices = make_list(rng, items, held_out=True)
    asked = rng.sample(prices.items, 8)

    @sgl.function
    def program(s):
        s += sgl.system(prices.text)
        forks = s.fork(8)
        forks += lambda i: sgl.user(f"How much is the {asked[i].name}?")
        forks += sgl.assistant(sgl.gen("price", max_tokens=8))
        forks.join()

    with Engine("shop", page_size=page_size) as engine:
        backend = Recorder(engine)
        state = program.run(backend=backend)
        parent = len(engine.encode(f"<|system|>{prices.text}<|end|>"))
        assert state["price"] == [str(item.price) for item in asked]
        metas = state.get_meta_info("price")
        assert [meta["cached_tokens"] for meta in metas] == [parent // page_size * page_size] * 8
        assert backend.events[0] == ("warm", parent)
        assert [kind for kind, _ in backend.events].count("warm") == 1
        assert (state.usage.warm_ups, state.usage.calls) == (1, 8)
        shallow = parent + sum(parent - meta["cached_tokens"] for meta in metas)
        assert shallow == parent + 8 * (parent % page_size)


def test_a_fork_without_calls_costs_nothing(engine):
    backend = Recorder(engine)

    @sgl.function
    def program(s):
        s += "red " * 30
        s.fork(4).join()

    program.run(backend=backend)
    assert backend.events == []
