"""Canvases with holes, and JSON by skeleton."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shoal as sgl
from shoal.frontend.language.expressions import Text
from shoal.frontend.language.holes import skeleton_parts
from shoal.frontend.language.trim import json_value
from shoal.runtime.request.sampling_params import SamplingParams


@pytest.fixture(params=["engine", "server"])
def backend(request, shop):
    return shop if request.param == "engine" else request.getfixturevalue("server").url


def test_four_holes_with_text_on_both_sides(backend, shop, prices):
    """Four questions and answers in one canvas: answers come in one or two passes, roles and messages are right."""
    items = random.Random(4).sample(prices.items, 4)

    @sgl.function
    def program(s):
        s += sgl.system(prices.text) + sgl.user(f"How much is the {items[0].name}?") + sgl.assistant_begin()
        turns = [
            [sgl.assistant_end(), sgl.user(f"How much is the {item.name}?"), sgl.assistant_begin(),
             sgl.gen(f"p{n}", max_tokens=4)]
            for n, item in enumerate(items[1:], 1)
        ]  # fmt: skip
        s.fill(sgl.gen("p0", max_tokens=4), *turns)
        s += sgl.assistant_end()

    state = program.run(backend=backend)
    assert [state[f"p{n}"] for n in range(4)] == [str(item.price) for item in items]
    assert state.usage.nfe <= 4
    assert [m["content"] for m in state.messages()[2::2]] == [str(item.price) for item in items]
    spoken = "".join(f"<|user|>How much is the {i.name}?<|end|><|assistant|>{i.price}<|eos|>" for i in items)
    assert state.text() == f"<|system|>{prices.text}<|end|>" + spoken
    assert state.tokens() == tuple(shop.encode(state.text()))


def test_fill_is_the_engines_canvas(tiny):
    """The template that the engine gets is fixed text and masks; a hole's own stop string cuts it."""

    @sgl.function
    def program(s):
        s += "abcdef"
        s += sgl.fill("x:", sgl.gen("one", max_tokens=5), ";y:", sgl.gen("two", max_tokens=3), ";", name="all",
                      ignore_eos=True)  # fmt: skip

    state = program.run(backend=tiny)
    template = [*tiny.encode("x:"), *[-1] * 5, *tiny.encode(";y:"), *[-1] * 3, *tiny.encode(";")]
    params = SamplingParams(max_new_tokens=len(template), block_length=len(template), ignore_eos=True)
    direct = tiny.generate("abcdef", params, canvas=template)
    assert [state["one"], state["two"]] == [hole.text for hole in direct.holes]
    assert state["all"] == f"x:{state['one']};y:{state['two']};" == direct.text
    assert state.tokens() == (*tiny.encode("abcdef"), *direct.token_ids)
    stop = state["one"][2]

    @sgl.function
    def stopped(s):
        s += "abcdef"
        s.fill("x:", sgl.gen("one", max_tokens=5, stop=stop), ";y:", sgl.gen("two", max_tokens=3), ";", ignore_eos=True)

    cut = stopped.run(backend=tiny)
    assert cut["one"] == state["one"][: state["one"].index(stop)]
    assert cut["two"] == state["two"]
    one = tiny.encode(cut["one"], add_special_tokens=False) if cut["one"] else []
    head, middle, end = (tiny.encode(text) for text in ("abcdefx:", ";y:", ";"))
    assert cut.tokens() == (*head, *one, *middle, *direct.holes[1].token_ids, *end)


def test_json_of_the_shop(backend, prices):
    one, two = random.Random(8).sample(prices.items, 2)

    @sgl.function
    def program(s):
        s += sgl.system(prices.text)
        s += sgl.user(f"What do the {one.name} and the {two.name} cost together? Answer in JSON.")
        number: Any = {"max_tokens": 2, "dtype": int}
        s += sgl.assistant(
            sgl.json_skeleton(
                {"prices": [sgl.gen("a", **number), sgl.gen("b", **number)],
                 "total": sgl.gen("t", max_tokens=3, dtype=int)},
                name="answer",
            )
        )  # fmt: skip

    state = program.run(backend=backend)
    assert state["answer"] == {"prices": [one.price, two.price], "total": one.price + two.price}
    assert (state["a"], state["b"], state["t"]) == (one.price, two.price, one.price + two.price)
    assert json.loads(state.messages()[-1]["content"]) == state["answer"]
    assert state.usage.calls == 1


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
DTYPES = st.sampled_from([None, str, int, float, bool])
DATA = st.recursive(
    LEAVES | DTYPES.map(lambda dtype: ("hole", dtype)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def with_gens(data, made):
    if isinstance(data, tuple):
        made.append(data[1])
        return sgl.gen(f"hole{len(made)}", max_tokens=4, dtype=data[1])
    if isinstance(data, list):
        return [with_gens(item, made) for item in data]
    if isinstance(data, dict):
        return {key: with_gens(item, made) for key, item in data.items()}
    return data


@given(DATA, st.lists(st.text(alphabet=st.characters(codec="utf-8")) | st.sampled_from(['"', '\\"', " 4", "-07.5e3", "true", "\\", '\\u00', "x\n\"y"]), min_size=6, max_size=12))  # fmt: skip  # noqa: E501
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_skeleton_parses_whatever_the_holes_hold(data, texts):
    """And what stands around the holes comes back as it was."""
    dtypes: list = []
    parts: list[Any] = list(skeleton_parts(with_gens(data, dtypes)))
    out, values, fillings = "", [], iter(texts * 3)
    for part in parts:
        if isinstance(part, Text):
            out += part.text
        else:
            value, text = json_value(next(fillings), part.dtype)
            values.append(value)
            out += text
    parsed = json.loads(out)
    found = iter(values)

    def check(given, got):
        if isinstance(given, tuple):
            want = next(found)
            assert got == want
            assert want is None or given[1] is None or type(want) is given[1]
        elif isinstance(given, list):
            assert len(given) == len(got)
            for inner, other in zip(given, got, strict=True):
                check(inner, other)
        elif isinstance(given, dict):
            assert list(given) == list(got)
            for key in given:
                check(given[key], got[key])
        else:
            assert given == got

    check(data, parsed)


@pytest.mark.parametrize(
    ("parts", "settings", "words"),
    [
        (["only text"], {}, "no hole"),
        ([sgl.gen("a", 2), sgl.gen("b", 2)], {}, "fixed text between"),
        (["x", sgl.gen("a")], {}, "max_tokens is None"),
        (["x", sgl.gen("a", 0)], {}, "max_tokens is 0"),
        (["x", sgl.gen("a", 2, temperature=0.5)], {}, "temperature can't be set for one hole"),
        (["x", sgl.gen("a", 2, n=2)], {}, "n can't be set"),
        (["x", sgl.gen("b", 2), sgl.select("a", ["b"])], {}, r"select\('a'\) can't stand in fill"),
        (["x", sgl.gen("a", 2)], {"threshold": 2.0}, "threshold is 2.0"),
        (["x", sgl.gen("a", 2)], {"max_new_tokens": 2}, "max_new_tokens can't be set"),
    ],
)
def test_bad_canvases_raise_where_they_are_appended(tiny, parts, settings, words):
    @sgl.function
    def program(s):
        s += "abc"
        s.fill(*parts, **settings)

    with pytest.raises(sgl.ShoalError, match=words):
        program.run(backend=tiny)


def test_a_hole_longer_than_the_canvas_limit(tiny):
    @sgl.function
    def program(s):
        s += "abc"
        s.fill("x", sgl.gen("long", max_tokens=500))

    state = program.run(backend=tiny)
    with pytest.raises(sgl.ProgramError, match=r"fill\(\.\.\.\) failed: .*501.*maximum of 160") as caught:
        state["long"]
    assert "test_fill.py" in caught.value.location.filename


@pytest.mark.parametrize(
    ("value", "words"),
    [({1: "a"}, "keys must be strings"), ({"a": object()}, r"skeleton\['a'\]"), ([{2}], "JSON data")],
)
def test_bad_skeletons(value, words):
    with pytest.raises(sgl.ExpressionError, match=words):
        sgl.json_skeleton(value)
