"""Every Triton kernel on a CUDA GPU: against the torch equivalent, and against its floor on the same GPU.

    python benchmarks/kernels.py --out benchmarks/results/kernels.csv
    python benchmarks/kernels.py --only refresh --out refresh.csv     # one group; --check runs each once, untimed

A row is one variant (a tiling, a backend) on one shape: microseconds a call (median of graph replays, inputs rotated so
that they do not sit in the cache), its bytes and operations with every input read and every output written once, the
floor these give with the copy bandwidth and matmul rate measured in the same run, and the relative error against fp32
formulas. Rows are written as they are made; a variant that can not run says why.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.device_rates import Rates, measure_rates
from benchmarks.kernel_bench.attention import refresh, step
from benchmarks.kernel_bench.experts import experts
from benchmarks.kernel_bench.kv8 import kv8
from benchmarks.kernel_bench.layers import layers
from benchmarks.kernel_bench.merging import merging
from benchmarks.kernel_bench.rows import rows
from benchmarks.kernel_bench.sampling import sampling
from benchmarks.kernel_bench.shared import shared
from benchmarks.kernel_bench.variant import Variant, seconds_a_call
from benchmarks.table import Table
from shoal.provenance import commit, hardware

GROUPS: dict[str, Callable[[], Iterator[Variant]]] = {
    "refresh": refresh, "step": step, "shared": shared, "rows": rows, "sampling": sampling, "merging": merging,
    "layers": layers, "experts": experts, "kv8": kv8,
}  # fmt: skip
COLUMNS = ("group", "shape", "variant", "us", "gb_s", "tflop_s", "floor_us", "of_floor", "error", "failure")


def measure(variant: Variant, rates: Rates | None) -> dict[str, object]:
    """A row of COLUMNS; without rates the variant runs once, untimed."""
    row: dict[str, object] = {"group": variant.group, "shape": variant.shape, "variant": variant.name}
    try:
        if variant.error is not None:
            row["error"] = f"{variant.error():.2e}"
        if rates is None:
            variant.calls[0]()
            torch.cuda.synchronize()
            return row
        spent = seconds_a_call(variant.calls)
    except Exception as error:  # a variant that does not fit the device is a result too
        row["failure"] = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        return row
    floor = max(variant.bytes / rates.bytes, variant.flops / rates.flops)
    row |= {"us": f"{spent * 1e6:.2f}", "gb_s": f"{variant.bytes / spent / 1e9:.0f}"}
    row |= {"tflop_s": f"{variant.flops / spent / 1e12:.1f}", "floor_us": f"{floor * 1e6:.2f}"}
    return row | {"of_floor": f"{floor / spent:.3f}"}


def variants(group: str) -> Iterator[Variant]:
    """A group's variants; where its inputs can not be made, the rest of it is left out."""
    try:
        yield from GROUPS[group]()
    except Exception as error:
        print(f"{group} ends early: {type(error).__name__}: {error}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="CSV to write, row by row")
    parser.add_argument("--only", choices=GROUPS, action="append", help="a group; all by default, in this order")
    parser.add_argument("--skip", default="", help="leave out variants whose name begins with this")
    parser.add_argument("--check", action="store_true", help="run each variant once and compare, without timing")
    parser.add_argument("--seconds", "--time-limit", type=float, default=600, help="start no variant after so long")
    parser.add_argument("--commit", default=commit(), help="what the results file names as the commit")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/kernels.py needs a CUDA GPU; nothing was measured")
        return
    begin = time.monotonic()
    torch.manual_seed(int(time.time()))
    torch.backends.cuda.matmul.allow_tf32 = False
    rates = None if options.check else measure_rates()
    print(rates or "checks, untimed", flush=True)
    import triton

    words = [Path(word).name for word in sys.argv[1:]]
    shown = Rates(0.0, 0.0) if rates is None else rates
    table = Table(options.out, {
        "copy_gb_s": f"{shown.bytes / 1e9:.0f}", "matmul_tflop_s": f"{shown.flops / 1e12:.0f}",
        "hardware": hardware(), "command": " ".join(["python benchmarks/kernels.py", *words]), "commit": options.commit,
        "versions": f"python {platform.python_version()}, torch {torch.__version__}, triton {triton.__version__}",
    })  # fmt: skip
    best: dict[tuple[str, str, bool], dict[str, object]] = {}
    for group in options.only or GROUPS:
        if time.monotonic() - begin > options.seconds:
            print(f"stopped before {group} after {options.seconds} s", flush=True)
            break
        for variant in variants(group):
            if options.skip and variant.name.startswith(options.skip):
                continue
            if time.monotonic() - begin > options.seconds:
                break
            row = measure(variant, rates)
            table.add(dict.fromkeys(COLUMNS, "") | row)
            bad = "failure" in row or float(str(row.get("error", 0))) > 1e-2
            if options.check and bad:
                print(row, flush=True)
            key = (variant.group, variant.shape, variant.name.startswith("torch"))
            if "us" in row and (key not in best or float(str(row["us"])) < float(str(best[key]["us"]))):
                best[key] = row
    for row in best.values():
        print(
            f"{row['group']:12} {row['shape']:44} {row['variant']:36} {row['us']:>10} us {row['gb_s']:>5} GB/s "
            f"{row['tflop_s']:>6} TF {row['of_floor']} {row.get('error', '')}"
        )


if __name__ == "__main__":
    main()
