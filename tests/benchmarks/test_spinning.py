"""What the processes are told whose speed is compared, and what is written."""

from __future__ import annotations

import csv
import subprocess
from types import SimpleNamespace

from benchmarks import spinning


def test_only_the_setting_in_question_reaches_the_process(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    monkeypatch.setenv("GOMP_SPINCOUNT", "3")
    told = []

    def run(command, env, **options):
        told.append((env.get("GOMP_SPINCOUNT"), env.get("OMP_WAIT_POLICY")))
        return SimpleNamespace(stdout="12.5\n")

    monkeypatch.setattr(subprocess, "run", run)
    assert [spinning.tokens_per_second(count) for count in ("default", "5000")] == [12.5, 12.5]
    assert told == [(None, None), ("5000", None)]


def test_every_setting_is_measured_in_every_round_and_neighbours_end(monkeypatch, tmp_path):
    started = []

    class Neighbour:
        def __init__(self, command):
            self.killed = False
            started.append(self)

        def kill(self):
            self.killed = True

    monkeypatch.setattr(spinning, "subprocess", SimpleNamespace(Popen=Neighbour))
    monkeypatch.setattr(spinning, "tokens_per_second", lambda count: 2.0)
    path = tmp_path / "spinning.csv"
    monkeypatch.setattr("sys.argv", ["spinning", "--out", str(path), "--busy", "0", "2", "--counts", "default", "7"])
    spinning.main()
    with path.open() as file:
        rows = [(row["round"], row["busy"], row["spin_count"], row["tokens_per_s"]) for row in csv.DictReader(file)]
    assert rows == [(r, b, c, "2.0") for r in "01" for b in "02" for c in ("default", "7")]
    assert [neighbour.killed for neighbour in started] == [True] * 4
