"""Time and memory of `shoal profile` for a model of a published shape with random weights, on a sample of its units.

    python -m benchmarks.profile_time --shape llada-8b --out benchmarks/results/profile_time.csv

It measures units (a ratio and a group of rows) with the profiler's own `Lab` and `Measurer`: every capture, depth and
refresh interval that `shoal profile` measures by default. A unit's time depends on its ratio and hardly on its tokens,
so one group of each ratio is measured, the middle ratio first, until the time is over. `profile_seconds` of a row is
the mean of the units so far times the units of a whole profile: an extrapolation unless `units` equals `whole_units`.
Random weights never reach a threshold, so each block takes a fixed number of passes (`--steps`, of the whole canvas).
Margins, which come after the choice and take less than a unit for each group, are left out.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.model_shapes import SHAPES, write_shape
from benchmarks.table import Table
from shoal import SamplingParams
from shoal.profile.data import Groups, Row
from shoal.profile.lab import Lab
from shoal.profile.measure import Measurer
from shoal.profile.options import GPU_BATCH, ProfileOptions
from shoal.profile.plan import Unit, make_units
from shoal.provenance import commit, hardware
from shoal.radix_cache.depth_profile import DEFAULT_REUSE_MARGIN
from shoal.runtime.config import EngineConfig
from shoal.runtime.model.registry import load_config
from shoal.runtime.model.settings import layers_of_band

OWN = 24
"""Tokens of a prompt behind what its group shares."""


def make_groups(prompt: int, groups: int, rows: int, vocabulary: int) -> Groups:
    """Groups of random rows that share all but their last tokens."""
    rng = random.Random("profile-time")

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(vocabulary // 2) for _ in range(count))

    shared = [tokens(prompt - OWN) for _ in range(groups)]
    return {
        f"group {number}": [Row((*first, *tokens(OWN)), None, "random") for _ in range(rows + 1)]
        for number, first in enumerate(shared)
    }


def sample(units: list[Unit]) -> list[Unit]:
    """One unit of each ratio: the middle one, the extremes, the rest."""
    by_ratio = {unit.ratio: unit for unit in reversed(units)}
    ratios = sorted(by_ratio)
    order = dict.fromkeys((ratios[len(ratios) // 2], ratios[0], ratios[-1], *ratios))
    return [by_ratio[ratio] for ratio in order]


def main(arguments: list[str] | None = None) -> None:
    """Write a row after every unit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llada-8b")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompt", type=int, default=1536, help="tokens of a row")
    parser.add_argument("--canvas", type=int, default=128)
    parser.add_argument("--steps", type=int, default=32, help="passes for the whole canvas")
    parser.add_argument("--questions", type=int, default=8, help="rows of a group, after the donor")
    parser.add_argument("--batch", type=int, default=GPU_BATCH)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--time-limit", type=float, default=100.0, help="begin no further unit after so many seconds")
    parser.add_argument("--commit", default=None)
    options = parser.parse_args(arguments)
    defaults = ProfileOptions(model=options.shape, data="")
    command = "python -m benchmarks.profile_time " + shlex.join(sys.argv[1:] if arguments is None else arguments)
    table = Table(options.out, {
        "command": command, "commit": options.commit or commit(), "hardware": hardware(), "torch": torch.__version__,
    })  # fmt: skip
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = write_shape(options.shape, Path(name))
        model = load_config(folder)
        band = layers_of_band(None, model.num_layers)
        depths = (*range(band, model.num_layers, band), model.num_layers)
        on_gpu = options.device.startswith("cuda")
        config = EngineConfig(
            model_path=str(folder), device=options.device, load_format="dummy", page_size=defaults.page_size,
            layers_per_band=band, reuse_margin=0, max_running_requests=options.batch, disable_cuda_graph=True,
            kv_cache_tokens=None if on_gpu else (options.batch + 6) * (options.prompt + 2 * options.canvas),
        )  # fmt: skip
        lab = Lab(config, depths)
    loaded = time.monotonic() - began
    sampling = SamplingParams(max_new_tokens=options.canvas, steps=options.steps)
    measurer = Measurer(
        lab, sampling, captures=defaults.captures, depths=depths, intervals=defaults.intervals
    )  # fmt: skip
    units = make_units(
        make_groups(options.prompt, defaults.groups, options.questions, model.vocab_size), defaults.ratios,
        per_ratio=defaults.groups, rows=options.questions, canvas=options.canvas, margin=DEFAULT_REUSE_MARGIN,
        page_size=defaults.page_size, max_tokens=model.max_position_embeddings, seed=0,
    )  # fmt: skip
    measured: list[float] = []
    for unit in sample(units):
        if measured and time.monotonic() - began > options.time_limit:
            break
        start = time.monotonic()
        record = measurer.measure_unit(unit)
        measured.append(time.monotonic() - start)
        peak = torch.cuda.max_memory_reserved() if on_gpu else 0
        row = {
            "shape": options.shape, "dtype": lab.parts.facts.dtype, "layers": model.num_layers,
            "prompt": options.prompt, "canvas": options.canvas, "passes": options.steps, "ratio": unit.ratio,
            "cells": len(record["cells"]),
            "answers": sum(len(cell["rows"]) for cell in record["cells"]), "load_seconds": round(loaded, 1),
            "unit_seconds": round(measured[-1], 2), "units": len(measured), "whole_units": len(units),
            "profile_seconds": round(sum(measured) / len(measured) * len(units)),
            "peak_gib": round(peak / 2**30, 1),
        }  # fmt: skip
        table.add(row)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
