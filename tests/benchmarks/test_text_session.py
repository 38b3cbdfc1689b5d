"""A session of `text`: parts end at their limits, what is done is not done again, and results travel in few files."""

from __future__ import annotations

import json
import tarfile
import threading
import time

from benchmarks import text_session
from benchmarks.text_session import PIECE, Part, Session, joined

SLEEP = ("timeit", "-n", "1", "-r", "1", "import time; time.sleep(60)")
GOOD = ("json.tool", "--help")


def ends(session: Session) -> dict[str, str]:
    found = json.loads((session.folder / "session.json").read_text())
    return {name: part["end"] for name, part in found.items()}


def test_parts_end_at_their_limits_and_done_ones_are_left_out(tmp_path):
    session = Session(tmp_path / "text", None, 60)
    began = time.monotonic()
    assert session.run(Part("good", GOOD, 30))
    assert not session.run(Part("bad", ("json.tool", "/no/such/file"), 30))
    assert not session.run(Part("long", SLEEP, 1.5))
    assert time.monotonic() - began < 40
    assert ends(session) == {"good": "done", "bad": "failed with 2", "long": "time over"}
    assert "No such file" in (session.folder / "bad.log").read_text()
    made = tmp_path / "made"
    made.touch()
    again = Session(tmp_path / "text", None, 0)  # no time is left: only what is done counts
    again.lane([Part("good", GOOD, 30), Part("made before", SLEEP, 30, made), Part("long", SLEEP, 30)])
    assert ends(again) == {"long": "no time"}


def test_a_part_that_the_end_of_the_session_cut_is_not_done(tmp_path, monkeypatch):
    """It ends by itself, told how long it has, so only the time says so, or a file that is made at the end."""
    monkeypatch.setattr(text_session, "RESERVE", 3.0)
    sleeps = ("timeit", "-n", "1", "-r", "1", "-s", "import time", "time.sleep({soft})")
    short = Part("short", ("timeit", "-n", "1", "-r", "1", "-s", "'{soft}'", "pass"), 60)
    session = Session(tmp_path / "text", None, 8)
    unmade = Part("unmade", GOOD, 60, tmp_path / "complete")
    assert (session.run(short), session.run(unmade)) == (True, False)
    assert not session.run(Part("cut", sleeps, 60))
    assert ends(session) == {"short": "done", "unmade": "time over", "cut": "time over"}


def test_a_part_without_a_row_in_its_table_is_not_done(tmp_path):
    table = tmp_path / "table.csv"
    session, part = Session(tmp_path / "text", None, 60), Part("table", GOOD, 30, table=table)
    assert not session.run(part)
    table.write_text("a,b\n")
    assert not session.run(part)
    assert ends(session) == {"table": "no row"}
    table.write_text("a,b\n1,2\n")
    assert session.run(part)


def test_a_session_that_is_stopped_ends_its_parts_and_begins_none(tmp_path):
    session = Session(tmp_path / "text", tmp_path / "results", 60)
    threading.Timer(1.5, session.stop).start()
    began = time.monotonic()
    session.lane([Part("long", SLEEP, 50), Part("next", GOOD, 50)])
    assert time.monotonic() - began < 20
    assert ends(session) == {"long": "time over", "next": "no time"}
    with tarfile.open(tmp_path / "results" / "results.tar.gz") as archive:
        assert {"long.log", "session.json"} <= set(archive.getnames())


def test_results_are_packed_after_each_part_in_few_files(tmp_path):
    out, results = tmp_path / "text", tmp_path / "results"
    session = Session(out, results, 60)
    weights = bytes(range(256)) * (PIECE // 256) + b"end"
    (out / "full.safetensors").write_bytes(weights)
    (out / "low-rank.safetensors").write_bytes(b"factors")
    (session.folder / "text_modes.csv").write_text("a\n1\n")
    session.run(Part("good", GOOD, 30))
    assert {path.name for path in results.iterdir()} == {
        "results.tar.gz", "session.json", "full.safetensors.0", "full.safetensors.1", "low-rank.safetensors.0",
    }  # fmt: skip
    with tarfile.open(results / "results.tar.gz") as archive:
        assert {"text_modes.csv", "good.log", "session.json"} <= set(archive.getnames())
    pieces = [results / "full.safetensors.0", results / "full.safetensors.1"]
    assert joined(pieces, tmp_path / "whole").read_bytes() == weights
    assert joined(pieces[:1], tmp_path / "other") == pieces[0]
