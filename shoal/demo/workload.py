"""The demo's workload: held-out price lists and a fixed mix of questions about each."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..runtime.errors import ConfigError
from ..shop.task import MAX_ITEMS, PriceList, Question, chat, make_list, make_question

KIND_CYCLE = ("colour", "price", "total", "colour", "cheaper", "total", "colour", "price")
"""Kinds of question, in turn: of 8, 3 ask for a colour, 2 for a price, 2 for a total and 1 for the cheaper thing."""
JSON_EVERY = 3
FOLLOW_UP_EVERY = 5
MIN_ITEMS = 2
MAX_QUESTIONS = 256
_REDRAWS = 100


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as it is sent: the chat messages (list, earlier turn if any, question) and the question itself."""

    messages: tuple[dict[str, str], ...]
    question: Question
    follow_up: bool

    @property
    def prices(self) -> str:
        """The system message: the list."""
        return self.messages[0]["content"]

    @property
    def turns(self) -> tuple[tuple[str, str], ...]:
        """Earlier turns: (question, answer)."""
        said = [message["content"] for message in self.messages[1:-1]]
        return tuple(zip(said[::2], said[1::2], strict=True))


@dataclass(frozen=True, slots=True)
class ListQuestions:
    """A price list and its questions: `rounds` are asked one after the other, each as one batch.

    The second round holds the follow-ups: their conversation begins with a question of the first round and the right
    answer to it.
    """

    prices: PriceList
    rounds: tuple[tuple[Asked, ...], ...]

    @property
    def num_questions(self) -> int:
        """Questions of all rounds."""
        return sum(map(len, self.rounds))


@dataclass(frozen=True, slots=True)
class Workload:
    """Lists and questions of one run of the demo; the same seed, sizes and count give the same workload."""

    seed: int
    lists: tuple[ListQuestions, ...]

    @property
    def num_questions(self) -> int:
        """Questions about all lists."""
        return sum(part.num_questions for part in self.lists)

    @property
    def asked(self) -> tuple[Asked, ...]:
        """Every question, in the order of asking."""
        return tuple(asked for part in self.lists for batch in part.rounds for asked in batch)

    def sample(self, questions: int) -> Workload:
        """The first `questions` questions (in the order drawn) about the list in the middle."""
        part = self.lists[len(self.lists) // 2]
        return make_workload(self.seed, [len(part.prices.items)], min(questions, part.num_questions))

    def describe(self) -> dict[str, Any]:
        """JSON-able description: sizes, counts and the mix."""
        asked = self.asked
        kinds = [a.question.kind for a in asked]
        return {
            "seed": self.seed,
            "list_sizes": [len(part.prices.items) for part in self.lists],
            "questions": len(asked),
            "questions_per_list": self.lists[0].num_questions,
            "kinds": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
            "json": sum(a.question.json for a in asked),
            "follow_ups": sum(a.follow_up for a in asked),
        }


def make_workload(seed: int, list_sizes: Sequence[int], questions: int) -> Workload:
    """Draw a held-out list of each size, and `questions` different questions about each.

    Kinds follow `KIND_CYCLE`, every third question wants JSON, every fifth is a follow-up to the one before. A list's
    draws depend only on the seed and its size. Raises ConfigError for sizes and counts out of range.
    """
    if not list_sizes:
        raise ConfigError("list_sizes is empty; it must have at least one size", field="list_sizes", limit=1)
    for size in list_sizes:
        _check("list_sizes", size, MIN_ITEMS, MAX_ITEMS)
    if len(set(list_sizes)) < len(list_sizes):
        raise ConfigError(f"list_sizes is {list(list_sizes)}; sizes must differ", field="list_sizes", value=list_sizes)
    _check("questions", questions, 1, MAX_QUESTIONS)
    return Workload(seed, tuple(_questions(seed, size, questions) for size in list_sizes))


def _questions(seed: int, size: int, count: int) -> ListQuestions:
    rng = random.Random(f"demo-{seed}-{size}")
    prices = make_list(rng, size, held_out=True)
    drawn: list[Question] = []
    rounds: tuple[list[Asked], list[Asked]] = ([], [])
    for index in range(count):
        kind, as_json = KIND_CYCLE[index % len(KIND_CYCLE)], index % JSON_EVERY == JSON_EVERY - 1
        question = make_question(rng, prices, kind, as_json)
        for _ in range(_REDRAWS):
            if question not in drawn:
                break
            question = make_question(rng, prices, kind, as_json)
        follow_up = index % FOLLOW_UP_EVERY == FOLLOW_UP_EVERY - 1
        turns = [(drawn[-1].text, drawn[-1].answer)] if follow_up else []
        drawn.append(question)
        rounds[follow_up].append(Asked(tuple(chat(prices, turns, question.text)), question, follow_up))
    return ListQuestions(prices, tuple(tuple(batch) for batch in rounds if batch))


def _check(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        limit = f"from {low} to {high}"
        raise ConfigError(f"{name}: {value} is out of range; it must be {limit}", field=name, value=value, limit=limit)
