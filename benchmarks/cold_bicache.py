"""Mode `bicache` with an empty cache beside `dual`: what reuse of a request's own first forward changes and saves.

    python -m benchmarks.cold_bicache --out benchmarks/results/cold_bicache.csv

Questions about held-out price lists, decoded in blocks of 4, each in front of an empty cache. Rows: `dual`, and
`bicache` by refresh interval (0: the prompt is computed once per request; 1: again at every block start, as `dual`
does). `same_as_dual` counts equal token ids, `right` equal answers.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

from benchmarks.table import Table
from shoal import Engine, RequestOutput, SamplingParams
from shoal.provenance import commit, hardware
from shoal.runtime.config import CacheMode
from shoal.shop.task import KINDS, chat, make_list, make_question

PARAMS = SamplingParams(max_new_tokens=32, block_length=4)


def questions(count: int) -> tuple[list[list[dict[str, str]]], list[str]]:
    """Chats with lists of different lengths, every kind equally often, and the right answers."""
    rng = random.Random(7)
    chats, answers = [], []
    for number in range(count):
        prices = make_list(rng, rng.choice((10, 20, 30)), held_out=True)
        question = make_question(rng, prices, KINDS[number % len(KINDS)])
        chats.append(chat(prices, [], question.text))
        answers.append(question.answer)
    return chats, answers


def cold(engine: Engine, chats: list[list[dict[str, str]]], mode: CacheMode) -> list[RequestOutput]:
    """Answers, each with an empty cache."""
    outputs = []
    for one in chats:
        engine.flush_cache()
        outputs.append(engine.generate(one, PARAMS, cache_mode=mode))
    assert not any(output.cached_tokens for output in outputs)
    return outputs


def main() -> None:
    """Measure `dual`, and `bicache` at every interval."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/cold_bicache.csv"))
    parser.add_argument("--model", default="shop")
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--intervals", type=int, nargs="+", default=[0], help="refresh intervals of mode bicache")
    args = parser.parse_args()
    table = Table(args.out, {
        "model": args.model, "questions": args.questions,
        "command": " ".join(["python -m benchmarks.cold_bicache", *sys.argv[1:]]), "commit": commit(),
        "hardware": hardware(),
    })  # fmt: skip
    chats, answers = questions(args.questions)
    dual: list[RequestOutput] = []
    runs: list[tuple[CacheMode, int | None]] = [("dual", None)]
    runs += [("bicache", interval) for interval in args.intervals]
    for mode, interval in runs:
        with Engine(args.model, device="cpu", refresh_interval=interval) as engine:
            outputs = cold(engine, chats, mode)
        dual = dual or outputs
        pairs = list(zip(outputs, dual, strict=True))
        row = {
            "mode": mode, "refresh_interval": "" if interval is None else interval,
            "same_as_dual": sum(one.token_ids == other.token_ids for one, other in pairs),
            "right": sum(one.text.strip() == answer for one, answer in zip(outputs, answers, strict=True)),
            "blocks": sum(-(-(one.completion_tokens + 1) // 4) for one in outputs),
            "nfe": sum(one.nfe for one in outputs),
            "computed_token_layers": sum(one.computed_token_layers for one in outputs),
        }  # fmt: skip
        table.add(row)
        print(*row.values(), flush=True)


if __name__ == "__main__":
    main()
