"""Documents name and link files that exist, and headings that exist; their paragraphs are short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "CONTRIBUTING.md", ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
TOP = {path.name for path in ROOT.iterdir() if path.is_dir()}


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The fragments that GitHub gives the page's headings."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if "://" not in link]
    for link in links:
        name, _, fragment = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if fragment:
            assert fragment in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_named_in_words_exist(page):
    lines = [line for line in prose(page).splitlines() if "at commit" not in line]  # those name files of other commits
    named = {name for line in lines for name in re.findall(r"`((?:[\w.-]+/)+[\w.*-]*)`", line)}
    wrong = [name for name in named if name.split("/")[0] in TOP and not list(ROOT.glob(name.rstrip("/")))]
    wrong = [name for name in wrong if not name.startswith("out/") and "NAME" not in name]
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paragraphs_have_at_most_five_lines(page):
    other = re.compile(r"\s*(\||[*-] |\d+\. |<!--)")  # tables, lists, marks of generated parts
    plain = [part.strip() for part in prose(page).split("\n\n") if not other.match(part)]
    assert plain
    assert [part for part in plain if part.count("\n") > 4] == []


def test_files_and_headings_that_are_not_there_are_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A `title`, twice\n```\n# no heading\n```\n[x](#b) [y](z.md)\n", encoding="utf-8")
    assert anchors(page) == {"a-title-twice"}
    with pytest.raises(AssertionError, match="#b"):
        test_links_lead_somewhere(page)
    page.write_text("`docs/nothing.md`, `docs/` and `application/json`\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="nothing"):
        test_files_named_in_words_exist(page)


def test_recipes_name_files():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    recipes = re.findall(r"^## (Add .*?)\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    wanted = ["model family", "cache mode", "kernel", "eviction policy", "route"]
    assert [title for title, _ in recipes] == [f"Add a{'n' * (what[0] == 'e')} {what}" for what in wanted]
    for title, steps in recipes:
        named = re.findall(r"`([\w/]+\.py)`", steps)
        assert any(name.startswith("tests/") for name in named), title
        assert any(not name.startswith("tests/") for name in named), title
