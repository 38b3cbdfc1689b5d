"""Five programs of the kinds that people write with sglang, on shoal and on sglang through shoal's backend."""

from __future__ import annotations

import asyncio
import random

import pytest

import shoal
from shoal.shop.task import ask_colour, ask_price

from ..five_ports import five_ports
from ..program.test_six_programs import WAYS


@pytest.fixture(scope="module", params=[way for way in WAYS if way != "sglang on a server"])
def language(request):
    """(programs, backend, whether it is shoal)."""
    where = request.getfixturevalue("shop") if "engine" in request.param else request.getfixturevalue("server").url
    if request.param.startswith("shoal"):
        return five_ports(shoal), where, True
    sglang = pytest.importorskip("sglang")
    from shoal.frontend.backends.sglang import ShoalBackend

    return five_ports(sglang), ShoalBackend(where), False


def test_react_with_tools(language, prices):
    programs, backend, _ = language
    wanted = random.Random(1).sample(prices.items, 4)
    budget = wanted[0].price + wanted[1].price
    state = programs.react.run(
        prices=prices.text, budget=budget, wanted=[item.name for item in wanted], tools={"add": lambda a, b: a + b},
        backend=backend,
    )  # fmt: skip
    assert state["bought"] == [item.name for item in wanted[:2]]
    assert state["steps"] == 3
    assert "act_3" not in state
    assert state.get_meta_info("act_0")["finish_reason"]["type"] == "stop"
    assert state.messages()[-1] == {"role": "assistant", "content": str(wanted[2].price)}


def test_map_reduce(language, prices):
    """The parent has no text of its own when it is forked."""
    programs, backend, is_shoal = language
    colour = prices.items[0].colour
    parts = [type(prices)(tuple(prices.items[at::2])) for at in (0, 1)]
    state = programs.map_reduce.run(parts=[part.text for part in parts], colour=colour, backend=backend)
    nouns = [[item.noun for item in part.items if item.colour == colour] for part in parts]
    assert state["parts"] == [", ".join(part) or "none" for part in nouns]
    assert sorted(state["all"].split(", ")) == sorted(noun for part in nouns for noun in part)
    assert state["found"] == state["parts"]
    if is_shoal:
        assert state.usage.calls == 3


def test_choices_in_a_loop(language, prices):
    programs, backend, _ = language
    items = random.Random(6).sample(prices.items, 4)
    batch = [{"prices": prices.text, "names": [item.name for item in items[at:]]} for at in (0, 1)]
    for state, chosen in zip(programs.tournament.run_batch(batch, backend=backend), (items, items[1:]), strict=True):
        assert state["best"] == min(chosen, key=lambda item: item.price).name


def test_a_chat_that_is_shown_as_it_comes(language, prices):
    programs, backend, _ = language
    rng = random.Random(4)
    asked = [ask_price(rng, prices, False), ask_colour(rng, prices, False)]
    state = programs.chat.run(
        prices=prices.text, questions=[question.text for question in asked], backend=backend, stream=True
    )
    shown = ["".join(state.text_iter(var_name=f"answer_{index}")) for index in range(2)]
    assert shown == [question.answer for question in asked]
    state.sync()
    assert [message["content"] for message in state.messages()[2::2]] == shown


async def test_the_same_chat_in_an_event_loop(language, prices):
    programs, backend, is_shoal = language
    if not is_shoal:
        pytest.skip("sglang has no run that can be awaited")
    question = ask_price(random.Random(4), prices, False)

    async def talk(number: int) -> tuple[str, int]:
        state = await programs.chat.run_async(prices.text, [question.text] * 2, backend=backend, stream=True)
        pieces = [piece async for piece in state.text_async_iter("answer_1", return_meta_data=True)]
        return "".join(text for text, _ in pieces), number

    assert await asyncio.gather(*map(talk, range(4))) == [(question.answer, number) for number in range(4)]


def test_programs_that_call_programs(language, prices):
    """Alone and in a batch, whose trace must not call the inner program with an open argument."""
    programs, backend, is_shoal = language
    items = random.Random(7).sample(prices.items, 4)
    names = [item.name for item in items]
    batch = [{"prices": prices.text, "names": chosen, "where": backend} for chosen in (names[:3], names[1:])]
    states = [programs.shopping.run(**batch[0], backend=backend), *programs.shopping.run_batch(batch, backend=backend)]
    for state, at in zip(states, (0, 0, 1), strict=True):
        assert state["total"] == items[at].price + items[at + 1].price
        assert state["third"] == items[at + 2].price
        assert not is_shoal or "aside" not in state
        assert state.ret_value == items[at].name
        assert state["second"] == str(items[at + 1].price)
