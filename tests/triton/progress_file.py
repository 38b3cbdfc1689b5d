"""A pytest plugin: one line of JSON for every test as soon as it has ended, in the file that SHOAL_TEST_PROGRESS names.

So what ran is known when the run is cut off. A test may have several lines (its body failed, then its teardown): one
that is not `passed` counts.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

VARIABLE = "SHOAL_TEST_PROGRESS"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note the body of a test, and what went wrong before and after it."""
    if report.when != "call" and report.outcome == "passed":
        return
    line = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 2)}
    if report.outcome != "passed":
        line["text"] = report.longreprtext[-1500:]
    with open(os.environ[VARIABLE], "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def outcomes(path: Path) -> dict[str, dict[str, object]]:
    """The last word on each test in a file of progress, by test; a line that was cut off is left out."""
    found: dict[str, dict[str, object]] = {}
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if line["test"] not in found or line["outcome"] != "passed":
            found[line["test"]] = line
    return found
