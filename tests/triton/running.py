"""Scripts and checks of Triton's kernels in processes of their own.

Triton decides when it is imported whether to interpret, and the rest of the suite must neither see that variable nor
have imported Triton the other way.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def run_checks(name: str, **variables: str) -> None:
    options = ["-p", "no:cacheprovider", "-W", "ignore::RuntimeWarning"]
    output = run(["-m", "pytest", *options, str(HERE / name)], **variables)
    tests = len(re.findall(r"^def test_", (HERE / name).read_text(), re.MULTILINE))
    summary = output.strip().splitlines()[-1]
    passed = re.match(r"(\d+) passed", summary)
    assert passed, summary
    assert int(passed[1]) >= tests, summary
    assert "skipped" not in summary


def run(arguments: list[str], **variables: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTEST_ADDOPTS", "TRITON_INTERPRET")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"} | variables
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, f"{done.stdout[-20000:]}\n{done.stderr[-5000:]}"
    return done.stdout
