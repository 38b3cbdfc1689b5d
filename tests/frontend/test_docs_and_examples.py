"""docs/frontend.md is run from top to bottom; every example runs and reports its saving."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if path.name != "common.py")


pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_document_runs():
    pytest.importorskip("sglang")
    text = (ROOT / "docs/frontend.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 12
    assert sum(block.count("assert ") for block in blocks) >= 20
    namespace: dict[str, object] = {"__name__": "docs"}
    for block in blocks:
        line = text[: text.index(block)].count("\n")
        exec(compile("\n" * line + block, "docs/frontend.md", "exec"), namespace)


def test_every_construct_is_in_the_document():
    import shoal.frontend

    text = (ROOT / "docs/frontend.md").read_text(encoding="utf-8")
    alike = {f"{role}_{end}" for role in ("system", "user", "assistant") for end in ("begin", "end")}
    names = vars(shoal.frontend)["__all__"]
    not_constructs = {name for name in names if name[0].isupper()} | alike
    missing = [name for name in names if name not in not_constructs and name not in text]
    assert missing == ["gen_string"]


def test_there_are_six_examples():
    assert len(EXAMPLES) == 6


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run_and_print_their_saving(path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(path)])
    monkeypatch.syspath_prepend(str(path.parent))
    runpy.run_path(str(path), run_name="__main__")
    out = capsys.readouterr().out
    reused, saved = re.findall(
        r"cache: .*?; ([\d,]+) of [\d,]+ prompt tokens reused, ([\d,]+) token-layers saved", out
    )[0]
    assert int(reused.replace(",", "")) > 0
    assert int(saved.replace(",", "")) > 0
    assert "does not add up" not in out


def test_an_example_runs_on_a_server(server, capsys, monkeypatch):
    path = ROOT / "examples/holes.py"
    monkeypatch.setattr(sys, "argv", [str(path), server.url])
    monkeypatch.syspath_prepend(str(path.parent))
    runpy.run_path(str(path), run_name="__main__")
    first, _, second, _ = capsys.readouterr().out.splitlines()
    assert (
        first.removeprefix("one_by_one").split(":")[0].strip() == second.removeprefix("together").split(":")[0].strip()
    )
