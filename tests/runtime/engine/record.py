"""Answers of 200 mixed requests, saved by one tree and compared by another: for changes that must change no answer.

    python -m tests.runtime.engine.record --save answers.json          # before
    python -m tests.runtime.engine.record --compare answers.json       # after; exits with 1 and says what differs

Tiny random models of both layouts in fp32 on the CPU, every cache mode, batches and single requests, decoding by quota,
threshold and factor, draws, templates, stop strings, scores; one engine each, so that hits come from earlier requests.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from shoal import Engine, RequestOutput, SamplingParams

from ..tiny import CONFIGS, make_engine, tokens, write_model

MODES = ("none", "prefix", "dual", "lm", "bicache")
BATCHES = 25
SIZES = (1, 2, 5)


def facts(output: RequestOutput) -> list[Any]:
    """What must not change of an output."""
    return [
        output.text, list(output.token_ids), output.finish_reason, output.matched_stop, output.prompt_tokens,
        output.cached_tokens, output.depth, output.nfe, output.canvas_tokens, output.computed_token_layers,
        output.prefix_refreshes, [dataclasses.astuple(hole) for hole in output.holes], list(output.scores),
    ]  # fmt: skip


def sampling(draw: random.Random) -> SamplingParams:
    """Decoding parameters of any kind."""
    rule: dict[str, Any] = draw.choice([{"threshold": 0.6}, {"steps": 8}, {"factor": 0.8}, {}])
    return SamplingParams(
        max_new_tokens=draw.choice([8, 16, 32]), block_length=8, seed=draw.randrange(5),
        temperature=draw.choice([0.0, 0.0, 0.7]), strategy=draw.choice(["low_confidence", "margin", "entropy"]),
        ignore_eos=draw.random() < 0.5, stop=draw.choice([(), (), ("e",), ("ab", "q")]), **rule,
    )  # fmt: skip


def answers(engine: Engine, seed: int) -> list[list[Any]]:
    """Outputs of many batches on one engine."""
    draw = random.Random(seed)
    families = [tokens(40, 100 + family) for family in range(3)]
    out: list[list[Any]] = []
    for _ in range(BATCHES):
        prompts = [
            draw.choice(families)[: draw.choice([16, 24, 40])] + tokens(draw.choice([0, 2, 9]) + 1, draw.randrange(9))
            for _ in range(draw.choice(SIZES))
        ]
        mode: Any = draw.choice(MODES)
        params: list[SamplingParams] = []
        canvas = None
        if draw.random() < 0.2:
            canvas = [[7, -1, -1, -1, 9, -1, -1, 5]] * len(prompts)
            params = [SamplingParams(threshold=0.6, seed=1)] * len(prompts)
        else:
            params = [sampling(draw) for _ in prompts]
        out += [facts(o) for o in engine.generate(prompts, params, cache_mode=mode, canvas=canvas)]
        if draw.random() < 0.2:
            scored = engine.score(prompts[0], [[5, 6], [7]], cache_mode=mode)
            out.append([choice.token_scores for choice in scored.choices])
    return out


def record() -> dict[str, list[list[Any]]]:
    """Answers of both layouts, with and without prefix refreshes."""
    recorded = {}
    for name in CONFIGS:
        for interval in (0, 3):
            with tempfile.TemporaryDirectory() as folder:
                path = write_model(Path(folder), name)
                with make_engine(path, refresh_interval=interval) as engine:
                    recorded[f"{name}-{interval}"] = answers(engine, interval)
    return recorded


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--save", type=Path)
    parser.add_argument("--compare", type=Path)
    options = parser.parse_args()
    recorded = json.loads(json.dumps(record()))
    total = sum(map(len, recorded.values()))
    if options.save is not None:
        options.save.write_text(json.dumps(recorded), encoding="utf-8")
        print(f"{total} answers saved")
    if options.compare is None:
        return 0
    before = json.loads(options.compare.read_text(encoding="utf-8"))
    wrong = [
        (name, index) for name, rows in recorded.items() for index, row in enumerate(rows) if before[name][index] != row
    ]
    print(f"{total} answers, {len(wrong)} differ: {wrong[:10]}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
