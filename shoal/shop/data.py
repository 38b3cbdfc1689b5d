"""Rows for `shoal profile`: `python -m shoal.shop.data --out shop.jsonl` writes questions about held-out lists.

Lists of many sizes, some after earlier turns, so that prefix ratios up to nearly 0.9 occur. A group is one list with
its turns; all its rows share that.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import vocabulary
from .evaluate import render
from .task import KINDS, MAX_ITEMS, chat, make_list, make_question


def rows(groups: int, questions: int, seed: int, longest: int = 604) -> Iterator[dict[str, Any]]:
    """`groups` lists with `questions` rows each (kinds in turn); prompts have at most `longest` tokens."""
    rng = random.Random(f"profile-data-{seed}")
    for number in range(groups):
        # Every third group is as long as it can be: only there are the largest ratios.
        size = MAX_ITEMS if number % 3 == 2 else rng.randint(12, MAX_ITEMS)
        prices = make_list(rng, size, held_out=True)
        turns: list[tuple[str, str]] = []
        most = 8 if number % 3 == 2 else rng.choice((0, 0, 1, 3))
        for _ in range(most):
            earlier = make_question(rng, prices)
            longer = [*turns, (earlier.text, earlier.answer)]
            if len(vocabulary.encode(render(chat(prices, longer, "")))) > longest - 40:
                break
            turns = longer
        for index in range(questions):
            question = make_question(rng, prices, KINDS[index % len(KINDS)])
            yield {
                "messages": chat(prices, turns, question.text),
                "answer": question.answer,
                "kind": question.kind,
                "group": f"list-{number}",
            }


def main(arguments: list[str] | None = None) -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--groups", type=int, default=30, help="price lists")
    parser.add_argument("--questions", type=int, default=25, help="rows about each")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with options.out.open("w", encoding="utf-8") as file:
        for row in rows(options.groups, options.questions, options.seed):
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
