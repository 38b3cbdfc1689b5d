"""A session of limited time on a GPU: what is in the folder when a part, or the session itself, is killed."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from benchmarks.gpu_session import session
from benchmarks.gpu_session.parts import PARTS, Part
from benchmarks.gpu_session.session import Session

from .program import printed_by

ROOT = Path(__file__).parents[2]
WRITES = "open('{out}/rows.csv', 'a').write('row\\n')"
GOOD = Part("good", ("-c", WRITES), 60)
WAITS = "\nimport os, time\nparent = os.getppid()\nwhile os.getppid() == parent: time.sleep(0.1)"
"""As long as there is somebody to be killed by: no test leaves it behind."""
HANGS = Part("hangs", ("-c", WRITES + WAITS), 2)
BAD = Part("bad", ("-c", "print('went wrong'); raise SystemExit(3)"), 60)
NEEDY = Part("needy", ("-c", WRITES), 60, ("a_module_that_is_not_there",))


def summary(folder: Path) -> dict[str, dict[str, object]]:
    return {entry["part"]: entry for entry in json.loads((folder / "gpu_report.json").read_text())["parts"]}


def test_a_part_that_hangs_is_killed_and_the_others_run(tmp_path):
    archive = tmp_path / "all.tar.gz"
    assert not Session(tmp_path / "out", 5, "abc", {"hardware": "none"}, archive).run((HANGS, BAD, NEEDY, GOOD))
    parts = summary(tmp_path / "out")
    assert {name: entry["state"] for name, entry in parts.items()} == {
        "hangs": "killed", "bad": "failed", "needy": "skipped", "good": "done",
    }  # fmt: skip
    assert parts["hangs"]["why"] == "not done after 2 s"
    assert parts["bad"]["rc"] == 3
    assert parts["needy"]["why"] == "not installed: a_module_that_is_not_there"
    assert (tmp_path / "out" / "rows.csv").read_text() == "row\nrow\n"
    assert "went wrong" in (tmp_path / "out" / "gpu_report.log").read_text()
    with tarfile.open(archive) as tar:
        assert {"out/rows.csv", "out/gpu_report.json", "out/gpu_report.log"} <= set(tar.getnames())


def test_the_archive_is_made_while_a_part_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "PACK_EVERY", 0.1)
    archive = tmp_path / "all.tar.gz"
    code = f"{WRITES}; import os, time\nwhile not os.path.exists({str(archive)!r}): time.sleep(0.05)"
    assert Session(tmp_path / "out", 5, "abc", archive=archive).run((Part("waits", ("-c", code), 100),))


def test_what_the_session_imports_parts_import_too(tmp_path, monkeypatch):
    (tmp_path / "carried").mkdir()
    (tmp_path / "carried" / "a_carried_module.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "carried"))
    assert Session(tmp_path / "out", 5, "abc").run((Part("imports", ("-c", "import a_carried_module, shoal"), 100),))


def test_no_part_begins_without_time(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "LEAST", 3600.0)
    Session(tmp_path, 1, "abc").run((GOOD,))
    assert summary(tmp_path)["good"]["why"] == "no time was left"
    assert not (tmp_path / "rows.csv").exists()


@pytest.mark.parametrize(("number", "state"), [(signal.SIGTERM, "killed"), (signal.SIGKILL, "running")])
def test_a_session_that_is_killed_leaves_its_summary_and_what_was_measured(tmp_path, number, state):
    code = f"""
import signal
from pathlib import Path
from benchmarks import gpu_report
from benchmarks.gpu_session.session import ROOT
from tests.benchmarks.test_gpu_session import GOOD, HANGS
import dataclasses, sys
gpu_report.PARTS = (GOOD, dataclasses.replace(HANGS, seconds=60))
gpu_report.device_facts = lambda: {{"cuda": True}}
sys.argv = ["gpu_report", "--out", {str(tmp_path)!r}, "--minutes", "5", "--commit", "abc"]
sys.exit(gpu_report.main())
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=ROOT, start_new_session=True)
    rows = tmp_path / "rows.csv"
    deadline = time.monotonic() + 120
    while not (rows.exists() and rows.read_text() == "row\nrow\n"):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, number)
    status = process.wait(60)
    assert (status == 1) == (number == signal.SIGTERM)
    parts = summary(tmp_path)
    assert (parts["good"]["state"], parts["hangs"]["state"]) == ("done", state)
    assert "-c" in str(parts["hangs"]["command"])


def test_a_dry_run_shows_every_command_and_runs_none(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "benchmarks/gpu_report.py", "--out", str(out), "--minutes", "60", "--dry-run"]
    shown = subprocess.run([*command, "--skip", "server"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for part in PARTS:
        assert (f"{part.name}:" in shown) == (part.name != "server")
    assert not out.exists()
    for line in shown.splitlines():
        assert "{" not in line


def test_every_part_names_a_script_that_is_there_and_takes_its_options():
    known: dict[str, str] = {}
    for part in PARTS:
        script, *words = part.command(Path("out"), "abc", part.seconds)
        helped = known[script] = known.get(script) or printed_by(script, "--help")
        for word in words:
            if word.startswith("-"):
                assert word in helped, (part.name, word)
            elif word.startswith("tests/"):
                assert (ROOT / word).exists()
            elif word.startswith("check_"):
                assert (ROOT / "tests/triton" / word).exists()


def test_kernel_checks_of_the_session_are_all_there_are():
    words = next(part for part in PARTS if part.name == "kernel-checks").words
    assert {word for word in words if word.startswith("check_")} == {
        path.name for path in (ROOT / "tests/triton").glob("check_*.py")
    }
