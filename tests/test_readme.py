"""The examples of README.md and docs/engine.md run and print what they say; numbers are those of the results."""

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

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ENGINE = (ROOT / "docs/engine.md").read_text(encoding="utf-8")
DEMO = (ROOT / "docs/demo.md").read_text(encoding="utf-8")
RESULTS_PAGE = (ROOT / "docs/results.md").read_text(encoding="utf-8")
RESULTS = ROOT / "benchmarks" / "results"


def rows(name: str, **where: str) -> list[dict[str, str]]:
    """Rows of a results file whose columns have these values."""
    with (RESULTS / name).open(encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if all(row[key] == value for key, value in where.items())]


def printed_by(page: str) -> tuple[str, list[str]]:
    """The first example of a page, and the lines that it prints."""
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return code, done.stdout.splitlines()


def test_the_example_runs():
    code, lines = printed_by(README)
    assert lines == ["17 0", "apple, plum 48"]
    assert "# 17 0, then: apple, plum 48 (48 tokens of the list from the cache)" in code


def test_the_engine_s_example_runs():
    code, lines = printed_by(ENGINE)
    assert lines[0] == "17"
    assert re.fullmatch(r"apple, plum 48 8 \d+", lines[1])
    assert re.fullmatch(r'\{"price": 30\} 48 8 \d+', lines[2])
    assert "# 48 tokens of the list from the cache" in code
    assert lines[-1] == "42 + 17 = 59"


def test_the_program_runs():
    (code,) = [text for text in re.findall(r"```python\n(.*?)```", ENGINE, re.DOTALL) if "@function" in text]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.py"
        path.write_text(code, encoding="utf-8")
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, str(path)], capture_output=True, text=True, timeout=120, env=environment, check=False
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "['17', 'apple, plum']"


def test_the_demo_is_the_committed_run():
    printed = (ROOT / "docs/demo.txt").read_text(encoding="utf-8").splitlines()
    (shown,) = [block for block in re.findall(r"```\n(.*?)```", DEMO, re.DOTALL) if "accuracy" in block]
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


def test_windows_and_fp8_are_those_of_their_tables():
    for file in ("throughput_schedules.csv", "throughput_schedules_fp8.csv"):
        (line,) = [line for line in README.splitlines() if line.startswith("| + ") and f"[{file}]" in line]
        found = [
            rows(file, variant="bicache", window="32", schedule="settled", requests="hits", batch=batch)
            for batch in ("1", "32")
        ]
        assert [cell.strip() for cell in line.split("|")[2:4]] == [
            f"{float(row['tokens_per_s']):,.0f}" for (row,) in found
        ]


def test_answers_of_text_through_the_engine_are_those_of_the_table():
    modes = (("bicache", "6", "bfloat16"), ("dual", "", "bfloat16"), ("none", "", "float32"))
    found = [
        rows("text_modes.csv", task="look-up", ratio="0.7", mode=mode, depth=depth, dtype=dtype)
        for mode, depth, dtype in modes
    ]
    depth_6, dual, none = (float(row["accuracy"]) for (row,) in found)
    assert f"gives {depth_6:.3f} of the look-ups right, `dual` {dual:.3f} and `none` {none + 1e-5:.3f}" in README


def value(file: str) -> str:
    """The middle cell of the README's row about a results file."""
    (line,) = [
        line for line in README.splitlines() if line.startswith("|") and line.count("|") == 4 and f"[{file}]" in line
    ]
    return line.split("|")[2].strip()


def worst_ratio(task: str, depth: str, column: str, pick: Callable[[list[float]], float]) -> float:
    found = rows("text_reuse.csv", task=task, depth=depth, capture="first", dtype="bfloat16")
    return pick([float(row[column]) for row in found])


@pytest.mark.parametrize(
    ("page", "heading", "depths", "tasks"),
    [
        ("README.md", "layers of `text` reused", ["0", "6", "8", "30"], ["look-up"]),
        (
            "docs/text.md", "layers reused", ["0", "4", "6", "8", "12", "16", "30"],
            ["look-up", "quote", "gap", "classify"],
        ),
    ],
)  # fmt: skip
def test_the_tables_of_text_hold_the_worst_ratio_of_each_task(page, heading, depths, tasks):
    after = (ROOT / page).read_text(encoding="utf-8").partition(f"| {heading}")[2]
    lines = re.findall(r"^\| (\d+)\b[^|]*\|(.*)\|$", after, re.MULTILINE)[: len(depths)]
    assert [depth for depth, _ in lines] == depths
    for depth, line in lines:
        cells = [cell.strip() for cell in line.split("|")]
        column, found_at = ("accuracy_none", "1") if depth == "0" else ("accuracy", depth)
        for task, share in zip(tasks, cells, strict=False):
            assert float(share) == round(worst_ratio(task, found_at, column, min), 3), (task, depth)
        change = cells[len(tasks)]
        if depth != "0":
            assert float(change) == round(worst_ratio("continuation", depth, "dnll", max), 3), depth


def test_accuracy_of_shop_is_that_of_the_table():
    found = {}
    for mode in ("none", "bicache", "lm"):
        found[mode], *more = rows("accuracy.csv", mode=mode, ratio="all", kind="all")
        assert more == []
    questions = int(found["none"]["questions"])
    assert found["bicache"]["agreement"] == "1.0"
    right = [f"{round(questions * float(found[mode]['accuracy'])):,}" for mode in ("none", "bicache")]
    assert f"right answers to {questions:,} questions" in README
    wanted = (
        f"`none` {right[0]}, `bicache` {right[1]} (the same answers), `lm` {float(found['lm']['accuracy']):.3f} of them"
    )
    assert value("accuracy.csv") == wanted


def test_other_numbers_are_those_of_the_tables():
    (bicache,), (dual,) = (rows("serving.csv", mode=mode, rate="8.0") for mode in ("bicache", "dual"))
    assert value("serving.csv") == f"{float(bicache['throughput']) / float(dual['throughput']):.1f}"
    (http,) = rows("pipeline.csv", measurement="http", streaming="False", metric="wall_per_request")
    assert value("pipeline.csv") == f"{float(http['value']):.1f} ms"
    calls = {
        (row["system"], row["workload"]): float(row["value"])
        for row in rows("radix.csv", operation="match+insert", page_size="16")
    }
    gains = [calls["sglang-0.5.2", name] / seconds for (system, name), seconds in calls.items() if system == "shoal"]
    assert len(gains) == 4
    assert value("radix.csv") == f"{min(gains):.1f} to {max(gains):.1f} times as fast"
    (batch,) = rows("frontend.csv", part="batch", figure="throughput_over_best_calls")
    assert f"({float(batch['value']):.2f} of their throughput)" in RESULTS_PAGE
    (watched,) = rows("denoising.csv", worker="null", mode="ratio")
    assert f"{float(watched['tokens_per_s']):.2f} of the throughput of plain ones" in RESULTS_PAGE


def test_every_result_is_on_the_page_of_results():
    linked = set(re.findall(r"\]\(\.\./benchmarks/results/([^)]+)\)", RESULTS_PAGE))
    files = {path.relative_to(RESULTS).as_posix() for path in RESULTS.rglob("*") if path.is_file()}
    tables = {
        name for name in files if name.endswith((".csv", ".jsonl")) or ("/" not in name and name.endswith(".json"))
    }
    assert len(tables) > 20
    assert tables - linked == set()


def git(*words: str) -> str:
    """What a git command prints; skips where it fails, as outside of a checkout."""
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return done.stdout.strip()


def test_results_name_commits_of_this_history_and_no_folder_of_a_machine():
    if git("rev-parse", "--is-shallow-repository") == "true":
        pytest.skip("a checkout without history")
    history = git("rev-list", "HEAD").split()
    unknown: dict[str, str] = {}
    for path in (path for path in RESULTS.rglob("*") if path.suffix in (".csv", ".json")):
        name, text = path.relative_to(RESULTS).as_posix(), path.read_text(encoding="utf-8")
        assert not re.search(r"(^|[\s\"=])/(home|root|tmp|work|Users)/", text), name
        commits: set[str] = set()
        if path.suffix == ".csv":
            commits = {row.get("commit") or "" for row in csv.DictReader(text.splitlines())}
        elif isinstance(found := json.loads(text), dict):
            commits = {found.get("commit", "")}
        for commit in {part for value in commits for part in value.split("+") if part}:  # `a1b2c3d+`: with changes
            if not any(known.startswith(commit) for known in history):
                unknown[name] = commit
    assert unknown == {}
