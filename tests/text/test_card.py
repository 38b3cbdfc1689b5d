"""The numbers of docs/text.md are those of the results."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"
CARD = (ROOT / "docs" / "text.md").read_text(encoding="utf-8")
TASKS = ("look-up", "quote", "gap", "classify")


@pytest.fixture(scope="module")
def cells() -> list[dict[str, str]]:
    with (RESULTS / "text_reuse.csv").open(encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["capture"] == "first"]


def worst(
    cells: list[dict[str, str]], task: str, depth: str, column: str, pick: Callable[[list[float]], float]
) -> float:
    found = [float(row[column]) for row in cells if (row["task"], row["depth"]) == (task, depth)]
    assert len(found) == (4 if task in ("look-up", "continuation") else 3)
    return round(pick(found), 3)


def test_the_table_of_reuse_holds_the_worst_ratio_of_each_task(cells):
    table = CARD.partition("| layers reused |")[2].partition("\n\n")[0]
    lines = re.findall(r"^\| (\d+)\b[^|]*\|(.*)\|$", table, re.MULTILINE)
    assert [int(depth) for depth, _ in lines] == [0, 4, 6, 8, 12, 16, 30]
    for depth, line in lines:
        *shares, change = (cell.strip() for cell in line.split("|"))
        column, at = ("accuracy_none", "1") if depth == "0" else ("accuracy", depth)
        assert [float(share) for share in shares] == [worst(cells, task, at, column, min) for task in TASKS], depth
        assert depth == "0" or float(change) == worst(cells, "continuation", depth, "dnll", max)


def test_at_depth_six_no_task_loses_a_hundredth_with_any_capture():
    with (RESULTS / "text_reuse.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["depth"] == "6"]
    assert {row["capture"] for row in rows} == {"first", "alone", "final"}
    assert max(float(row["dnll"]) for row in rows) < 0.01
    ends = [float(r["dnll"]) + float(r["dnll_ci95"]) for r in rows if (r["task"], r["capture"]) == ("look-up", "first")]
    assert round(max(ends), 3) == 0.007


def test_the_noise_of_bf16_is_that_of_the_results():
    with (RESULTS / "text_noise.csv").open(encoding="utf-8") as file:
        found = {row["task"]: row for row in csv.DictReader(file)}
    agreement, look_up = (float(found[task]["agree"]) for task in ("continuation", "look-up"))
    assert f"continuation is {agreement:.2f} and that of look-up {look_up:.2f}" in CARD
    assert {row["rows"] for row in found.values()} == {"32"}


def read(name: str) -> list[dict[str, str]]:
    with (RESULTS / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table(heading: str) -> list[list[str]]:
    """Cells of the lines below a table's heading."""
    lines = CARD.partition(f"| {heading} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_of_modes_holds_accuracies_and_intervals_at_ratio_0_7():
    found = {(r["task"], r["dtype"], r["mode"], r["depth"]): r for r in read("text_modes.csv") if r["ratio"] == "0.7"}
    names = {"`none`, fp32": "none", "`dual`": "dual", "all 30": "bicache"}
    lines = table("mode")
    assert len(lines) == 6
    for name, *cells in lines:
        depth = "".join(re.findall(r"depth (\d+)|all (\d+)", name)[0]) if "0" in name or "depth" in name else ""
        key = ("float32" if "fp32" in name else "bfloat16", names.get(name, "bicache"), depth)
        rows = [found[task, *key] for task in ("look-up", "quotation", "missing word", "few-shot topic")]
        assert {row["questions"] for row in rows} == {"256"}
        for row, share in zip(rows, cells[::2], strict=True):
            assert float(share) == pytest.approx(float(row["accuracy"]), abs=6e-4), (name, row["task"])
        for row, drop in zip(rows, cells[1::2], strict=False):
            if drop:
                ends = [100 * float(row[f"drop_{side}_95"]) for side in ("low", "high")]
                assert [float(end) for end in drop.split(" to ")] == pytest.approx(ends, abs=0.55), (name, row["task"])


def test_the_table_of_audits_counts_right_answers():
    rows = read("text_audit.csv")
    lines = table("`--audit-rate`")
    assert [float(line[0]) for line in lines] == [0, 0.05, 0.2]
    for rate, right, _, depth, last in lines:
        windows = [row for row in rows if float(row["rate"]) == float(rate)]
        assert windows[-1]["questions"] == "256"
        assert int(right) == sum(int(row["right"]) for row in windows)
        assert int(last) == sum(int(row["right"]) for row in windows[-4:])
        assert float(depth) == float(windows[-1]["mean_depth"])


def test_what_it_is_worth_is_what_was_measured():
    found = json.loads((RESULTS / "text_evaluation.json").read_text(encoding="utf-8"))
    full, low = found["full"], found["low-rank"]
    bounds = [f"{e['bound']['mean']:.2f} ± {e['bound']['ci95']:.2f}" for e in (full, low)]
    assert f"| {bounds[0]} | {bounds[1]} | {full['base nll']['mean']:.2f} ± {full['base nll']['ci95']:.2f} |" in CARD
    for name in ("look-up {}", "base look-up {}"):
        shares = "; ".join(f"{full[name.format(ratio)]['accuracy']:.2f}" for ratio in (0.3, 0.5, 0.7, 0.9))
        assert shares in CARD
    rates = [f"{e['nll at 0.15']['mean']:.2f}; {e['nll at 0.5']['mean']:.2f}" for e in (full, low)]
    assert f"| {rates[0]} | {rates[1]} | |" in CARD


def test_the_log_tells_the_training():
    log = [json.loads(line) for line in (RESULTS / "text_training.jsonl").read_text(encoding="utf-8").splitlines()]
    ends = {record["phase"]: record for record in log if "probes" in record and "tokens" in record}
    assert round(ends["full"]["tokens"] / 1e6) == 332
    assert round((ends["low-rank"]["tokens"] - ends["full"]["tokens"]) / 1e6) == 51
    compressed = next(record for record in log if record.get("event") == "compressed")
    losses = [r["probes"]["nll_0.5"] for r in (ends["full"], compressed, ends["low-rank"])]
    assert "rises from {:.3f} to {:.3f} and falls to {:.3f}".format(*losses) in CARD
