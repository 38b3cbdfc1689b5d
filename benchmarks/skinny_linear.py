"""The skinny linear kernels on a CUDA GPU: tilings against torch.mm and against the weight's bytes.

    python -m benchmarks.skinny_linear --out benchmarks/results/skinny_linear.csv
    python -m benchmarks.skinny_linear --check --out checked.csv      # every variant once, compared, untimed

Products of block steps of LLaDA-8B and Dream-7B with 32 to 128 rows, bf16. Weights are cold: calls rotate over 400 MB
of copies. Every variant is compiled beforehand, in parallel. A row is a variant on a shape: microseconds a call (median
of graph replays), the floor that its bytes give at the copy bandwidth measured in the same run, the relative error
against float64, and whether two runs gave the same bits. The torch rows do the same work as the runtime would without
these kernels: `mm`, `addmm` with the residual, `mm` and then the SwiGLU kernel. Rows are written as they are made.
"""

from __future__ import annotations

import argparse
import csv
import math
import multiprocessing
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.kernels import ceilings, relative, seconds_a_call
from shoal.kernels.skinny_tiling import SkinnyTiling, default_tiling, stages_that_fit
from shoal.provenance import commit, hardware

BF16 = torch.bfloat16
COPIES_BYTES = 400e6


@dataclass(frozen=True, slots=True)
class Shape:
    """x [rows, inner] times a weight of `columns` rows, of 2 * columns when gated."""

    name: str
    rows: int
    columns: int
    inner: int
    gated: bool = False
    residual: bool = False
    bias: bool = False

    @property
    def bytes(self) -> int:
        """Weight, x, output and residual, once each."""
        weight = self.columns * self.inner * (2 if self.gated else 1)
        return 2 * (weight + self.rows * (self.inner + self.columns * (2 if self.residual else 1)))


def llada(rows: int) -> list[Shape]:
    return [
        Shape("llada qkv", rows, 12288, 4096), Shape("llada attention out", rows, 4096, 4096, residual=True),
        Shape("llada gate_up", rows, 12288, 4096, gated=True), Shape("llada down", rows, 4096, 12288, residual=True),
    ]  # fmt: skip


def dream(rows: int) -> list[Shape]:
    return [
        Shape("dream qkv", rows, 4608, 3584, bias=True), Shape("dream attention out", rows, 3584, 3584, residual=True),
        Shape("dream gate_up", rows, 18944, 3584, gated=True), Shape("dream down", rows, 3584, 18944, residual=True),
    ]  # fmt: skip


PROCESSORS = 132
WIDTHS = ((32, 0), (32, 16), (64, 0), (64, 16), (64, 32), (128, 0), (128, 16), (128, 32), (128, 64), (256, 0))


def tilings(shape: Shape, thorough: bool) -> list[SkinnyTiling]:
    """Widths and splits that make about one program a processor (thorough: or two), and the default in other forms."""
    found = []
    for first, more in WIDTHS:
        tiles = -(-shape.columns // (first + more))
        if shape.gated and first + more > 144:
            continue
        for shared in (1, 2) if thorough else (1,):
            splits = PROCESSORS * shared // tiles
            if not 1 <= splits <= 10 or tiles * splits < 0.84 * PROCESSORS * shared:
                continue
            for block_inner in (64, 128):
                stages = stages_that_fit(shape.rows, (first + more) * shared, block_inner, shape.gated)
                stages -= shared - 1
                if stages > 2:
                    found.append(SkinnyTiling(first, more, splits, block_inner, num_stages=stages))
    default = default_tiling(shape.rows, shape.columns, shape.inner, BF16, shape.gated)
    forms = [replace(default, stagger=False), replace(default, num_warps=8), replace(default, early_tiles=0)]
    forms += [replace(default, early_tiles=2), replace(default, early_tiles=4), replace(default, bulk=False)]
    return list(dict.fromkeys([default, *found, *(forms if thorough else forms[:2])]))


def cases() -> list[tuple[Shape, list[SkinnyTiling]]]:
    levels = [(llada(32), True), (llada(64), False), (llada(128), False), (dream(33), False), (dream(32), False)]
    return [(shape, tilings(shape, thorough)) for shapes, thorough in levels for shape in shapes]


def call(shape: Shape, tiling: SkinnyTiling, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None,
         out: Tensor) -> Tensor:  # fmt: skip
    from shoal.kernels.skinny_linear_triton import skinny_linear_triton, skinny_swiglu_triton

    if shape.gated:
        return skinny_swiglu_triton(x, weight, out, tiling=tiling)
    return skinny_linear_triton(x, weight, bias, residual, out, tiling=tiling)


def blas(shape: Shape, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, out: Tensor) -> Tensor:
    from shoal.kernels.swiglu_triton import swiglu_triton

    if shape.gated:
        return swiglu_triton(torch.mm(x, weight.t()))
    added = bias if residual is None else residual
    return torch.mm(x, weight.t(), out=out) if added is None else torch.addmm(added, x, weight.t(), out=out)


class Data:
    """Fresh random tensors of a shape; as many weights as exceed the cache many times over."""

    def __init__(self, shape: Shape, device: str):
        rows = shape.columns * (2 if shape.gated else 1)
        copies = -(-int(COPIES_BYTES) // (2 * rows * shape.inner)) if device == "cuda" else 1
        make = partial(torch.randn if device == "cuda" else torch.empty, device=device, dtype=BF16)
        self.x = make(shape.rows, shape.inner)
        self.weights = [make(rows, shape.inner) for _ in range(max(1, copies))]
        self.bias = make(shape.columns) if shape.bias else None
        self.residual = make(shape.rows, shape.columns) if shape.residual else None
        self.out = torch.full((shape.rows, shape.columns), torch.nan, device=device, dtype=BF16)

    def arguments(self, index: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor]:
        return self.x, self.weights[index], self.bias, self.residual, self.out


def compile_one(shape: Shape, tiling: SkinnyTiling) -> str:
    """In a process of its own: fills Triton's cache on disk. Returns why it failed, or nothing."""
    try:
        torch.set_num_threads(1)
        rows = shape.columns * (2 if shape.gated else 1)
        make = partial(torch.empty, device="cuda", dtype=BF16)
        bias = make(shape.columns) if shape.bias else None
        out = make(shape.rows, shape.columns)
        residual = torch.empty_like(out) if shape.residual else None
        call(shape, tiling, make(shape.rows, shape.inner), make(rows, shape.inner), bias, residual, out)
        torch.cuda.synchronize()
    except Exception as error:  # the measurement meets it again and writes it down
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return ""


def compile_all(processes: int, seconds: float) -> bool:
    """False where there is no GPU. The pool forks before CUDA is touched here."""
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("fork"))
    if not pool.submit(torch.cuda.is_available).result(timeout=60):
        return False
    begin = time.monotonic()
    futures = [pool.submit(compile_one, shape, tiling) for shape, some in cases() for tiling in some]
    done, late = wait(futures, timeout=seconds)
    failures = [future.result() for future in done if future.result()]
    print(f"compiled {len(done)} variants in {time.monotonic() - begin:.1f} s, {len(late)} late", flush=True)
    for failure in sorted(set(failures)):
        print(f"{failures.count(failure)} x {failure}", flush=True)
    pool.shutdown(wait=False, cancel_futures=True)
    return True


def name_of(tiling: SkinnyTiling) -> str:
    width = f"{tiling.block_columns}+{tiling.more_columns}" if tiling.more_columns else f"{tiling.block_columns}"
    name = f"{width}x{tiling.block_inner} w{tiling.num_warps} s{tiling.num_stages} /{tiling.splits}"
    name += " pointers" * (not tiling.bulk) + " in step" * (not tiling.stagger)
    return name + f" early {tiling.early_tiles}" * (tiling.early_tiles >= 0)


def expected(shape: Shape, data: Data) -> Tensor:
    y = data.x.double() @ data.weights[0].double().t()
    for tensor in (data.bias, data.residual):
        if tensor is not None:
            y += tensor.double()
    if shape.gated:
        gate, up = y.chunk(2, dim=1)
        return gate / (1 + (-gate).exp()) * up
    return y


COLUMNS = ("shape", "rows", "columns", "inner", "variant", "us", "gb_s", "floor_us", "of_floor", "error", "same",
           "default", "failure")  # fmt: skip


def measure(shape: Shape, data: Data, function: Callable[..., Tensor], wanted: Tensor, copy: float, check: bool,
            budget: float) -> dict[str, object]:  # fmt: skip
    row: dict[str, object] = {"shape": shape.name, "rows": shape.rows, "columns": shape.columns, "inner": shape.inner}
    try:
        results = []
        for _ in range(2):
            data.out.fill_(torch.nan)
            results.append(function(*data.arguments(0)).clone())
        row |= {"error": f"{relative(results[0], wanted):.2e}", "same": torch.equal(*results)}
        if check:
            return row
        calls = [partial(function, *data.arguments(i)) for i in range(len(data.weights))]
        spent = seconds_a_call(calls, budget)
    except Exception as error:  # a variant that does not fit the device is a result too
        return row | {"failure": f"{type(error).__name__}: {error}".splitlines()[0][:160]}
    row |= {"us": f"{spent * 1e6:.2f}", "gb_s": f"{shape.bytes / spent / 1e9:.0f}"}
    return row | {"floor_us": f"{shape.bytes / copy * 1e6:.2f}", "of_floor": f"{shape.bytes / copy / spent:.3f}"}


def layers(rows: int, best: dict[str, SkinnyTiling], copy: float, budget: float) -> Iterator[dict[str, object]]:
    """The four products of a LLaDA-8B layer in turn, each with the tiling that was fastest alone."""
    shapes = llada(rows)
    data = [Data(shape, "cuda") for shape in shapes]
    count = min(len(each.weights) for each in data)
    total = sum(shape.bytes for shape in shapes)
    for early in (None, -1, 0, 2, 4):

        def layer(index: int, early: int | None = early) -> None:
            for shape, each in zip(shapes, data, strict=True):
                if early is None:
                    blas(shape, *each.arguments(index))
                else:
                    call(shape, replace(best[shape.name], early_tiles=early), *each.arguments(index))

        spent = seconds_a_call([partial(layer, index) for index in range(count)], budget)
        floor = total / copy
        yield {
            "shape": "llada layer", "rows": rows, "us": f"{spent * 1e6:.2f}", "gb_s": f"{total / spent / 1e9:.0f}",
            "variant": "torch" if early is None else f"best of each, early {early}", "error": "", "same": "",
            "floor_us": f"{floor * 1e6:.2f}", "of_floor": f"{floor / spent:.3f}",
        }  # fmt: skip


def report(rows: Sequence[dict[str, object]], count: int = 3) -> None:
    for key in dict.fromkeys((row["shape"], row["rows"]) for row in rows):
        own = [row for row in rows if (row["shape"], row["rows"]) == key and "us" in row]
        for row in own[:1] + sorted(own[1:], key=lambda row: float(str(row["us"])))[:count]:
            name = f"{row['shape']!s:20} {row['rows']:>3} {row['variant']!s:42}"
            print(f"{name} {row['us']!s:>7} us {row['gb_s']:>5} GB/s {row['of_floor']} {row['error']} {row['same']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="CSV to write, row by row")
    parser.add_argument("--check", action="store_true", help="run each variant and compare, without timing")
    parser.add_argument("--seconds", type=float, default=600, help="start no variant after so long")
    parser.add_argument("--budget", type=float, default=0.03, help="seconds of replays to time a variant by")
    parser.add_argument("--processes", type=int, default=16, help="that compile")
    parser.add_argument("--commit", default=commit(), help="what the results file names as the commit")
    options = parser.parse_args()
    begin = time.monotonic()
    if not compile_all(options.processes, options.seconds / 2):
        print("benchmarks/skinny_linear.py needs a CUDA GPU; nothing was measured")
        return
    import triton

    torch.manual_seed(int(time.time()))
    copy = 1.0 if options.check else ceilings()[0]
    stamp = {
        "copy_gb_s": f"{copy / 1e9:.0f}", "hardware": hardware(), "commit": options.commit,
        "command": " ".join(["python -m benchmarks.skinny_linear", *sys.argv[1:]]),
        "versions": f"python {platform.python_version()}, torch {torch.__version__}, triton {triton.__version__}",
    }  # fmt: skip
    print(f"copy {copy / 1e12:.2f} TB/s, {time.monotonic() - begin:.1f} s so far", flush=True)
    file = writer = None
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        file = options.out.open("w", newline="", encoding="utf-8")
        writer = csv.DictWriter(file, fieldnames=[*COLUMNS, *stamp], lineterminator="\n")
        writer.writeheader()
    rows: list[dict[str, object]] = []
    for shape, some in cases():
        if time.monotonic() - begin > options.seconds:
            print(f"stopped before {shape.name} {shape.rows} after {options.seconds} s")
            break
        data = Data(shape, "cuda")
        wanted = expected(shape, data)
        chosen = default_tiling(shape.rows, shape.columns, shape.inner, BF16, shape.gated)
        variants: list[tuple[str, Callable[..., Tensor]]] = [("torch", partial(blas, shape))]
        variants += [(name_of(tiling), partial(call, shape, tiling)) for tiling in some]
        for name, function in variants:
            if time.monotonic() - begin > options.seconds:
                break
            row = {"variant": name} | measure(shape, data, function, wanted, copy, options.check, options.budget)
            row["default"] = name == name_of(chosen)
            rows.append(row)
            if "failure" in row or float(str(row["error"])) > 1e-2 or not row["same"]:
                kept = ("shape", "rows", "variant", "error", "same", "failure")
                print({key: row.get(key) for key in kept}, flush=True)
            if writer is not None and file is not None:
                writer.writerow(row | stamp)
                file.flush()
    for count in (32, 64):
        own = [row for row in rows if row["rows"] == count and "us" in row]
        best = {
            shape.name: min(
                (tiling for tiling in some if tiling.early_tiles < 0),
                key=lambda tiling: min(
                    (
                        float(str(row["us"]))
                        for row in own
                        if (row["shape"], row["variant"]) == (shape.name, name_of(tiling))
                    ),
                    default=math.inf,
                ),
            )
            for shape, some in cases()
            if shape.rows == count
        }
        if own and time.monotonic() - begin < options.seconds:
            for row in layers(count, best, copy, options.budget):
                rows.append(row)
                if writer is not None and file is not None:
                    writer.writerow(row | stamp)
                    file.flush()
    print(f"{len(rows)} variants, {time.monotonic() - begin:.1f} s")
    report(rows)


if __name__ == "__main__":
    main()
