"""Questions with two right answers, and tables of answers that were kept."""

from __future__ import annotations

import json

import pytest

from benchmarks.shop_fidelity import LINES, PLAIN, TWICE, figures, load, make_asked, pieces, table, variants


def test_a_price_of_a_thing_with_two_is_right_and_a_mixture_is_not():
    asked = make_asked("twice", 0)
    assert asked.prices.held_out
    assert len(asked.prices.items) == LINES
    seen = set()
    for number, question in enumerate(asked.questions):
        names = json.loads(question.answer)
        given = [[item.price for item in asked.prices.items if item.name == name] for name in names]
        assert [len(prices) for prices in given] == [2] * len(names)
        for one, other in given:
            assert one // 10 != other // 10
            assert one % 10 != other % 10
        mixed = given[0][0] // 10 * 10 + given[0][1] % 10
        if question.kind == "twice, price":
            assert asked.is_right(number, f'{{"price": {given[0][1]}}}')
            assert not asked.is_right(number, str(mixed))
        else:
            a, b = given[0][1], given[1][0]
            assert asked.is_right(number, f"{a} + {b} = {a + b}")
            assert not asked.is_right(number, f"{a} + {b} = {a + b + 1}")
            assert not asked.is_right(number, f"{mixed} + {b} = {mixed + b}")
        assert not asked.is_right(number, "")
        seen.add(question.kind)
    assert seen == {"twice, price", "twice, total"}
    assert len({item.name for item in asked.prices.items}) == LINES - TWICE


def test_plain_questions_have_one_answer():
    asked = make_asked("plain", 3)
    assert len(asked.questions) == len(PLAIN) + 1
    for number, question in enumerate(asked.questions):
        assert asked.is_right(number, question.answer)
        assert not asked.is_right(number, question.answer + " 1")


def test_both_sets_end_together_and_rows_stand_beside_the_reference(tmp_path):
    assert pieces(8, 4, 2) == [
        ("plain", 0), ("twice", 0), ("plain", 2), ("plain", 4), ("twice", 2), ("plain", 6)
    ]  # fmt: skip
    exact, mine = [(True, [1], 2, 16, 50), (True, [2], 2, 16, 50)], [(True, [1], 1, 16, 30), (False, [3], 1, 16, 30)]
    found = figures(mine, exact)
    assert (found["accuracy"], found["lost"], found["won"], found["agreement"], found["nfe"]) == (0.5, 1, 0, 0.5, 1.0)
    chosen = variants()[:2]
    rows = table(chosen, {("plain", 0): [exact, mine], ("plain", 2): [exact, mine]})
    assert [(row["set"], row["window"], row["questions"], row["accuracy"]) for row in rows] == [
        ("plain", "all", 4, 1.0), ("plain", 0, 4, 0.5),
    ]  # fmt: skip
    path = tmp_path / "answers.jsonl"
    origin = {"commit": "a"}
    assert load(path, {"model": "shop"}, origin) == (origin, {})
    with path.open("a") as file:
        file.write(json.dumps(["plain", 0, [exact, mine]]) + "\n")
    first, done = load(path, {"model": "shop"}, {"commit": "b"})
    assert first == origin
    assert list(done) == [("plain", 0)]
    with pytest.raises(SystemExit, match="choose another --answers"):
        load(path, {"model": "other"}, origin)
