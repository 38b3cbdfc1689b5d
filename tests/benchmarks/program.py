"""Runs a script of benchmarks/ in this process: what it imports is loaded already."""

from __future__ import annotations

import contextlib
import io
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def printed_by(script: str, *words: str) -> str:
    """What `python SCRIPT WORDS` prints, with `script` relative to the root. Fails for an exit code that is not 0."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setattr(sys, "argv", [script, *words])
        patch.setattr(sys, "path", list(sys.path))
        patch.chdir(ROOT)
        code: object = 0
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as end:
            code = end.code
    assert not code, (script, code)
    return out.getvalue()
