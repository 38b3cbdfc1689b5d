"""The throughput benchmark on a tiny model: which rows there are, and where it says that the time went."""

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import throughput
from benchmarks.table import Table
from benchmarks.throughput import Case, run

from ..runtime.tiny import make_engine, worker_of, write_model
from ..runtime.worker.cuda_path import cuda_executor

ROOT = Path(__file__).parents[2]


def test_it_runs_as_a_program_and_keeps_its_rows(tmp_path):
    out = tmp_path / "rows.csv"
    command = [sys.executable, "benchmarks/throughput.py", "--device", "cpu", "--shapes", "tiny", "--out", str(out)]
    subprocess.run([*command, "--commit", "abc"], cwd=ROOT, check=True, capture_output=True, timeout=250)
    rows = list(csv.DictReader(out.open()))
    seen = [(row["variant"], row["interval"], row["requests"]) for row in rows]
    assert seen == [
        ("dual", "0", "batch"), ("bicache", "16", "cold"), ("bicache", "16", "hits"), ("bicache", "0", "cold"),
        ("bicache", "0", "hits"), ("none", "0", "batch"), ("interval", "16", "batch"),
    ]  # fmt: skip
    by_name = dict(zip(seen, rows, strict=True))
    assert by_name["bicache", "16", "hits"]["prefix_refreshes"] == "2.0"
    assert by_name["bicache", "0", "hits"]["prefix_refreshes"] == "1.0"
    assert int(by_name["bicache", "0", "hits"]["cached_tokens"]) == 64  # 128, less a margin of 16, in whole pages
    layers = {name[:2]: int(row["computed_token_layers"]) for name, row in by_name.items()}
    assert layers["bicache", "0"] < layers["bicache", "16"] < layers["dual", "0"] < layers["none", "0"]
    assert layers["interval", "16"] < layers["dual", "0"]
    for row in rows:
        assert float(row["tokens_per_s"]) > 0
        assert row["commit"] == "abc"
        assert row["command"].endswith(f"--out {out} --commit abc")


def test_the_first_cases_are_those_that_claims_rest_on():
    cases = list(throughput.cases("llada-8b", quick=False))
    assert cases == list(dict.fromkeys(cases))
    named = [(case.variant, case.prefix, case.batch, case.interval) for case in cases]
    assert set(named[:6]) == {
        (*mode[:1], 2000, batch, mode[1])
        for mode in (("dual", 0), ("bicache", 16), ("bicache", 0))
        for batch in (1, 32)
    }
    assert all(case.batch == 32 for case in cases[6:15])
    assert ("none", 2000, 32, 0) in named[6:13]
    assert {variant for variant, *_ in named[13:15]} == {"interval", "shallow"}


@pytest.mark.parametrize("cuda", [False, True])
def test_a_refresh_and_the_steps_behind_it_are_told_apart(tmp_path, monkeypatch, cuda):
    monkeypatch.setattr(throughput, "BLOCK", 8)
    monkeypatch.setattr(throughput, "QUESTION", 5)
    folder = write_model(tmp_path, "llada")
    executor = cuda_executor if cuda else None
    with make_engine(folder, executor=executor, kv_cache_tokens=4096, max_steps_per_message=8) as engine:
        worker = worker_of(engine)
        before = worker.executor.run
        throughput.TRACE.clear()
        (row,) = run(engine, Case("tiny", "dual", 40, 2, 4, canvas=32))
        assert worker.executor.run == before
    (trace,) = throughput.TRACE
    forwards: Any = trace["forwards"]
    refreshes = [part for part in forwards if part[0] == "refresh"]
    steps = [part for part in forwards if part[0] == "step"]
    assert [part[1:3] for part in refreshes] == [(2, 1)] * 4
    assert sum(count for _, _, count, _ in steps) == 12
    assert row["measured_nfe"] == "16.0"
    assert 0 < float(str(row["in_refreshes_s"])) < float(str(row["seconds"]))
    assert 0 < float(str(row["in_block_steps_s"])) < float(str(row["seconds"]))


def test_kinds_of_forwards():
    item = throughput.ForwardItem
    assert throughput.kind(item("", 100, 132, 356, 100, 132, 100)) == "step"
    assert throughput.kind(item("", 99, 132, 356, 100, 132, 99)) == "step"
    assert throughput.kind(item("", 64, 356, 356, 324, 356, 64)) == "refresh"  # of the last block
    assert throughput.kind(item("", 64, 356, 356, 100, 132, 0, 4)) == "prefix refresh"


def test_a_table_is_on_disk_row_by_row_and_leaves_an_older_one_until_it_has_a_row(tmp_path):
    path = tmp_path / "some" / "table.csv"
    path.parent.mkdir()
    path.write_text("old\n")
    table = Table(path, {"commit": "abc"})
    assert path.read_text() == "old\n"
    table.add({"a": 1, "b": 2})
    assert path.read_text() == "a,b,commit\n1,2,abc\n"
    table.add({"b": 3})
    assert path.read_text() == "a,b,commit\n1,2,abc\n,3,abc\n"
    with pytest.raises(ValueError, match="fields not in fieldnames"):
        table.add({"c": 3})
    Table(None, {}).add({"a": 1})
