"""The README's example runs and says what its comments say; files that it names exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_first_example_runs():
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "17"
    assert lines[1].startswith("apple, plum ")
    assert lines[2].startswith('{"price": 30} ')
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


def test_linked_files_exist():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    local = [link for link in links if not link.startswith("https://")]
    assert len(local) > 8
    for link in local:
        assert (ROOT / link).exists(), link
