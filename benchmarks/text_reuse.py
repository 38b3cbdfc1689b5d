"""What `text` loses by reuse of a prefix: by task, prefix ratio, depth and capture, on held-out documents.

python -m benchmarks.text_reuse --base out/text/base --weights out/text/full.safetensors --data out/text/data \
    --out benchmarks/results/text_reuse.csv

One forward a question, all answers masked: the loss against mode none before any token is committed. `--noise` measures
what bfloat16 changes in mode none against float32; such rows have the capture `noise` and depth 0.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from shoal.provenance import commit, hardware
from shoal.text import delta
from shoal.text.asks import Asker, Documents
from shoal.text.corpus import END, held_out, label_of
from shoal.text.evaluate import lookup_rows
from shoal.text.network import MASK, Network
from shoal.text.reuse import Capture, capture, resumed

DEPTHS = (1, 2, 4, 6, 8, 12, 16, 20, 24, 30)
TOTAL = 512
LEAST_ROWS = 64
FIELDS = (
    "task", "ratio", "capture", "depth", "dtype", "rows", "nll_none", "dnll", "dnll_ci95",
    "accuracy_none", "accuracy", "accuracy_diff_ci95", "agree", "command", "commit", "hardware", "torch",
)  # fmt: skip


@dataclass
class Task:
    """Rows [n, TOTAL] with masks, the true tokens, which masked positions count, and what donors have behind a cut."""

    tokens: Tensor
    truth: Tensor
    counted: Tensor
    donors: Tensor


def continuation(documents: np.ndarray, ratio: float) -> Task:
    """32 masked tokens of running text, eight tokens behind the prefix at every ratio; what follows is given."""
    truth = torch.from_numpy(documents[:, :TOTAL])
    begin = min(round(ratio * TOTAL) + 8, TOTAL - 32)
    counted = torch.zeros(truth.shape, dtype=torch.bool)
    counted[:, begin : begin + 32] = True
    tokens = torch.where(counted, MASK, truth)
    return Task(tokens, truth, counted, tokens.roll(len(tokens) // 2, 0))


def look_up(documents: np.ndarray, tokenizer: Tokenizer, ratio: float) -> Task:
    """Six facts strewn over the prefix, one asked for right at the end; the donor asks for another."""
    rows = lookup_rows(documents, tokenizer, TOTAL, ratio)
    counted = rows["tokens"] == MASK
    truth = torch.where(counted, rows["answers"][:, None], rows["tokens"])
    return Task(rows["tokens"], truth, counted, rows["donors"])


def asked(asker: Asker, kind: str, count: int, seed: int = 11) -> Task:
    """Rows of `asks.py` over held-out documents, the last answer masked and nothing else; donors end otherwise."""
    random = np.random.default_rng(seed)
    tokens, truth, counted = (torch.full((count, TOTAL), value) for value in (END, END, 0))
    for i in range(count):
        draft = asker.kinds[kind](random, TOTAL)
        surplus = max(0, len(draft.tokens) - TOTAL)
        ids = draft.tokens[surplus:]
        begin, end = (place - surplus for place in draft.answers[-1])
        truth[i, : len(ids)] = torch.tensor(ids)
        tokens[i] = truth[i]
        tokens[i, begin:end] = MASK
        tokens[i, end:] = torch.where(truth[i, end:] == END, MASK, truth[i, end:])
        counted[i, begin:end] = 1
    return Task(tokens, truth, counted.bool(), tokens.roll(count // 2, 0))


class Scores:
    """NLL and correctness of each row's counted positions."""

    def __init__(self, network: Network, task: Task, hidden: Tensor, prefix: int):
        rows, places = task.counted.nonzero(as_tuple=True)
        logits = network.logits(hidden[rows, places - 1 - prefix]).float()
        logits[:, MASK] = -math.inf
        targets, best = task.truth[rows, places], logits.argmax(1)
        count = task.counted.sum(1)

        def by_row(values: Tensor) -> Tensor:
            return torch.zeros(len(count), device=values.device).index_add_(0, rows, values.float()) / count

        self.nll = by_row(torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
        self.right = (by_row(best == targets) == 1).float()
        self.best = best
        self._by_row = by_row

    def agreement(self, other: Scores) -> Tensor:
        """Share of positions [rows] whose likeliest token is the same."""
        return self._by_row(self.best == other.best)


def interval(values: Tensor) -> float:
    """Half a 95 % interval of the mean."""
    return (1.96 * values.std() / len(values) ** 0.5).item()


@torch.inference_mode()
def measure(
    network: Network, task: Task, ratio: float, kinds: list[str], depths: list[int], least: int
) -> list[dict[str, object]]:
    """A record for each capture and depth, depth 0 being mode none; no record for fewer than `least` rows."""
    device, prefix = network.mask.device, round(ratio * TOTAL)
    behind_prefix = task.counted.int().argmax(1) > prefix  # rows that are asked for something there
    parts = (task.tokens, task.truth, task.counted, task.donors)
    task = Task(*(part[behind_prefix].to(device) for part in parts))
    if len(task.tokens) < least:
        return []
    hidden, _ = capture(network, task.tokens, prefix)
    none = Scores(network, task, hidden[:, prefix:], prefix)
    shared = task.tokens[:, :prefix]
    # A donor's answers are masks in its first forward; `final` has them filled in by the model.
    donor = torch.cat((shared, task.donors[:, prefix:]), 1)
    records: list[dict[str, object]] = []
    for kind in kinds:
        tokens = shared if kind == "alone" else donor
        if kind == "final":
            tokens = filled(network, tokens)
        kept: Capture = capture(network, tokens, prefix)[1]
        for depth, behind in resumed(network, task.tokens, prefix, kept, depths):
            found = Scores(network, task, behind, prefix)
            change, gained = found.nll - none.nll, found.right - none.right
            records.append({
                "ratio": ratio, "capture": kind, "depth": depth, "rows": len(change),
                "nll_none": none.nll.mean().item(), "dnll": change.mean().item(), "dnll_ci95": interval(change),
                "accuracy_none": none.right.mean().item(), "accuracy": found.right.mean().item(),
                "accuracy_diff_ci95": interval(gained), "agree": found.agreement(none).mean().item(),
            })  # fmt: skip
    return records


@torch.inference_mode()
def noise(network: Network, task: Task, ratio: float) -> list[dict[str, object]]:
    """One record: mode none in bfloat16 against mode none in float32."""
    device = network.mask.device
    task = Task(*(part.to(device) for part in (task.tokens, task.truth, task.counted, task.donors)))
    exact, found = (
        Scores(network.to(dtype), task, network(task.tokens), 0) for dtype in (torch.float32, torch.bfloat16)
    )
    change = found.nll - exact.nll
    return [{
        "ratio": ratio, "capture": "noise", "depth": 0, "rows": len(change), "nll_none": exact.nll.mean().item(),
        "dnll": change.mean().item(), "dnll_ci95": interval(change), "accuracy_none": exact.right.mean().item(),
        "accuracy": found.right.mean().item(), "accuracy_diff_ci95": interval(found.right - exact.right),
        "agree": found.agreement(exact).mean().item(),
    }]  # fmt: skip


def filled(network: Network, tokens: Tensor) -> Tensor:
    """Tokens with every mask replaced by the likeliest token of one forward."""
    hidden, _ = capture(network, tokens, 1)
    rows, places = (tokens == MASK).nonzero(as_tuple=True)
    logits = network.logits(hidden[rows, places - 1])
    logits[:, MASK] = -math.inf
    out = tokens.clone()
    out[rows, places] = logits.argmax(1)
    return out


class Lab:
    """A run of a benchmark on `text`: the network, held-out rows by task, and the table of results.

    Args:
        module: the benchmark's name, for the column `command`.
        options: those of `make_parser`.
        arguments: the command line's.
    """

    def __init__(self, module: str, options: argparse.Namespace, arguments: Sequence[str]):
        self.options = options
        self.network = Network.load_base(options.base)
        delta.apply(options.weights, self.network)
        self._began = time.monotonic()
        self._origin = {
            "command": f"python -m benchmarks.{module} " + shlex.join(arguments), "commit": options.commit or commit(),
            "hardware": hardware(), "torch": torch.__version__,
        }  # fmt: skip
        self._tokenizer = Tokenizer.from_file(str(options.base / "tokenizer.json"))
        self._documents, names = held_out(options.data / "held.npz", 1741, options.rows)
        labels = [label_of(name) for name in names]
        self._asker = Asker(Documents(self._documents.astype(np.uint16), labels, self._tokenizer))

    def tasks(self) -> Iterator[tuple[str, float, Task]]:
        """Name, prefix ratio and rows of each task of the options, until their time limit."""
        for name in self.options.tasks:
            for ratio in self.options.ratios:
                if self.options.time_limit and time.monotonic() - self._began > self.options.time_limit:
                    return
                if name == "look-up":
                    yield name, ratio, look_up(self._documents, self._tokenizer, ratio)
                elif name == "continuation":
                    yield name, ratio, continuation(self._documents, ratio)
                else:
                    yield name, ratio, asked(self._asker, name, len(self._documents))

    def write(
        self,
        table: csv.DictWriter[str],
        file: TextIO,
        names: Mapping[str, object],
        records: Sequence[dict[str, object]],
    ) -> None:
        """Rows of records measured for one task, on disk at once. `names`: columns that all of them share."""
        for record in records:
            numbers = {k: round(v, 5) if isinstance(v, float) else v for k, v in record.items()}
            table.writerow({**names, **numbers, **self._origin})
        file.flush()
        print(json.dumps({**names, "seconds": round(time.monotonic() - self._began, 1)}))


def make_parser(description: str | None, ratios: Sequence[float], tasks: Sequence[str]) -> argparse.ArgumentParser:
    """A parser of the options that `Lab` reads."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path("out/text/base"))
    parser.add_argument("--weights", type=Path, default=Path("out/text/full.safetensors"))
    parser.add_argument("--data", type=Path, default=Path("out/text/data"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--ratios", type=float, nargs="+", default=ratios)
    parser.add_argument("--tasks", nargs="+", default=tasks)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--time-limit", type=float, help="begin no further task and ratio after so many seconds")
    parser.add_argument("--commit", default=None)
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Write the table; rows appear as they are measured."""
    parser = make_parser(__doc__, [0.3, 0.5, 0.7, 0.9], ["look-up", "continuation", "quote", "gap", "classify"])
    parser.add_argument("--depths", type=int, nargs="+", default=list(DEPTHS))
    parser.add_argument("--captures", nargs="+", default=["first", "alone", "final"])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"])
    parser.add_argument("--least-rows", type=int, default=LEAST_ROWS, help="a cell with fewer is left out")
    parser.add_argument("--noise", action="store_true")
    words = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(words)
    if not options.weights.exists():
        print(f"no {options.weights}: docs/text.md says how to make it")
        return
    lab = Lab("text_reuse", options, words)
    with options.out.open("w", newline="") as file:
        table = csv.DictWriter(file, FIELDS)
        table.writeheader()
        for dtype in options.dtypes:
            network = lab.network.to(options.device, getattr(torch, dtype))
            for name, ratio, task in lab.tasks():
                if options.noise:
                    records = noise(network, task, ratio)
                else:
                    records = measure(network, task, ratio, options.captures, options.depths, options.least_rows)
                lab.write(table, file, {"task": name, "dtype": dtype, "ratio": ratio}, records)


if __name__ == "__main__":
    main()
