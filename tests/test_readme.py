"""The README's examples run and say what their comments say; its numbers are those of the results; files exist."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "benchmarks" / "results"


def rows(name: str, **where: str) -> list[dict[str, str]]:
    """Rows of a results file whose columns have these values."""
    with (RESULTS / name).open(encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if all(row[key] == value for key, value in where.items())]


def test_the_first_example_runs():
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "17"
    assert re.fullmatch(r"apple, plum 48 8 \d+", lines[1])
    assert re.fullmatch(r'\{"price": 30\} 48 8 \d+', lines[2])
    assert "# 48 tokens of the list from the cache" in code
    assert lines[-1] == "42 + 17 = 59"


def test_the_program_runs():
    (code,) = [text for text in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "@function" in text]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.py"
        path.write_text(code, encoding="utf-8")
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, str(path)], capture_output=True, text=True, timeout=120, env=environment, check=False
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "['17', 'apple, plum']"


def test_the_table_of_text_holds_the_worst_ratio_of_each_task():
    where = {"capture": "first", "dtype": "bfloat16"}

    def worst(task: str, depth: str, column: str, pick: Callable[[list[float]], float]) -> float:
        return pick([float(row[column]) for row in rows("text_reuse.csv", task=task, depth=depth, **where)])

    lines = re.findall(r"^\| (\d+)\b[^|]*\|(.*)\|$", README.partition("layers of `text` reused")[2], re.MULTILINE)
    assert [depth for depth, _ in lines[:5]] == ["0", "4", "6", "8", "30"]
    for depth, line in lines[:5]:
        *shares, change = (cell.strip() for cell in line.split("|"))
        column, found_at = ("accuracy_none", "1") if depth == "0" else ("accuracy", depth)
        for task, share in zip(("look-up", "quote", "gap"), shares, strict=True):
            assert float(share) == round(worst(task, found_at, column, min), 3), (task, depth)
        if depth != "0":
            assert float(change) == round(worst("continuation", depth, "dnll", max), 3), depth


def test_linked_files_exist():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    local = [link for link in links if not link.startswith("https://")]
    assert len(local) > 8
    for link in local:
        assert (ROOT / link).exists(), link


def test_files_named_in_words_exist():
    named = set(re.findall(r"`((?:[\w.]+/)+[\w.]*)`", README))
    assert len(named) > 5
    for name in named:
        assert (ROOT / name).exists(), name


def test_the_demo_is_the_committed_run():
    printed = (ROOT / "docs/demo.txt").read_text(encoding="utf-8").splitlines()
    (shown,) = [block for block in re.findall(r"```\n(.*?)```", README, re.DOTALL) if "accuracy" in block]
    assert [line for line in shown.splitlines() if line and line not in printed] == []
    modes = json.loads((RESULTS / "demo.json").read_text(encoding="utf-8"))["modes"]
    for mode, figures in modes.items():
        (line,) = [line.split() for line in shown.splitlines() if line.split()[:1] == [mode]]
        ratios = [f"{figures[f'speedup_over_{base}']:.2f}" for base in ("none", "dual")]
        assert line[1] == f"{100 * figures['accuracy']:.1f}%"
        assert line[6:] == [f"{figures['seconds']:.1f}", str(figures["completion_tokens"]),
                            f"{figures['tokens_per_s']:.1f}", *ratios]  # fmt: skip


def test_throughput_on_a_gpu_is_that_of_the_table():
    tables = [
        line.split("|")[1:-1]
        for line in README.splitlines()
        if line.startswith(("| `none`", "| `dual`", "| `bicache`"))
    ]
    cells = [[cell.strip() for cell in line[1:]] for line in tables]
    wanted = []
    for variant, interval, requests in (
        ("none", "0", "batch"), ("dual", "0", "batch"), ("bicache", "16", "hits"), ("bicache", "0", "hits")
    ):  # fmt: skip
        found = [
            rows(
                "throughput.csv",
                shape="llada-8b",
                variant=variant,
                interval=interval,
                requests=requests,
                batch=batch,
                prefix="2000",
                nfe_per_block="8",
            )
            for batch in ("1", "32")
        ]
        wanted.append([f"{int(row['batch']) * int(row['canvas']) / float(row['seconds']):,.0f}" for (row,) in found])
    assert cells == wanted


def test_accuracy_of_shop_is_that_of_the_table():
    text = " ".join(README.split())
    found = {}
    for mode in ("none", "bicache", "lm"):
        found[mode], *more = rows("accuracy.csv", mode=mode, ratio="all", kind="all")
        assert more == []
    questions = int(found["none"]["questions"])
    assert found["bicache"]["agreement"] == "1.0"
    assert found["none"]["accuracy"] == found["bicache"]["accuracy"]
    assert f"On {questions:,} questions" in text
    assert f"{round(questions * float(found['bicache']['accuracy'])):,} of them right" in text
    assert f"right on {float(found['lm']['accuracy']):.3f} of them" in text


def test_other_numbers_are_those_of_the_tables():
    text = " ".join(README.split())
    (bicache,), (dual,) = (rows("serving.csv", mode=mode, rate="8.0") for mode in ("bicache", "dual"))
    assert f"{float(bicache['throughput']) / float(dual['throughput']):.1f} times the throughput of `dual`" in text
    (http,) = rows("pipeline.csv", measurement="http", streaming="False", metric="wall_per_request")
    assert f"{float(http['value']):.1f} ms for a request over HTTP" in text
    calls = {
        (row["system"], row["workload"]): float(row["value"])
        for row in rows("radix.csv", operation="match+insert", page_size="16")
    }
    gains = [calls["sglang-0.5.2", name] / value for (system, name), value in calls.items() if system == "shoal"]
    assert len(gains) == 4
    assert f"{min(gains):.1f} to {max(gains):.1f} times as fast at the same page size" in text
    (batch,) = rows("frontend.csv", part="batch", figure="throughput_over_best_calls")
    assert f"({float(batch['value']):.2f} of their throughput)" in text
