"""The radix tree beside SGLang 0.5.2's `RadixCache`, in one process on the same prompts.

    pip install --no-deps --target DIR sglang==0.5.2
    python benchmarks/radix.py --sglang DIR --out benchmarks/results/radix.csv

It measures a scheduler's calls for a request. Arrival: match. After the first forward: insert
(here: capture), then match again on its own prompt (as SGLang's `cache_unfinished_req` and our scheduler do). Every
workload is served twice, the second time in another order: the first pass mostly stores, the second mostly finds.
Then everything is evicted, one page at a time. Each side gets its native types: lists of ints and int64
tensors of slots there, int32 arrays and page tables here. `tokens_to_array` is the cost of converting a list here; the
other rows don't include it.

Cautions. SGLang's module is loaded by path with stand-ins for three modules that it imports for types and events
only (`kv_events`, `allocator`, `memory_pool`): the class runs unchanged, without the CUDA engine. Its allocator is a
stub whose `free` does nothing, so its evictions cost less here than in a server; ours counts references in real
allocators, and stores page ids of several bands and boundary depths. SGLang runs at its default page size of 1 and
at ours. Times are wall-clock per call with the garbage collector off, the best of `--repeats` runs of the whole
workload, in which the sides take turns (the machine is shared).

`shoal-fragmented` is our side with the free pages in random order: operations on runs of consecutive page ids are
faster, and a pool that has served for long has fewer of them.

`evict_scaling` rows: our tree alone, one eviction after another in trees of 1k to 64k leaves of one page, time per
page freed. `memory` rows: bytes per node beside its arrays (tokens and page ids), by `tracemalloc`.
"""

import argparse
import csv
import gc
import importlib.util
import os
import platform
import subprocess
import sys
import time
import tracemalloc
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from shoal.radix_cache.page_allocator import PageAllocator
from shoal.radix_cache.tree import RadixTree, TreeConfig

VOCABULARY = 126_000
BOUNDARIES = (4, 8, 12, 16)
DEPTH = 16


# Workloads: lists of int32 arrays


def few_long_system_prompts(rng: np.random.Generator, scale: float) -> list[np.ndarray]:
    systems = [rng.integers(0, VOCABULARY, 2048) for _ in range(8)]
    return [
        np.concatenate([systems[rng.integers(8)], rng.integers(0, VOCABULARY, rng.integers(64, 512))]).astype(np.int32)
        for _ in range(int(4096 * scale))
    ]


def diverse_prompts(rng: np.random.Generator, scale: float) -> list[np.ndarray]:
    return [rng.integers(0, VOCABULARY, 4096).astype(np.int32) for _ in range(int(4096 * scale))]


def multi_turn(rng: np.random.Generator, scale: float) -> list[np.ndarray]:
    talks = [rng.integers(0, VOCABULARY, 16 * 160).astype(np.int32) for _ in range(int(256 * scale))]
    prompts = []
    for turn in range(1, 17):
        for talk in talks:
            prompts.append(talk[: turn * 160 - int(rng.integers(0, 20))])
    return prompts


def zipf_few_shot(rng: np.random.Generator, scale: float) -> list[np.ndarray]:
    blocks = [rng.integers(0, VOCABULARY, 192) for _ in range(256)]
    prompts = []
    for _ in range(int(4096 * scale)):
        shots = [blocks[min(int(rng.zipf(1.3)), 256) - 1] for _ in range(5)]
        prompts.append(np.concatenate([*shots, rng.integers(0, VOCABULARY, 64)]).astype(np.int32))
    return prompts


WORKLOADS: dict[str, Callable[[np.random.Generator, float], list[np.ndarray]]] = {
    "few_long_system_prompts": few_long_system_prompts,
    "diverse_4096x4k": diverse_prompts,
    "multi_turn": multi_turn,
    "zipf_few_shot": zipf_few_shot,
}


# The two sides: each times its own calls and returns {operation: [seconds, calls]}


class Clock:
    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = {}

    def call(self, operation: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        begin = time.perf_counter()
        result = function(*args, **options)
        spent = self.spent.setdefault(operation, [0.0, 0])
        spent[0] += time.perf_counter() - begin
        spent[1] += 1
        return result


def run_shoal(
    prompts: list[np.ndarray], order: np.ndarray, page_size: int, *, fragmented: bool = False
) -> tuple[dict[str, list[float]], int]:
    config = TreeConfig(page_size=page_size, num_layers=32, layers_per_band=4, boundary_depths=BOUNDARIES)
    bands = config.bands(DEPTH)
    total = sum(len(prompt) // page_size for prompt in prompts)
    kv = PageAllocator(bands * total + bands * 1024)
    boundary = PageAllocator(len(BOUNDARIES) * total + len(BOUNDARIES) * 1024)
    if fragmented:
        for pool in (kv, boundary):
            pool.release(np.random.default_rng(1).permutation(pool.alloc(pool.num_pages)))
    tree = RadixTree(config, kv, boundary)
    clock = Clock()
    for serving in ("first", "second"):
        for index in range(len(prompts)) if serving == "first" else order:
            prompt = prompts[index]
            clock.call(f"match_{serving}", tree.match, prompt, total_tokens=len(prompt) + 256)
            pages = len(prompt) // page_size
            own = kv.alloc(bands * pages).reshape(bands, pages)
            states = {depth: boundary.alloc(pages) for depth in BOUNDARIES}
            clock.call(
                f"insert_{serving}",
                tree.capture,
                prompt,
                depth=DEPTH,
                kv_pages=own,
                boundary_pages=states,
                ratio=0.9,
            )
            match = clock.call(f"rematch_{serving}", tree.match, prompt, total_tokens=len(prompt) + 256)
            clock.call(f"lock_{serving}", tree.lock, match)
            clock.call(f"unlock_{serving}", tree.unlock, match)
            kv.release(own)
            for held in states.values():
                boundary.release(held)
    nodes = tree.num_nodes
    while tree.num_nodes:
        clock.call("evict", tree.evict, 1)
    assert kv.num_free == kv.num_pages
    assert boundary.num_free == boundary.num_pages
    return clock.spent, nodes


def load_sglang(folder: Path) -> type:
    """SGLang's RadixCache, unchanged, from its wheel's files."""
    base = folder / "sglang" / "srt" / "mem_cache"

    def stand_in(name: str, **content: Any) -> None:
        module = types.ModuleType(name)
        module.__dict__.update(content, __path__=[])
        sys.modules[name] = module

    for name in ("sglang", "sglang.srt", "sglang.srt.mem_cache", "sglang.srt.disaggregation"):
        stand_in(name)
    stand_in("sglang.srt.disaggregation.kv_events", AllBlocksCleared=object, BlockRemoved=object, BlockStored=object)
    stand_in("sglang.srt.mem_cache.allocator", BaseTokenToKVPoolAllocator=object)
    stand_in("sglang.srt.mem_cache.memory_pool", ReqToTokenPool=object)
    for file in ("base_prefix_cache", "radix_cache"):
        name = f"sglang.srt.mem_cache.{file}"
        spec = importlib.util.spec_from_file_location(name, base / f"{file}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules["sglang.srt.mem_cache.radix_cache"].RadixCache


class FreeNothing:
    """The allocator's part in an eviction, at no cost."""

    device = "cpu"

    def free(self, slots: Any) -> None:
        """Forget them."""


def run_sglang(
    radix_cache: type, prompts: list[np.ndarray], order: np.ndarray, page_size: int
) -> tuple[dict[str, list[float]], int]:
    import torch

    lists = [prompt.tolist() for prompt in prompts]
    slots = [torch.arange(len(prompt) // page_size * page_size) for prompt in prompts]
    tree = radix_cache(None, FreeNothing(), page_size)
    clock = Clock()
    for serving in ("first", "second"):
        for index in range(len(prompts)) if serving == "first" else order:
            prompt, value = lists[index], slots[index]
            clock.call(f"match_{serving}", tree.match_prefix, prompt)
            aligned = prompt[: len(value)]
            clock.call(f"insert_{serving}", tree.insert, aligned, value)
            match = clock.call(f"rematch_{serving}", tree.match_prefix, prompt)
            clock.call(f"lock_{serving}", tree.inc_lock_ref, match.last_device_node)
            clock.call(f"unlock_{serving}", tree.dec_lock_ref, match.last_device_node)
    nodes, stack = 0, [tree.root_node]
    while stack:
        nodes += 1
        stack.extend(stack.pop().children.values())
    # Every call collects and heapifies all leaves: a sample of evictions from the full tree says enough.
    for _ in range(200):
        clock.call("evict", tree.evict, 1)
    return clock.spent, nodes - 1


# Our tree alone


def evict_scaling(leaves: int, repeats: int) -> float:
    """Seconds per page freed over 1,000 evictions from a tree of `leaves` one-page leaves; best of `repeats`."""
    config = TreeConfig(page_size=16, num_layers=4, layers_per_band=4)
    tokens = np.zeros((leaves, 16), dtype=np.int32)
    tokens[:, 0] = np.random.default_rng(0).permutation(leaves)
    best = float("inf")
    for _ in range(repeats):
        kv = PageAllocator(leaves)
        tree = RadixTree(config, kv)
        for row in tokens:
            page = kv.alloc(1)
            tree.capture(row, depth=4, kv_pages=page[None], ratio=0.5)
            kv.release(page)
        begin = time.perf_counter()
        for _ in range(1000):
            tree.evict(1)
        best = min(best, (time.perf_counter() - begin) / 1000)
        tree.check_invariants()
    return best


def node_overhead(nodes: int) -> float:
    """Bytes per one-page leaf beside its tokens and page ids."""
    config = TreeConfig(page_size=16, num_layers=32, layers_per_band=4, boundary_depths=BOUNDARIES)
    kv, boundary = PageAllocator(4 * nodes), PageAllocator(4 * nodes)
    tree = RadixTree(config, kv, boundary)
    prompts = [np.full(16, index, dtype=np.int32) for index in range(nodes)]
    tables = [(kv.alloc(4).reshape(4, 1), {at: boundary.alloc(1) for at in BOUNDARIES}) for _ in range(nodes)]
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for prompt, (pages, states) in zip(prompts, tables, strict=True):
        tree.capture(prompt, depth=DEPTH, kv_pages=pages, boundary_pages=states, ratio=0.5)
    gc.collect()
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    arrays = 16 * 4 + 4 * 4 + 4 * 4
    return used / nodes - arrays


def conversion(prompts: list[np.ndarray]) -> list[float]:
    lists = [prompt.tolist() for prompt in prompts[:256]]
    clock = Clock()
    for each in lists:
        clock.call("tokens_to_array", np.array, each, dtype=np.int32)
    return clock.spent["tokens_to_array"]


def commit() -> str:
    here = Path(__file__).parent
    name = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True).stdout
    changed = subprocess.run(
        ["git", "status", "--porcelain", "../radix_cache", __file__], cwd=here, capture_output=True, text=True
    ).stdout
    return name.strip() + ("+changes" if changed.strip() else "")


def hardware() -> str:
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = next(
            (line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), model
        )
    return f"{model}, {os.cpu_count()} cores"


def summarise(runs: list[dict[str, list[float]]]) -> dict[str, tuple[float, int]]:
    """Microseconds per call of the best run, with the calls of one run."""
    result = {}
    for operation in runs[0]:
        times = [run[operation][0] / run[operation][1] * 1e6 for run in runs]
        result[operation] = (min(times), int(runs[0][operation][1]))
    pairs = [(name, result[name]) for name in result if name.startswith(("match_", "rematch_", "insert_"))]
    calls = sum(count for _, (_, count) in pairs)
    result["match+insert"] = (sum(micros * count for _, (micros, count) in pairs) / calls, calls)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sglang", type=Path, help="folder with sglang 0.5.2; without it our side runs alone")
    parser.add_argument("--out", type=Path, help="CSV to write")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the workloads' prompts")
    parser.add_argument("--page-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workload", choices=sorted(WORKLOADS), action="append")
    options = parser.parse_args()
    radix_cache = load_sglang(options.sglang) if options.sglang else None
    rows: list[dict[str, Any]] = []

    def add(workload: str, system: str, page_size: int, operation: str, value: float, unit: str, calls: int) -> None:
        rows.append(
            {
                "workload": workload,
                "system": system,
                "page_size": page_size,
                "operation": operation,
                "value": round(value, 2),
                "unit": unit,
                "calls": calls,
            }
        )
        print(f"{workload:24} {system:16} page {page_size:3} {operation:16} {value:10.2f} {unit}", flush=True)

    gc.disable()
    for workload in options.workload or WORKLOADS:
        rng = np.random.default_rng(7)
        prompts = WORKLOADS[workload](rng, options.scale)
        order = rng.permutation(len(prompts))
        contenders: list[tuple[str, int, Callable[..., tuple[dict[str, list[float]], int]]]] = [
            ("shoal", options.page_size, run_shoal),
            ("shoal-fragmented", options.page_size, partial(run_shoal, fragmented=True)),
        ]
        if radix_cache is not None:
            sglang = partial(run_sglang, radix_cache)
            contenders += [("sglang-0.5.2", 1, sglang), ("sglang-0.5.2", options.page_size, sglang)]
        # The sides take turns, so that a busy spell of the machine affects both.
        runs: list[list[dict[str, list[float]]]] = [[] for _ in contenders]
        counts = [0] * len(contenders)
        for _ in range(options.repeats):
            for side, (_, page_size, run) in enumerate(contenders):
                spent, counts[side] = run(prompts, order, page_size)
                runs[side].append(spent)
                gc.collect()
        for (system, page_size, _), side_runs, nodes in zip(contenders, runs, counts, strict=True):
            for operation, (micros, calls) in summarise(side_runs).items():
                add(workload, system, page_size, operation, micros, "us", calls)
            add(workload, system, page_size, "nodes", nodes, "nodes", 1)
        seconds, count = conversion(prompts)
        add(workload, "shoal", options.page_size, "tokens_to_array", seconds / count * 1e6, "us", int(count))
    for leaves in (1024, 4096, 16384, 65536):
        add(
            f"evict_scaling_{leaves}",
            "shoal",
            16,
            "evict",
            evict_scaling(leaves, options.repeats) * 1e6,
            "us/page",
            1000,
        )
    add("memory", "shoal", 16, "node_overhead", node_overhead(4096), "bytes", 4096)
    if options.out:
        stamp = {
            "command": "python benchmarks/radix.py "
            + " ".join("DIR" if argument == str(options.sglang) else argument for argument in sys.argv[1:]),
            "commit": commit(),
            "hardware": hardware(),
            "versions": f"python {platform.python_version()}, numpy {np.__version__}",
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=[*rows[0], *stamp], lineterminator="\n")
            writer.writeheader()
            writer.writerows({**row, **stamp} for row in rows)


if __name__ == "__main__":
    main()
