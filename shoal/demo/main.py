"""The demo from its options to its files."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from .. import provenance
from ..runtime.config import CACHE_MODES
from ..runtime.errors import ConfigError
from . import environment
from .plot import SUFFIXES, plot_depths
from .progress import progress
from .report import depth_figures, mode_figures, print_report, print_tree
from .runner import MODEL, SAMPLING, check_modes, run_depths, run_modes
from .tally import Tally
from .workload import Workload, make_workload

DEPTHS = (0, 4, 8, 12, 16)
_TREE_FIGURES = ("num_nodes", "num_tokens", "kv_pages", "boundary_pages", "kv_bytes", "boundary_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What `shoal demo` runs. Raises ConfigError, naming the field, for values that can't be run.

    Attributes:
        list_sizes: items of each price list.
        questions: about each list.
        sweep_questions: of them, about the list in the middle, for the run depth by depth; 0: none.
        modes: cache modes.
        seed: of lists and questions.
        plot, json: files to write, None: not wanted; their folders must exist.
        command: the command line, for the JSON file.
    """

    list_sizes: tuple[int, ...] = (44, 56, 68)
    questions: int = 32
    sweep_questions: int = 24
    modes: tuple[str, ...] = CACHE_MODES
    seed: int = 0
    plot: Path | None = None
    json: Path | None = None
    command: str = "shoal demo"

    def __post_init__(self) -> None:
        check_modes(self.modes)
        for name, path in (("json", self.json), ("plot", self.plot)):
            if path is not None and not _writable(path):
                limit = "a file that can be written, in a folder that exists"
                message = f"{name} is {str(path)!r}; it must be {limit}"
                raise ConfigError(message, field=name, value=str(path), limit=limit)
        if self.plot is not None and self.plot.suffix not in SUFFIXES:
            limit = ", ".join(SUFFIXES)
            message = f"plot is {str(self.plot)!r}; its name must end in one of {limit}"
            raise ConfigError(message, field="plot", value=str(self.plot), limit=limit)

    @property
    def workload(self) -> Workload:
        """Lists and questions."""
        return make_workload(self.seed, self.list_sizes, self.questions)


QUICK: dict[str, Any] = {"list_sizes": (44, 60), "questions": 10, "sweep_questions": 10}
"""Options of `--quick`: under a minute on 2 cores."""


def run_demo(options: DemoOptions, console: Console) -> dict[str, Any]:
    """Run the demo, print its report, write its files, and return what the JSON file holds."""
    logging.getLogger("shoal.runtime.engine.build").setLevel(logging.ERROR)  # the report names the profile itself
    begin = time.perf_counter()
    workload = options.workload
    sweep = workload.sample(options.sweep_questions) if options.sweep_questions else None
    _introduce(console, options, workload)
    total = workload.num_questions * len(options.modes) + (sweep.num_questions * len(DEPTHS) if sweep else 0)
    with progress(console, total) as advance:
        runs = run_modes(workload, options.modes, advance)
        tallies = {}
        if sweep is not None:
            tallies = run_depths(sweep, DEPTHS, lambda depth, *results: advance(f"depth {depth}", *results))
    report: dict[str, Any] = {
        "command": options.command,
        "commit": provenance.commit(),
        "model": MODEL,
        "workload": workload.describe(),
        "decoding": {k: v for k, v in asdict(SAMPLING).items() if k in ("max_new_tokens", "block_length", "steps")},
        "depth_profile": runs.profile_source,
        "modes": mode_figures(runs.tallies),
        "depths": depth_figures(tallies),
        "depths_workload": sweep.describe() if sweep else None,
        "tree": {key: runs.snapshot[key] for key in _TREE_FIGURES},
        "hardware": environment.hardware(),
        "versions": environment.versions(),
    }
    print_report(console, report)
    if "bicache" in options.modes:
        print_tree(console, runs.snapshot, runs.decode)
    if sweep is not None and options.plot is not None:
        caption = (f"bundled model shop (16 layers), list of {sweep.describe()['list_sizes'][0]} items, "
                   f"{sweep.num_questions} questions; {report['hardware']['cores']} CPU cores")  # fmt: skip
        plot_depths(report["depths"], options.plot, caption=caption, safe_depth=_depth_used(runs.tallies))
        console.print(f"plot: {options.plot}", highlight=False)
    report["seconds"] = time.perf_counter() - begin
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
        console.print(f"figures: {options.json}", highlight=False)
    console.print(f"{report['seconds']:.0f} s in all", highlight=False)
    return report


def _writable(path: Path) -> bool:
    folder = path.absolute().parent
    if path.exists():
        return path.is_file() and os.access(path, os.W_OK)
    return folder.is_dir() and os.access(folder, os.W_OK)


def _introduce(console: Console, options: DemoOptions, workload: Workload) -> None:
    what = workload.describe()
    sizes, mix = ", ".join(map(str, what["list_sizes"])), ", ".join(f"{n} {kind}" for kind, n in what["kinds"].items())
    console.print(
        f"Model {MODEL}; held-out price lists of {sizes} items, {what['questions_per_list']} questions about each "
        f"({mix}; {what['json']} as JSON, {what['follow_ups']} as a second turn; seed {options.seed}). "
        f"Decoding: canvas {SAMPLING.max_new_tokens}, blocks of {SAMPLING.block_length}, {SAMPLING.steps} steps: two "
        "tokens a forward pass, until EOS. The questions about a list are sent as one batch, second turns as another. "
        "Every mode has an engine of its own with a cold cache; all answer about a list before any gets the next, so "
        "that a slow spell of the machine hits all alike. Seconds are summed for each mode.\n",
        highlight=False,
    )


def _depth_used(tallies: Mapping[str, Tally]) -> int | None:
    """The deepest reuse that mode bicache chose; None when it did not run or never hit."""
    return (
        max((output.depth for output in tallies["bicache"].outputs), default=0) or None
        if "bicache" in tallies
        else None
    )
