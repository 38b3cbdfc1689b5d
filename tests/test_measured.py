"""Tables of docs/gpu.md, docs/scaling.md and docs/serving.md hold the numbers of benchmarks/results."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def rows(name: str, **where: str) -> list[dict[str, str]]:
    """Rows of a results file whose columns have these values."""
    with (RESULTS / name).open(encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if all(row[key] == value for key, value in where.items())]


def table(page: str, head: str) -> list[list[str]]:
    """Cells of the lines below a table's first line, which begins with `head`."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert text.count(f"\n{head}") == 1, head
    lines = text.partition(f"\n{head}")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def schedule_row(name: str, batch: str, window: str, schedule: str) -> dict[str, str]:
    where = {"variant": "bicache", "requests": "hits", "batch": batch, "window": window, "schedule": schedule}
    (row,) = rows(name, **where)
    return row


def rates(name: str, window: str, schedule: str) -> list[str]:
    """Tokens a second at batch 1 and 32."""
    found = [schedule_row(name, batch, window, schedule) for batch in ("1", "32")]
    return [f"{float(row['tokens_per_s']):,.0f}" for row in found]


def test_windows_and_schedules_on_a_gpu():
    lines = table("gpu.md", "| canvas, `refresh_schedule` |")
    assert len(lines) == 4
    for name, *cells in lines:
        window, schedule = "32" if "32" in name else "", "settled" if "settled" in name else "full"
        assert cells == rates("throughput_schedules.csv", window, schedule), name
    for limit, *cells in table("gpu.md", "| limit of new tokens |"):
        where = {"variant": "first block", "requests": "hits", "canvas": limit.replace(",", "")}
        for cell, (batch, window) in zip(cells, (("1", ""), ("1", "32"), ("32", ""), ("32", "32")), strict=True):
            (row,) = rows("throughput_schedules.csv", batch=batch, window=window, **where)
            assert float(cell) == pytest.approx(float(row["seconds"]), abs=6e-4 if batch == "1" else 6e-3)


def test_whole_requests_in_fp8():
    text = (ROOT / "docs/gpu.md").read_text(encoding="utf-8").partition("Whole requests at prefix 2,000 with hits")[2]
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith(("| bfloat16,", "| fp8,"))]
    assert len(lines) == 4
    for name, *cells in lines:
        file = "throughput_schedules_fp8.csv" if name.startswith("fp8") else "throughput_schedules.csv"
        assert cells == rates(file, *(("32", "settled") if "window" in name else ("", "full"))), name


def test_keys_and_values_in_fp8():
    for name, *cells in table("gpu.md", "| keys and values | tokens/s"):
        dtype = {"in bfloat16": "auto", "in fp8": "fp8_e4m3"}[name]
        for batch, cell in zip(("1", "32"), cells, strict=True):
            found = rows("throughput_kv8.csv", kv_cache_dtype=dtype, batch=batch, requests="hits")
            assert cell == (f"{float(found[0]['tokens_per_s']):,.0f}" if found else "not measured")
    measured = rows("kernels_kv8.csv")
    lines = table("gpu.md", "| queries and keys | bfloat16 | fp8 |")
    assert len(lines) == 5
    for name, *cells in lines:
        kind, requests = name.split(", ")
        number, keys = requests.split()[0], requests.removesuffix(" keys").split()[-1].replace(",", "")
        queries = kind.partition("refresh of ")[2].removesuffix(" positions") or "32"
        shape = f"{number} x {queries} of {keys}" + ", 1984 shared" * ("share" in name) + " p64"
        best = [
            min((row for row in measured if row["shape"] == shape + end and row["us"]), key=lambda r: float(r["us"]))
            for end in ("", " fp8")
        ]
        times = [float(best[0]["us"]), float(best[1]["us"]), float(best[1]["floor_us"])]
        assert cells == [f"{us:.0f} µs" if us > 20 else f"{us:.1f} µs" for us in times], name
    for shape, variant, told in (
        ("32 x 32 of 2300, 1984 shared p64 fp8", "shared 64 w8 s3 r-, own 64 w4 s3 r-", "takes 185 µs there"),
        ("1 x 32 of 2300 p64 fp8", "64x64 w4 s3 bulk heads /4", "takes 19.6 µs"),
    ):
        (row,) = rows("kernels_kv8.csv", shape=shape, variant=variant)
        us = float(row["us"])
        assert (f"{us:.0f} µs" if us > 20 else f"{us:.1f} µs") in told
        assert told in (ROOT / "docs/gpu.md").read_text(encoding="utf-8")


def test_phases_in_fp8():
    lines = table("gpu.md", "| phase | bfloat16 |")
    assert len(lines) == 8
    for name, bf16, fp8, gain in lines:
        kind, size = name.split(", ")
        phase = {"refresh": "refresh", "canvas refresh": "canvas", "block step": "step"}[kind]
        requests = size.removeprefix("batch ").split()[0]
        (row,) = rows("gpu_phases_fp8.csv", phase=phase, requests=requests)
        assert float(fp8.removesuffix(" ms").replace(",", "")) == pytest.approx(float(row["ms"]), rel=6e-3), name
        plain = float(bf16.removesuffix(" ms").replace(",", ""))
        assert plain == pytest.approx(float(rows("gpu_phases.csv", phase=phase, requests=requests)[0]["ms"]), rel=6e-3)
        assert float(gain) == pytest.approx(plain / float(row["ms"]), abs=6e-3), name


def test_steps_of_experts():
    lines = table("gpu.md", "| requests | experts chosen, of 64 |")
    parts = table("gpu.md", "| part of a step |")
    assert [line[0] for line in lines] == ["1", "32"]
    for place, (requests, experts, step, over) in enumerate(lines):
        tried = rows("expert_variants.csv", requests=requests)
        row = tried[0]  # the engine's tiles
        assert row == min(tried, key=lambda row: float(row["ms"]))
        assert len(tried) == (12, 11)[place]
        ms = float(row["ms"])
        assert [experts, step, over] == [row["experts"], f"{ms:.2f} ms", f"{float(row['over_floor']):.2f}"]
        kernels = {name: float(row[name] or 0) / 1000 for name in row if name.endswith("_kernel")}
        products = kernels.pop("gate_up_kernel") + kernels.pop("down_kernel")
        times = [products, sum(kernels.values())]
        times.append(ms - sum(times))
        assert [cells[1 + place] for cells in parts] == [f"{time:.2f} ms" for time in times], requests


def test_start_of_an_engine():
    lines = table("gpu.md", "| Triton's cache | weights there |")
    assert [line[0] for line in lines] == ["cold", "warm"]
    columns = ("weights_s", "compiled_s", "ready_s", "answer_s")
    for name, *cells in lines:
        (row,) = rows("start_up.csv", case=name)
        assert cells == [row[column] or "-" for column in columns], name
    stages = table("gpu.md", "| stage | cold | warm |")
    log = (RESULTS / "start_up.log").read_text(encoding="utf-8").partition("'case': 'cold'")
    for place, (text, name) in enumerate(((log[0], "cold"), (log[2], "warm"))):
        (row,) = rows("start_up.csv", case=name)
        captured = [line.split()[0] for line in text.splitlines() if "captured" in line and "width=32" in line]
        assert len(captured) == 17
        last = float(captured[-1])
        assert stages[-2][1 + place] == f"{last - float(row['weights_s']):.1f}"
        assert stages[-1][1 + place] == f"{float(row['ready_s']) - last:.1f}"


def test_what_one_server_carries():
    for mode, passes, fails in table("scaling.md", "| mode, CPU | passes at"):
        found = rows("capacity.csv", mode=mode.strip("`"))
        assert float(passes) == max(float(row["rate"]) for row in found if row["passes"] == "1")
        assert float(fails) == min(float(row["rate"]) for row in found if row["passes"] == "0")


def test_what_one_h200_carries():
    lines = table("scaling.md", "| mode | passes at")
    assert [line[0] for line in lines] == ["`dual`", "`bicache`", "`bicache+settled`"]
    for mode, passes, first, total, fails in lines:
        found = rows("capacity_h200.csv", mode=mode.strip("`"))
        best = max((row for row in found if row["passes"] == "1"), key=lambda row: float(row["rate"]))
        assert float(passes) == float(best["rate"])
        assert first == f"{float(best['first_p99_s']):.1f} s"
        assert total == f"{float(best['total_p50_s']):.1f} / {float(best['total_p99_s']):.1f} s"
        failed = [float(row["rate"]) for row in found if row["passes"] == "0"]
        assert fails == (f"{min(failed):g}" if failed else "not reached")
    dual, bicache, settled = (line[1] for line in lines)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"`dual` {dual}, `bicache` {bicache}, with settled blocks and a window {settled}." in readme


def test_the_cost_model_is_that_of_its_first_row():
    text = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
    assert "r = 0.741 us" in text
    lines = table("scaling.md", "| mode, prefix, refresh interval |")
    assert len(lines) == 6
    for name, layers, model, measured in lines:
        mode, prefix, *interval = name.replace("`", "").split(", ")
        where = {"variant": mode, "prefix": "".join(c for c in prefix if c.isdigit()), "nfe_per_block": "8"}
        where |= {"shape": "llada-8b", "batch": "32", "interval": "16" if interval == ["16 NFE"] else "0"}
        (row,) = [row for row in rows("throughput.csv", **where) if row["requests"] != "cold"]
        assert float(measured) == pytest.approx(float(row["in_refreshes_s"]), rel=0.015), name
        refreshes = int(row["computed_token_layers"]) - 56 * 32 * 32
        assert int(layers.replace(",", "")) == refreshes, name
        if model != "-":
            assert float(model) == pytest.approx(32 * refreshes * 0.7414e-6, rel=0.01), name


def test_first_texts_by_target():
    targets = ["none", "2,000 ms", "1,000 ms", "500 ms", "250 ms"]
    modelled = table("scaling.md", "| target | mixed lengths |")
    assert [line[0] for line in modelled] == targets
    check_first_texts(modelled, "first_text.csv", ("mixed left", "equal left", "equal random", "open left"))
    measured = table("scaling.md", "| target, on an H200 |")
    assert [line[0] for line in measured] == [targets[0], *targets[2:]]
    check_first_texts(measured, "first_text_h200.csv", ("equal weights", "open weights"))


def check_first_texts(lines: list[list[str]], file: str, columns: tuple[str, ...]) -> None:
    """Cells are p50 / p99 of the first text and tokens a second; columns are a load and an order of commits."""
    for target, *cells in lines:
        for cell, column in zip(cells, columns, strict=True):
            load, order = column.split()
            name = target.removesuffix(" ms").replace(",", "")
            found = rows(file, target_ms=name, load=load, order=order)
            if cell == "-":
                assert not found
                continue
            (row,) = found
            first = f"{float(row['first_p50_s']):.2f} / {float(row['first_p99_s']):.2f} s"
            assert cell == f"{first}, {float(row['tokens_per_s']):,.0f}", (target, column)


def test_processes_beside_the_tree_before():
    lines = table("serving.md", "| process | a step, whole and streamed |")
    assert len(lines) == 5
    for process, *cells in lines:
        for cell, (measurement, unit) in zip(cells, (("steps", "step"), ("service", "request")), strict=True):
            where = {"measurement": measurement, "metric": f"cpu_per_{unit}_{process}"}
            found = [row for row in rows("pipeline_trees.csv", **where) if row["commit"] != "9b7edf4"]
            assert cell == ", ".join(row["ratio"] for row in found), process


def test_what_routers_keep_and_cost():
    lines = table("scaling.md", "| router | replicas | 6 lists |")
    assert len(lines) == 8
    one = {row["prefixes"]: float(row["hit_rate"]) for row in rows("routing.csv", front="none")}
    for name, replicas, *cells in lines:
        policy = name.partition("`")[2].rstrip("`")
        front = {"one server": "none", "Ray": "ray", "sglang's router": "dp"}[name.partition(",")[0]]
        for lists, cell in zip(("6", "20"), cells, strict=True):
            where = {"front": front, "policy": policy, "replicas": replicas, "prefixes": lists, "failed": "0"}
            (row,) = rows("routing.csv", **where)
            assert cell == f"{100 * float(row['hit_rate']):.1f} %", name
            if policy in ("prefix", "cache_aware"):
                assert float(row["hit_rate"]) > one[lists] - 0.05, name
    lines = table("scaling.md", "| through | reply |")
    assert len(lines) == len(rows("routing_overhead.csv"))
    for name, reply, *cells in lines:
        front, kind = ("ray" if "Ray" in name else "dp"), ("stream" if "stream" in reply else "whole")
        (row,) = rows("routing_overhead.csv", front=front, request=kind)
        columns = ("direct_p50_ms", "through_p50_ms", "overhead_p50_ms", "overhead_p10_ms")
        assert cells == [f"{float(row[column]):.1f}" for column in columns], name
