"""The six programs in sglang's language give right answers: shoal's on an engine and on a server, and the real sglang
package's through shoal's backend."""

from __future__ import annotations

import json
import random

import pytest

import shoal
from shoal.frontend.backends.default import as_backend
from shoal.shop.task import ask_colour, ask_price, ask_total

from ..six_programs import six_programs

WAYS = ("shoal on an engine", "shoal on a server", "sglang on an engine", "sglang on a server")


@pytest.fixture(scope="module", params=WAYS)
def language(request):
    """(programs, backend, settings of a run with a seed)."""
    language, place = request.param.split(" on an " if "an engine" in request.param else " on a ")
    where = request.getfixturevalue("shop") if place == "engine" else request.getfixturevalue("server").url
    if language == "shoal":
        return six_programs(shoal), as_backend(where), {"seed": 1}
    sglang = pytest.importorskip("sglang")
    from shoal.frontend.backends.sglang import ShoalBackend

    return six_programs(sglang), ShoalBackend(where, seed=1), {}


@pytest.fixture
def items(prices):
    return random.Random(3).sample(prices.items, 3)


def test_few_shot_qa(language, prices):
    programs, backend, _ = language
    rng = random.Random(1)
    examples = [(q.text, q.answer) for q in (ask_price(rng, prices, False) for _ in range(2))]
    questions = [ask_price(rng, prices, False), ask_colour(rng, prices, False)]
    batch = [{"prices": prices.text, "examples": examples, "question": q.text} for q in questions]
    states = programs.few_shot_qa.run_batch(batch, backend=backend)
    assert [state["answer"] for state in states] == [q.answer for q in questions]
    assert states[0].messages()[0] == {"role": "system", "content": prices.text}
    assert [m["role"] for m in states[0].messages()] == ["system", *["user", "assistant"] * 3]


def test_tree_of_thought(language, prices, items):
    programs, backend, _ = language
    state = programs.tree_of_thought.run(prices=prices.text, names=[i.name for i in items], backend=backend)
    assert state["found"] == [i.price for i in items]
    assert state["verdict"] == f"the {min(items, key=lambda i: i.price).name}"


def test_multi_turn_chat(language, prices):
    programs, backend, _ = language
    rng = random.Random(2)
    questions = [ask_price(rng, prices, False), ask_total(rng, prices, False), ask_price(rng, prices, True)]
    state = programs.multi_turn_chat.run(prices=prices.text, questions=[q.text for q in questions], backend=backend)
    assert [state[f"answer_{i}"] for i in range(3)] == [q.answer for q in questions]
    assert state.messages()[-1] == {"role": "assistant", "content": questions[-1].answer}


def test_json_by_skeleton(language, prices, items):
    programs, backend, _ = language
    one, two = items[:2]
    state = programs.json_by_skeleton.run(prices=prices.text, one=one.name, two=two.name, backend=backend)
    answer = json.loads(state.messages()[-1]["content"])
    assert answer == {"prices": [one.price, two.price], "total": one.price + two.price}
    assert [state["one"].strip(), state["two"].strip()] == [str(one.price), str(two.price)]


def test_expert_panel(language, prices, items):
    programs, backend, _ = language
    one, two = items[:2]
    state = programs.expert_panel.run(prices=prices.text, one=one.name, two=two.name, backend=backend)
    assert state["opinion"] == [str(one.price), str(two.price)]
    assert state["verdict"] == f"the {min((one, two), key=lambda i: i.price).name}"
    figures = state.get_meta_info("verdict")
    assert len(figures["values"]) == 2
    assert max(figures["values"]) <= 0
    assert not any("logprob" in name for name in figures)


def test_self_consistency(language, prices):
    programs, backend, seeded = language
    question = ask_price(random.Random(5), prices, False)
    state = programs.self_consistency.run(
        prices=prices.text, question=question.text, samples=3, backend=backend, **seeded
    )
    assert len(state["answers"]) == 3
    assert state.messages()[-1]["content"] == question.answer
