"""The part of a page of docs/ between two marks, which a script writes."""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).parents[3] / "docs"
_BEGIN, _END = "<!-- tables: begin -->\n", "<!-- tables: end -->\n"


def split(page: str) -> tuple[str, str, str]:
    """The page before, between and after the marks, which belong to the outer two."""
    before, _, rest = (DOCS / page).read_text(encoding="utf-8").partition(_BEGIN)
    between, _, after = rest.partition(_END)
    return before + _BEGIN, between, _END + after


def write(page: str, tables: str) -> None:
    """Put `tables` between the marks."""
    before, _, after = split(page)
    (DOCS / page).write_text(before + tables + after, encoding="utf-8")
