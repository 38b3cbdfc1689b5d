"""`shoal bench`: it lists what there is, and runs it with its own options."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shoal.bench import benchmarks, run
from shoal.runtime.errors import ConfigError

ROOT = Path(__file__).parents[2]


def test_every_benchmark_with_a_command_line_is_listed_in_words():
    found = benchmarks()
    assert {"serving", "throughput", "denoising"} <= set(found)
    assert not any(name.startswith("plot_") for name in found)
    assert all(words.endswith((".", "?")) for words in found.values()), found


def test_one_is_run_by_name_with_its_options_and_exit_code(tmp_path):
    (tmp_path / "benchmarks").mkdir()
    source = '"""Fails."""\nimport sys\n\nif __name__ == "__main__":\n    sys.exit(len(sys.argv))\n'
    (tmp_path / "benchmarks" / "fails.py").write_text(source)
    assert benchmarks(tmp_path) == {"fails": "Fails."}
    assert run("fails", ["--a", "b"], tmp_path) == 3


def test_unknown_names_and_missing_checkouts_are_told(tmp_path):
    with pytest.raises(ConfigError, match="did you mean serving"):
        run("servin", [])
    with pytest.raises(ConfigError, match="part of the repository"):
        benchmarks(tmp_path)


@pytest.mark.slow
def test_the_command_lists_them():
    command = [sys.executable, "-m", "shoal", "bench"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in shown.splitlines()] == list(benchmarks())
