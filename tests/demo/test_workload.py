"""The demo's workload: proportions, seed, split, and answers that follow from the list."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from shoal.demo.workload import KIND_CYCLE, make_workload
from shoal.runtime.errors import ConfigError


@pytest.fixture(scope="module")
def workload():
    return make_workload(0, (44, 56, 68), 32)


def test_the_mix_is_the_documented_one():
    """Of 8 questions 3 colours, 2 prices, 2 totals, 1 cheaper; a third JSON; a fifth second turns; no kind left out."""
    assert Counter(KIND_CYCLE) == {"colour": 3, "price": 2, "total": 2, "cheaper": 1}
    asked = make_workload(0, (44,), 120).asked
    kinds = Counter(a.question.kind for a in asked)
    assert kinds == {"colour": 45, "price": 30, "total": 30, "cheaper": 15}
    assert Counter(a.question.kind for a in asked if a.question.json) == {k: n // 3 for k, n in kinds.items()}
    assert Counter(a.question.kind for a in asked if a.follow_up) == {k: n // 5 for k, n in kinds.items()}
    for a in asked:
        assert ("JSON" in a.question.text) == a.question.json == a.question.answer.startswith("{")


def test_default_workload_is_large_enough(workload):
    """At least 32 questions a list, lists of 44 and more items."""
    facts = workload.describe()
    assert facts["list_sizes"] == [44, 56, 68]
    assert facts["questions_per_list"] == 32
    assert facts["questions"] == workload.num_questions == len(workload.asked) == 96
    assert facts["kinds"] == {"colour": 36, "price": 24, "total": 24, "cheaper": 12}


def test_lists_are_held_out_and_questions_differ(workload):
    for part in workload.lists:
        assert part.prices.held_out
        texts = [a.question.text for batch in part.rounds for a in batch]
        assert len(set(texts)) == len(texts)


def test_seed_decides_and_a_list_does_not_depend_on_the_others(workload):
    assert make_workload(0, (44, 56, 68), 32) == workload
    assert make_workload(1, (44, 56, 68), 32).lists != workload.lists
    assert make_workload(0, (56,), 32).lists == workload.lists[1:2]


def test_sample_asks_some_of_the_same_questions(workload):
    sample = workload.sample(10)
    assert sample.num_questions == 10
    assert sample.lists[0].prices == workload.lists[1].prices
    assert set(map(repr, sample.asked)) < set(map(repr, workload.lists[1].rounds[0] + workload.lists[1].rounds[1]))
    assert workload.sample(1000).num_questions == 32


def test_answers_follow_from_the_list(workload):
    """Read from the rendered list alone, without the task's own code."""
    for asked in workload.asked:
        prices = {}
        for line in asked.messages[0]["content"].splitlines()[1:]:
            colour, noun, price = line.split()
            prices[f"{colour} {noun}"] = price
        question = asked.messages[-1]["content"]
        named = sorted((question.index(name), name) for name in prices if re.search(rf"\b{name}\b", question))
        answer = re.sub(r'[{}"\[\]]|price: |prices: |cheaper: |items: ', "", asked.question.answer.replace('"', ""))
        if asked.question.kind == "price":
            assert answer == prices[named[0][1]]
        elif asked.question.kind == "total":
            assert re.findall(r"\d+", answer)[:2] == [prices[name] for _, name in named]
            assert int(answer.split()[-1]) == sum(int(prices[name]) for _, name in named)
        elif asked.question.kind == "cheaper":
            assert answer.removeprefix("the ") == min((name for _, name in named), key=lambda name: int(prices[name]))
        else:
            colour = re.search(r"things are (\w+)|all (\w+) things", question)
            assert colour is not None
            wanted = colour[1] or colour[2]
            right = [name.split()[1] for name in prices if name.split()[0] == wanted]
            assert answer in (", ".join(right), "none" if not right else None)


def test_follow_ups_carry_the_right_earlier_answer(workload):
    for part in workload.lists:
        first, second = part.rounds
        known = {a.question.text: a.question.answer for a in first}
        assert all(len(a.messages) == 2 and not a.follow_up for a in first)
        assert len(second) == 6
        for asked in second:
            system, user, assistant, last = asked.messages
            assert asked.follow_up
            assert [system["content"], last["content"]] == [part.prices.text, asked.question.text]
            assert known[user["content"]] == assistant["content"]


@pytest.mark.parametrize(
    ("sizes", "questions", "field"),
    [((), 8, "list_sizes"), ((71,), 8, "list_sizes"), ((1,), 8, "list_sizes"), ((44, 44), 8, "list_sizes"),
     ((44,), 0, "questions"), ((44,), 257, "questions")],
)  # fmt: skip
def test_sizes_out_of_range_are_refused(sizes, questions, field):
    with pytest.raises(ConfigError) as caught:
        make_workload(0, sizes, questions)
    assert caught.value.field == field
