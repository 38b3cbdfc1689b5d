"""Look-up questions to `text` through the engine, by cache mode: what each mode's shortcut costs in right answers.

    python -m benchmarks.text_modes --model out/text/model --data out/text/data --out benchmarks/results/text_modes.csv

Six facts are strewn over a piece of a held-out document. The first question about it is asked alone, and its answer is
not counted; the others find its prefix in the cache. Words, names and wording occur nowhere in the training.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shoal import Engine, SamplingParams
from shoal.provenance import commit, hardware
from shoal.runtime.config import CacheMode
from shoal.text.corpus import held_out
from shoal.text.evaluate import FACTS, LOOKUP_NAMES, LOOKUP_WORDS

from .accuracy import wilson

CANVAS = 16
FIELDS = ("mode", "depth", "questions", "accuracy", "low_95", "high_95", "same_text", "cached_share", "nfe", "command",
          "commit", "hardware", "torch")  # fmt: skip
SIZES: dict[str, Any] = {"kv_cache_tokens": 1 << 13, "max_running_requests": 4}
RUNS: tuple[tuple[CacheMode, int | None], ...] = (
    ("none", None), ("prefix", None), ("dual", None), ("bicache", 4), ("bicache", 8), ("bicache", 12),
    ("bicache", 30), ("lm", None),
)  # fmt: skip
"""Cache mode and depth; the others' engine is that of the first depth."""


def questions(text: str, number: int, count: int) -> list[tuple[list[dict[str, str]], str]]:
    """Conversations about one document with facts in it, and the word that answers each."""
    random = np.random.RandomState(7 * number + 1)
    names, words = random.permutation(LOOKUP_NAMES)[:FACTS], random.permutation(LOOKUP_WORDS)[:FACTS]
    sentences = text.split(". ")
    places = sorted(random.randint(0, len(sentences), FACTS).tolist(), reverse=True)
    for place, name, word in zip(places, names, words, strict=True):
        sentences.insert(place, f"The password of {name} is {word}")
    document = ". ".join(sentences)
    return [
        ([{"role": "user", "content": f"{document}\n\nWhat is the password of {names[asked]}?"}], str(words[asked]))
        for asked in random.permutation(FACTS)[:count]
    ]


def main(arguments: list[str] | None = None) -> None:
    """Write the table, again after every document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("out/text/model"), help="folder of text")
    parser.add_argument("--data", type=Path, default=Path("out/text/data"), help="folder that holds held.npz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--questions", type=int, default=4, help="about each document, the first of them not counted")
    parser.add_argument("--tokens", type=int, default=360, help="of each document")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--time-limit", type=float, help="begin no further document after so many seconds")
    options = parser.parse_args(arguments)
    if not options.model.is_dir():
        print(f"no {options.model}: docs/text.md says how to make it")
        return
    depths = [depth for _, depth in RUNS if depth is not None]
    engines = {depth: Engine(str(options.model), depth=depth, device=options.device, **SIZES) for depth in depths}
    documents, _ = held_out(options.data / "held.npz", 1741, 256)
    params = SamplingParams(max_new_tokens=CANVAS)
    found: dict[tuple[CacheMode, int | None], list[dict[str, Any]]] = {run: [] for run in RUNS}
    begin = time.monotonic()
    for number in range(options.documents):
        if options.time_limit and time.monotonic() - begin > options.time_limit:
            break
        text = engines[depths[0]].tokenizer.decode(documents[number, : options.tokens].tolist())
        asked = questions(text, number, options.questions)
        for mode, depth in RUNS:
            engine = engines[depth or depths[0]]
            for place, (messages, word) in enumerate(asked):
                output = engine.generate(messages, params, cache_mode=mode)
                if place:
                    found[mode, depth].append({
                        "right": word in output.text, "text": output.text, "nfe": output.nfe,
                        "ratio": output.cached_tokens / (output.prompt_tokens + CANVAS),
                    })  # fmt: skip
            engine.flush_cache()
        command = "python -m benchmarks.text_modes " + " ".join(sys.argv[1:] if arguments is None else arguments)
        write(options.out, found, command)
    for engine in engines.values():
        engine.shutdown()


def write(file: Path, found: dict[tuple[CacheMode, int | None], list[dict[str, Any]]], command: str) -> None:
    """One row a run."""
    reference = found[RUNS[0]]
    with file.open("w", newline="") as opened:
        table = csv.writer(opened)
        table.writerow(FIELDS)
        for (mode, depth), answers in found.items():
            count, right = len(answers), sum(answer["right"] for answer in answers)
            same = sum(a["text"] == b["text"] for a, b in zip(answers, reference, strict=True)) / count
            means = [float(np.mean([answer[name] for answer in answers])) for name in ("ratio", "nfe")]
            numbers = [round(v, 4) for v in (right / count, *wilson(right, count), same, *means)]
            table.writerow(
                [
                    mode,
                    "" if depth is None else depth,
                    count,
                    *numbers,
                    command,
                    commit(),
                    hardware(),
                    torch.__version__,
                ]
            )


if __name__ == "__main__":
    main()
