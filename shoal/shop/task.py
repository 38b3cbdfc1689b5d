"""The price-list task: seeded price lists and questions about them, each with its one right answer.

A list names a few things, each of a colour, with a price of two digits. Questions ask for a price, for the total of
two prices (the answer shows its working), for the cheaper of two things, or for all things of a colour; each also in a
variant that wants a small JSON object. Lists of the training split and of the held-out split are disjoint: a hash of
the list's text decides the split, and the generator draws again until the list is on the side asked for.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

COLOURS = (
    "red", "blue", "green", "yellow", "black", "white", "pink", "brown",
    "grey", "purple", "orange", "golden", "silver", "violet", "beige", "teal",
)  # fmt: skip
NOUNS = (
    "apple", "pear", "plum", "fig", "melon", "lamp", "chair", "table", "cup", "plate", "bowl", "knife",
    "fork", "spoon", "shirt", "sock", "shoe", "hat", "scarf", "glove", "book", "pen", "clock", "bell",
    "drum", "flute", "kite", "ball", "boat", "wagon", "brush", "comb", "towel", "pillow", "candle", "mirror",
    "basket", "bottle", "ladder", "hammer",
)  # fmt: skip
KINDS = ("price", "total", "cheaper", "colour")
MAX_PER_COLOUR = 6
MAX_ITEMS = 70
HEADER = "Prices:"
JSON_REQUEST = " Answer in JSON."

_HELD_OUT_SHARE = 5  # percent of all lists


@dataclass(frozen=True, slots=True)
class Item:
    """One line of a price list; `price` is 10 to 99."""

    colour: str
    noun: str
    price: int

    @property
    def name(self) -> str:
        """Colour and noun, as questions name the thing."""
        return f"{self.colour} {self.noun}"


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a list: its kind (one of `KINDS`), whether it wants JSON, its text and the right answer."""

    kind: str
    json: bool
    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class PriceList:
    """A price list; names are unique and no colour has more than `MAX_PER_COLOUR` things."""

    items: tuple[Item, ...]

    @property
    def text(self) -> str:
        """The list as the system message of a chat: a header and a line for each item."""
        return HEADER + "".join(f"\n {item.colour} {item.noun} {item.price}" for item in self.items)

    @property
    def held_out(self) -> bool:
        """True when this list belongs to the held-out split."""
        digest = hashlib.blake2b(self.text.encode(), digest_size=4).digest()
        return int.from_bytes(digest, "big") % 100 < _HELD_OUT_SHARE


_NAMES = tuple((colour, noun) for colour in COLOURS for noun in NOUNS)


def make_list(rng: random.Random, num_items: int, *, held_out: bool = False) -> PriceList:
    """Draw a price list of `num_items` items (1 to `MAX_ITEMS`) from the split asked for.

    Raises ValueError when `num_items` is out of range.
    """
    if not 1 <= num_items <= MAX_ITEMS:
        raise ValueError(f"num_items is {num_items}; a price list has 1 to {MAX_ITEMS} items")
    while True:
        counts: dict[str, int] = {}
        items: list[Item] = []
        for index in rng.sample(range(len(_NAMES)), min(len(_NAMES), num_items + 120)):
            colour, noun = _NAMES[index]
            count = counts.get(colour, 0)
            if count < MAX_PER_COLOUR:
                counts[colour] = count + 1
                items.append(Item(colour, noun, 10 + int(rng.random() * 90)))
                if len(items) == num_items:
                    break
        prices = PriceList(tuple(items))
        if len(items) == num_items and prices.held_out == held_out:
            return prices


def ask_price(rng: random.Random, prices: PriceList, json: bool) -> Question:
    """What one thing costs: `42` or `{"price": 42}`."""
    item = rng.choice(prices.items)
    text = rng.choice((f"What does the {item.name} cost?", f"How much is the {item.name}?"))
    answer = f'{{"price": {item.price}}}' if json else str(item.price)
    return Question("price", json, text + JSON_REQUEST * json, answer)


def ask_total(rng: random.Random, prices: PriceList, json: bool) -> Question:
    """What two things cost together: `42 + 17 = 59` or `{"prices": [42, 17], "total": 59}`."""
    one, two = _two(rng, prices)
    text = f"What do the {one.name} and the {two.name} cost together?"
    total = one.price + two.price
    if json:
        answer = f'{{"prices": [{one.price}, {two.price}], "total": {total}}}'
    else:
        answer = f"{one.price} + {two.price} = {total}"
    return Question("total", json, text + JSON_REQUEST * json, answer)


def ask_cheaper(rng: random.Random, prices: PriceList, json: bool) -> Question:
    """Which of two things of different price is cheaper: `the blue pear` or `{"cheaper": "blue pear"}`."""
    one, two = _two(rng, prices)
    for _ in range(20):
        if one.price != two.price:
            break
        one, two = _two(rng, prices)
    text = f"Which is cheaper, the {one.name} or the {two.name}?"
    name = min(one, two, key=lambda item: item.price).name
    answer = f'{{"cheaper": "{name}"}}' if json else f"the {name}"
    return Question("cheaper", json, text + JSON_REQUEST * json, answer)


def ask_colour(rng: random.Random, prices: PriceList, json: bool) -> Question:
    """All things of a colour in the list's order: `apple, plum`, `none`, or `{"items": ["apple", "plum"]}`."""
    colour = rng.choice(prices.items).colour if rng.random() < 0.95 else rng.choice(COLOURS)
    nouns = [item.noun for item in prices.items if item.colour == colour]
    text = rng.choice((f"Which things are {colour}?", f"List all {colour} things."))
    if json:
        answer = '{"items": [' + ", ".join(f'"{noun}"' for noun in nouns) + "]}"
    else:
        answer = ", ".join(nouns) or "none"
    return Question("colour", json, text + JSON_REQUEST * json, answer)


def _two(rng: random.Random, prices: PriceList) -> tuple[Item, Item]:
    one, two = rng.sample(prices.items, 2)
    return one, two


_ASK = {"price": ask_price, "total": ask_total, "cheaper": ask_cheaper, "colour": ask_colour}


def make_question(rng: random.Random, prices: PriceList, kind: str | None = None, json: bool | None = None) -> Question:
    """Draw a question about a list of at least two items; `kind` and `json` fix what is else drawn."""
    kind = rng.choice(KINDS) if kind is None else kind
    json = rng.random() < 0.35 if json is None else json
    return _ASK[kind](rng, prices, json)


def chat(prices: PriceList, turns: Sequence[tuple[str, str]], question: str) -> list[dict[str, str]]:
    """Chat messages for a question after earlier (question, answer) turns about the same list."""
    messages = [{"role": "system", "content": prices.text}]
    for asked, answered in turns:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return [*messages, {"role": "user", "content": question}]
