"""The part of docs/serving.md between two marks, which a script writes."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "serving.md"


def split(name: str) -> tuple[str, str, str]:
    """The page before, between and after the marks of part `name`, which belong to the outer two."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    between, _, after = rest.partition(end)
    return before + begin, between, end + after


def write(name: str, tables: str) -> None:
    """Put `tables` between the marks."""
    before, _, after = split(name)
    PAGE.write_text(before + tables + after, encoding="utf-8")
