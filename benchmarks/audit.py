"""What audits cost: tokens a second on `shop` with and without them, hits only.

    python benchmarks/audit.py --out benchmarks/results/audit.csv

Engines with different audit rates answer the same questions list by list, in turns, so that a slow spell of the machine
hits all of them. `cpu_seconds` is the process's CPU time (on a shared machine steadier than the wall); `cost` is 1 -
throughput over that of rate 0, by CPU time and by wall time. The profile is `shop`'s own, so `differed` of the audits
that compared `predictions` should be none; divergences are in nats. Decoding: two tokens a forward, as in the demo.
"""

from __future__ import annotations

import argparse
import random
import shlex
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.table import write_table
from shoal import Engine, SamplingParams
from shoal.provenance import commit, hardware
from shoal.shop.task import chat, make_list, make_question

RATES = (0.0, 0.05, 0.2, 1.0)
PARAMS = SamplingParams(max_new_tokens=32, block_length=8, steps=16)


def main() -> None:
    """Measure and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lists", type=int, default=12)
    parser.add_argument("--questions", type=int, default=24, help="on each list, after the first")
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    engines = {rate: Engine("shop", device=options.device, audit_rate=rate) for rate in RATES}
    spent: dict[float, list[float]] = defaultdict(lambda: [0.0, 0.0, 0])
    for number in tqdm(range(options.lists), unit="list"):
        rng = random.Random(f"audit-{options.seed}-{number}")
        prices = make_list(rng, options.items, held_out=True)
        prompts = [chat(prices, [], make_question(rng, prices).text) for _ in range(options.questions + 1)]
        for turn in range(len(RATES)):  # another engine begins each time
            rate = RATES[(turn + number) % len(RATES)]
            engine = engines[rate]
            engine.generate(prompts[0], PARAMS)
            cpu, wall = time.process_time(), time.perf_counter()
            outputs = engine.generate(prompts[1:], PARAMS)
            part = (time.process_time() - cpu, time.perf_counter() - wall, sum(o.canvas_tokens for o in outputs))
            if number:  # the first list warms up
                spent[rate] = [a + b for a, b in zip(spent[rate], part, strict=True)]
    rows = []
    for rate, (cpu, wall, tokens) in sorted(spent.items()):
        stats = engines[rate].core.parts.scheduler.stats()
        base_cpu, base_wall, base_tokens = spent[0.0]
        rows.append(
            {"rate": rate, "hits": stats.cache_hits, "audits": stats.audits, "canvas_tokens": int(tokens),
             "cpu_seconds": round(cpu, 2), "wall_seconds": round(wall, 2),
             "cost_cpu": round(1 - (tokens / cpu) / (base_tokens / base_cpu), 4),
             "cost_wall": round(1 - (tokens / wall) / (base_tokens / base_wall), 4),
             "audited_share": round(stats.audits / max(1, stats.cache_hits), 4),
             "tokens_agreed": f"{stats.audit_tokens_agreed}/{stats.audit_tokens}",
             "predictions": stats.audit_predictions, "differed": stats.audits_differed,
             "mean_divergence": stats.audit_divergence, "worst_divergence": stats.audit_worst_divergence,
             "command": "python " + shlex.join(sys.argv), "commit": commit(), "hardware": hardware(),
             "torch": torch.__version__}
        )  # fmt: skip
    for engine in engines.values():
        engine.shutdown()
    write_table(options.out, rows)


if __name__ == "__main__":
    main()
