"""The price-list task: every answer against a reading of the list's and the question's text by other code."""

from __future__ import annotations

import json
import random
import re
from collections import Counter

import pytest

from shoal.shop.task import (
    COLOURS,
    KINDS,
    MAX_ITEMS,
    MAX_PER_COLOUR,
    NOUNS,
    Item,
    PriceList,
    ask_cheaper,
    ask_colour,
    chat,
    make_list,
    make_question,
)


def read(text: str) -> list[tuple[str, str, int]]:
    """(colour, noun, price) of each line of a list."""
    header, *lines = text.split("\n")
    assert header == "Prices:"
    rows = [line.split(" ") for line in lines]
    assert all(row[0] == "" and len(row) == 4 for row in rows)
    return [(colour, noun, int(price)) for _, colour, noun, price in rows]


def solve(text: str, question: str) -> tuple[str, bool, object]:
    """Kind of a question, whether it wants JSON, and what its answer must say, from the texts alone."""
    things = read(text)
    prices = {f"{colour} {noun}": price for colour, noun, price in things}
    assert len(prices) == len(things)
    plain = question.removesuffix(" Answer in JSON.")
    wants_json = plain != question
    if match := re.fullmatch(r"What does the (\w+ \w+) cost\?|How much is the (\w+ \w+)\?", plain):
        return "price", wants_json, prices[match[1] or match[2]]
    if match := re.fullmatch(r"What do the (\w+ \w+) and the (\w+ \w+) cost together\?", plain):
        return "total", wants_json, (prices[match[1]], prices[match[2]])
    if match := re.fullmatch(r"Which is cheaper, the (\w+ \w+) or the (\w+ \w+)\?", plain):
        one, two = match[1], match[2]
        return "cheaper", wants_json, {name for name in (one, two) if prices[name] == min(prices[one], prices[two])}
    match = re.fullmatch(r"Which things are (\w+)\?|List all (\w+) things\.", plain)
    assert match
    asked = match[1] or match[2]
    return "colour", wants_json, [noun for colour, noun, _ in things if colour == asked]


def is_right(kind: str, wants_json: bool, said: str, truth: object) -> bool:
    """Whether an answer says the truth in the form asked for."""
    if wants_json:
        value = json.loads(said)
        if kind == "price":
            return value == {"price": truth}
        if kind == "total":
            assert isinstance(truth, tuple)
            return value == {"prices": list(truth), "total": sum(truth)}
        if kind == "cheaper":
            assert isinstance(truth, set)
            return list(value) == ["cheaper"] and value["cheaper"] in truth
        return value == {"items": truth}
    if kind == "price":
        return said == f"{truth}"
    if kind == "total":
        assert isinstance(truth, tuple)
        return said == f"{truth[0]} + {truth[1]} = {truth[0] + truth[1]}"
    if kind == "cheaper":
        assert isinstance(truth, set)
        return said.removeprefix("the ") in truth and said.startswith("the ")
    assert isinstance(truth, list)
    return said == (", ".join(truth) if truth else "none")


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_right_by_the_text(kind, as_json):
    rng = random.Random(f"answers-{kind}-{as_json}")
    for _ in range(150):
        prices = make_list(rng, rng.randint(2, MAX_ITEMS), held_out=rng.random() < 0.1)
        question = make_question(rng, prices, kind, as_json)
        asked, wants_json, truth = solve(prices.text, question.text)
        assert (question.kind, question.json) == (asked, wants_json) == (kind, as_json)
        assert is_right(kind, as_json, question.answer, truth), (prices.text, question)


@pytest.mark.parametrize(
    ("question", "wrong"),
    [
        ("How much is the red pear?", "43"),
        ("What do the red pear and the blue fig cost together?", "42 + 17 = 60"),
        ("Which is cheaper, the red pear or the blue fig?", "the red pear"),
        ("List all red things.", "pear"),
        ("List all red things.", "cup, pear"),
        ("List all red things. Answer in JSON.", '{"items": ["cup", "pear"]}'),
        ("How much is the red pear? Answer in JSON.", '{"price": "42"}'),
    ],
)
def test_the_reading_sees_wrong_answers(question, wrong):
    text = "Prices:\n red pear 42\n blue fig 17\n red cup 99"
    kind, wants_json, truth = solve(text, question)
    assert not is_right(kind, wants_json, wrong, truth)


def test_a_colour_without_things():
    prices = PriceList((Item("red", "pear", 42), Item("red", "fig", 17)))
    questions = [ask_colour(random.Random(seed), prices, json=seed % 2 == 1) for seed in range(200)]
    answers = {(question.json, question.answer) for question in questions if "red" not in question.text}
    assert answers == {(False, "none"), (True, '{"items": []}')}


def test_cheaper_asks_for_different_prices_where_it_can():
    """With two things of one price among three, that pair is as good as never asked about."""
    prices = PriceList((Item("red", "pear", 42), Item("blue", "fig", 42), Item("teal", "cup", 17)))
    for seed in range(100):
        question = ask_cheaper(random.Random(seed), prices, json=False)
        assert question.answer == "the teal cup"


def test_lists_follow_the_rules():
    rng = random.Random("rules")
    seen_most = 0
    for size in [1, 2, 8, 40, *[MAX_ITEMS] * 60]:
        prices = make_list(rng, size)
        things = read(prices.text)
        counts = Counter(colour for colour, _, _ in things)
        seen_most = max(seen_most, *counts.values())
        assert len(things) == size
        assert len({(colour, noun) for colour, noun, _ in things}) == size
        assert all(colour in COLOURS and noun in NOUNS and 10 <= price <= 99 for colour, noun, price in things)
    assert seen_most == MAX_PER_COLOUR


@pytest.mark.parametrize("size", [0, -1, MAX_ITEMS + 1])
def test_sizes_out_of_range_are_refused(size):
    with pytest.raises(ValueError, match=f"num_items is {size}"):
        make_list(random.Random(0), size)


def test_splits_are_disjoint_and_reproducible():
    def draw(seed: str, held_out: bool) -> list[str]:
        rng = random.Random(seed)
        return [make_list(rng, rng.randint(1, 12), held_out=held_out).text for _ in range(150)]

    train, held_out = draw("split", False), draw("split", True)
    assert train == draw("split", False)
    assert held_out == draw("split", True)
    assert train != draw("another", False)
    assert not set(train) & set(held_out)
    for texts, split in ((train, False), (held_out, True)):
        for text in texts:
            assert PriceList(tuple(Item(*thing) for thing in read(text))).held_out is split


def test_lists_and_split_are_pinned():
    """Another generator or hash would put trained lists among the held-out ones without any other test noticing."""
    rng = random.Random("pinned")
    assert [make_list(rng, 3, held_out=split).text for split in (False, True)] == [
        "Prices:\n purple knife 14\n black bottle 98\n pink book 13",
        "Prices:\n white basket 92\n teal hammer 36\n teal lamp 42",
    ]


def test_about_one_list_in_twenty_is_held_out():
    rng = random.Random("share")
    colours, nouns = rng.choices(COLOURS, k=4000), rng.choices(NOUNS, k=4000)
    lists = [PriceList((Item(colour, noun, rng.randint(10, 99)),)) for colour, noun in zip(colours, nouns, strict=True)]
    assert 0.035 < sum(prices.held_out for prices in lists) / len(lists) < 0.065


def test_questions_of_every_kind_are_drawn():
    rng = random.Random("kinds")
    prices = make_list(rng, 20)
    drawn = Counter((question.kind, question.json) for question in (make_question(rng, prices) for _ in range(800)))
    assert set(drawn) == {(kind, as_json) for kind in KINDS for as_json in (False, True)}
    assert 0.28 < sum(count for (_, as_json), count in drawn.items() if as_json) / 800 < 0.42


def test_chat_keeps_turns_in_order():
    prices = make_list(random.Random(0), 2)
    messages = chat(prices, [("a", "b"), ("c", "d")], "e")
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert [m["content"] for m in messages] == [prices.text, "a", "b", "c", "d", "e"]
