"""The report of tests on a GPU: what it says of a file of tests that is cut off. Needs no GPU."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TESTS = """
import os, pytest

def test_that_passes(): pass

def test_that_fails(): assert 1 + 1 == 3

def test_that_is_skipped(): pytest.skip("no reason")

@pytest.fixture
def broken():
    yield
    raise RuntimeError("broken afterwards")

def test_whose_end_fails(broken): pass

def test_that_takes_the_process_with_it():
    if os.environ.get("DEADLY"):
        os.kill(os.getpid(), 9)
"""
CODE = """
import json, sys
from pathlib import Path
sys.path.insert(0, {here!r})
import gpu_report
print(json.dumps(gpu_report.run(Path({file!r}), 1, 100, Path({progress!r}))))
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("deadly", [False, True])
def test_what_ran_is_in_the_report_even_when_the_tests_are_killed(tmp_path, deadly):
    (tmp_path / "test_some.py").write_text(TESTS)
    progress = tmp_path / "report.jsonl"
    progress.write_text(json.dumps({"test": "earlier", "outcome": "passed", "seconds": 1}) + '\n{"test": "half')
    progress.write_text(progress.read_text() + "\n")
    code = CODE.format(here=str(HERE), file=str(tmp_path / "test_some.py"), progress=str(progress))
    environment = os.environ | ({"DEADLY": "1"} if deadly else {})
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["tests"], result["passed"], result["skipped"]) == ((4, 1, 1) if deadly else (5, 2, 1))
    assert set(result["failures"]) == {"test_that_fails", "test_whose_end_fails"}
    assert "1 + 1" in result["failures"]["test_that_fails"]
    assert "broken afterwards" in result["failures"]["test_whose_end_fails"]
    assert ("error" in result) == deadly
    if deadly:
        assert result["error"].startswith("pytest ended with status -9")
