"""Windows, refresh schedules and commit rules on `shop` or `shop-dream`: right answers, agreement and passes.

    python -m benchmarks.shop_fidelity --answers out/shop_fidelity.jsonl --out benchmarks/results/shop_fidelity.csv

Every variant answers the same questions about held-out lists of 12 lines, in mode `none` with the whole canvas first.
The first question about a list is asked alone; the other eight, which find its prefix in the cache, are counted.

`plain`: totals, colours and comparisons, six of eight in JSON: two to four blocks of 8 tokens. `shop` is sure of whole
blocks at once, so these show what windows and schedules lose and can't tell commit rules apart.
`twice`: lists that give four of their things two prices each; both digits of the two differ. A price is right if the
list gives it, a total if it adds prices that the list gives. The digits of an answer then depend on each other, and a
rule that commits them in one pass may mix two prices: that is what commit rules can lose.

`drop` is the accuracy of mode `none` (whole canvas, threshold 0.9) on the same questions less the row's, with a 95 %
interval for paired shares; accuracies have Wilson's. `tokens_per_forward` counts canvas tokens, those behind the end
included. Answers are kept after every `--piece` lists: the same command goes on from them until all lists are done.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from shoal import Engine
from shoal.provenance import commit, hardware
from shoal.shop.task import JSON_REQUEST, PriceList, Question, chat, make_list, make_question

from .accuracy import paired, wilson
from .schedules import Variant, is_served
from .table import write_table

CANVAS, BLOCK, LINES, TWICE = 48, 8, 12, 4
PLAIN = (
    ("total", True), ("colour", True), ("cheaper", True), ("total", False), ("price", True), ("colour", False),
    ("total", True), ("colour", True),
)  # fmt: skip
RULES: tuple[dict[str, Any], ...] = (
    {"threshold": 0.6}, {"threshold": 0.3}, {"factor": 1.0}, {"factor": 2.0}, {"entropy_bound": 0.1},
    {"entropy_bound": 0.5}, {"entropy_bound": 2.0}, {"threshold": 0.9, "threshold_decay": 0.3},
    {"threshold": 0.9, "threshold_decay": 0.8}, {"threshold": 0.6, "kl_threshold": 0.01, "kl_history": 1},
    {"threshold": 0.6, "kl_threshold": 0.01, "kl_history": 2},
)  # fmt: skip
SETS = ("plain", "twice")
Counted = tuple[bool, list[int], int, int, int]
"""Of an answer: right, tokens, NFE, canvas tokens, token-layers."""
Answers = dict[tuple[str, int], list[list[Counted]]]
"""By set and first list: of every variant, those to the piece's questions."""


def variants(few: bool = False) -> list[Variant]:
    """The reference first; schedules and windows, then rules. `few`: the eleven that a CPU has time for."""
    if few:
        return [
            Variant("none"), Variant("none", 8), Variant("dual"), Variant("bicache"),
            Variant("bicache", schedule="settled"), Variant("bicache", 8), Variant("bicache", 8, "settled"),
            Variant("bicache", 8, "settled", every=2), Variant("bicache", 8, "settled", entropy=0.3),
            *(Variant("bicache", rule=rule) for rule in ({"entropy_bound": 0.5}, RULES[-2])),
        ]  # fmt: skip
    return [
        Variant("none"), *(Variant("none", window) for window in (0, 8, 32)),
        Variant("dual"), Variant("dual", schedule="settled"), Variant("dual", 8), Variant("dual", 8, "settled"),
        Variant("bicache"), Variant("bicache", schedule="settled"), Variant("bicache", 8), Variant("bicache", 32),
        *(Variant("bicache", window, "settled") for window in (0, 8, 32)),
        Variant("bicache", 8, "settled", every=2), Variant("bicache", 8, "settled", entropy=0.3),
        *(Variant("bicache", rule=rule) for rule in RULES),
        *(Variant("none", rule=rule) for rule in ({"threshold": 0.3}, {"entropy_bound": 2.0}, RULES[-2])),
    ]  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """Questions about one list, the first of which is asked alone."""

    prices: PriceList
    questions: tuple[Question, ...]

    @property
    def prompts(self) -> list[list[dict[str, str]]]:
        """Of all questions."""
        return [chat(self.prices, [], question.text) for question in self.questions]

    def is_right(self, number: int, text: str) -> bool:
        """Whether a text answers a question: as it is written, or with prices that the list gives."""
        question = self.questions[number]
        if not question.kind.startswith("twice"):
            return text == question.answer
        names = json.loads(question.answer)
        found = [int(digits) for digits in re.findall(r"\d+", text)]
        if len(found) != (1 if len(names) == 1 else 3) or (len(found) == 3 and found[2] != found[0] + found[1]):
            return False
        given = [{item.price for item in self.prices.items if item.name == name} for name in names]
        return all(price in prices for price, prices in zip(found, given, strict=False))


def make_asked(kind: str, index: int) -> Asked:
    """List number `index` of a set, and a question and then eight about it; the same whatever else is measured."""
    rng = random.Random(f"shop-fidelity-{kind}-{index}")
    if kind == "plain":
        prices = make_list(rng, LINES, held_out=True)
        kinds = (PLAIN[0], *PLAIN)
        return Asked(prices, tuple(make_question(rng, prices, each, as_json) for each, as_json in kinds))
    while True:  # a list with second prices has a hash of its own: it has to be held out too
        items = list(make_list(rng, LINES - TWICE, held_out=True).items)
        named = rng.sample(items, TWICE)
        for item in named:
            other = [p for p in range(10, 100) if p // 10 != item.price // 10 and p % 10 != item.price % 10]
            items.append(replace(item, price=rng.choice(other)))
        rng.shuffle(items)
        prices = PriceList(tuple(items))
        if prices.held_out:
            break
    questions = []
    for number in range(len(PLAIN) + 1):
        as_json = number % 2 == 1
        names = [item.name for item in rng.sample(named, 1 if number % 4 == 2 else 2)]
        text = f"What does the {names[0]} cost?"
        if len(names) == 2:
            text = f"What do the {names[0]} and the {names[1]} cost together?"
        kind = "twice, price" if len(names) == 1 else "twice, total"
        questions.append(Question(kind, as_json, text + JSON_REQUEST * as_json, json.dumps(names)))
    return Asked(prices, tuple(questions))


def pieces(plain: int, twice: int, size: int) -> list[tuple[str, int]]:
    """(set, first list) of every piece; both sets come to their ends together."""
    found = [(index / plain, "plain", index) for index in range(0, plain, size)]
    found += [(index / twice, "twice", index) for index in range(0, twice, size)]
    return [(kind, index) for _, kind, index in sorted(found)]


def answer(engine: Engine, asked: list[Asked], variant: Variant) -> list[Counted]:
    """What a variant answers to all questions of a piece but each list's first."""
    params = replace(variant.params(CANVAS), block_length=BLOCK)
    engine.generate([each.prompts[0] for each in asked], params, cache_mode=variant.mode)
    prompts = [prompt for each in asked for prompt in each.prompts[1:]]
    outputs = engine.generate(prompts, params, cache_mode=variant.mode)
    engine.flush_cache()
    places = [(each, number) for each in asked for number in range(1, len(each.questions))]
    return [
        (each.is_right(number, o.text), list(o.token_ids), o.nfe, o.canvas_tokens, o.computed_token_layers)
        for (each, number), o in zip(places, outputs, strict=True)
    ]  # fmt: skip


def figures(mine: list[Counted], exact: list[Counted]) -> dict[str, object]:
    """The numbers of one variant beside those of the reference."""
    count, right = len(mine), sum(each[0] for each in mine)
    lost = sum(b[0] and not a[0] for a, b in zip(mine, exact, strict=True))
    won = sum(a[0] and not b[0] for a, b in zip(mine, exact, strict=True))
    nfe = sum(each[2] for each in mine)
    found: dict[str, float] = {"accuracy": right / count}
    found |= zip(("low_95", "high_95"), wilson(right, count), strict=True)
    found |= {"lost": lost, "won": won, "drop": (lost - won) / count}
    found |= zip(("drop_low_95", "drop_high_95"), paired(lost, won, count), strict=True)
    found |= {
        "agreement": sum(a[1] == b[1] for a, b in zip(mine, exact, strict=True)) / count, "nfe": nfe / count,
        "tokens_per_forward": sum(each[3] for each in mine) / nfe,
        "token_layers": sum(each[4] for each in mine) / count,
    }  # fmt: skip
    return {"questions": count, **{name: round(value, 4) for name, value in found.items()}}


def load(path: Path, settings: dict[str, Any], origin: dict[str, str]) -> tuple[dict[str, str], Answers]:
    """Where the answers of earlier runs come from, and these by piece.

    SystemExit for a file that other settings, hardware or another version of torch made. Its commit and command stay.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**settings, "origin": origin}) + "\n")
        return origin, {}
    head, *lines = path.read_text().split("\n")[:-1]
    made = json.loads(head)
    first = made.pop("origin")
    if made != json.loads(json.dumps(settings)):
        raise SystemExit(f"{path} was made with {head}: choose another --answers")
    return first, {(kind, index): found for kind, index, found in map(json.loads, lines)}


def table(chosen: list[Variant], done: Answers) -> list[dict[str, object]]:
    """Rows by set and variant."""
    rows = []
    for kind in SETS:
        parts = [found for (name, _), found in sorted(done.items()) if name == kind]
        if parts:
            answers = [[each for part in parts for each in part[number]] for number in range(len(chosen))]
            rows += [
                {"set": kind, **variant.columns(), **figures(mine, answers[0])}
                for variant, mine in zip(chosen, answers, strict=True)
            ]
    return rows


def measure(
    options: argparse.Namespace, chosen: list[Variant], missing: list[tuple[str, int]], done: Answers,
    write: Callable[[], None],
) -> None:  # fmt: skip
    """Answer pieces until the time is over; each is kept, and written, as it is done."""
    together = options.piece * len(PLAIN)
    with Engine(
        options.model,
        device=options.device,
        dtype=options.dtype,
        kv_cache_tokens=512 * max(32, together),
        max_running_requests=max(32, together),
    ) as engine:
        began = time.monotonic()
        for kind, first in tqdm(missing, unit="piece"):
            if time.monotonic() - began > options.time_limit:
                break
            asked = [make_asked(kind, index) for index in range(first, first + options.piece)]
            done[kind, first] = [answer(engine, asked, variant) for variant in chosen]
            with options.answers.open("a") as file:
                file.write(json.dumps([kind, first, done[kind, first]]) + "\n")
            write()


def main(arguments: list[str] | None = None) -> None:
    """Answer what is missing until the time is over, and write the table of what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shop", help="shop, or a folder of shop-dream")
    parser.add_argument("--answers", type=Path, required=True, help="where answers are kept")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plain", type=int, default=128, help="lists of the set `plain`, eight questions each")
    parser.add_argument("--twice", type=int, default=64, help="lists of the set `twice`, eight questions each")
    parser.add_argument("--piece", type=int, default=2, help="lists that are asked together: 16 on a GPU")
    parser.add_argument("--few", action="store_true", help="eleven of the variants")
    parser.add_argument(
        "--time-limit",
        type=float,
        default=600.0,
        help="begin no further piece after so many seconds; 0: only write the table",
    )
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--commit", default=None)
    options = parser.parse_args(arguments)
    chosen = [variant for variant in variants(options.few) if options.device == "cpu" or is_served(variant)]
    settings = {
        "model": Path(options.model).name, "device": options.device, "dtype": options.dtype, "piece": options.piece,
        "variants": [variant.columns() for variant in chosen],
    }  # fmt: skip
    origin = {
        "command": "python -m benchmarks.shop_fidelity " + shlex.join(sys.argv[1:] if arguments is None else arguments),
        "commit": options.commit or commit(), "hardware": hardware(), "torch": torch.__version__,
    }  # fmt: skip
    origin, done = load(options.answers, settings, origin)
    missing = [piece for piece in pieces(options.plain, options.twice, options.piece) if piece not in done]

    def write() -> None:
        write_table(options.out, [{**row, **origin} for row in table(chosen, done)])

    if missing and options.time_limit:
        measure(options, chosen, missing, done, write)
    if not done:
        raise SystemExit("the time was over before a piece was done: raise --time-limit")
    write()


if __name__ == "__main__":
    main()
