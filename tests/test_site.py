"""The documentation as a site: no warning, no dead link, nothing from elsewhere, every page and every public name."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

import shoal

ROOT = Path(__file__).resolve().parents[1]
NAMES = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")}
OTHERS = {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "shoal/shop/model/README.md",
          "benchmarks/results/text_samples.md"}  # fmt: skip
REFERENCE = {"docs/reference/engine.md", "docs/reference/programs.md"}
COUNTED = ("table", "tr", "li", "pre", "h1", "h2", "h3", "h4", "img", "blockquote")


class Parts(HTMLParser):
    """Elements of the article of a page, every place that the page names, and its ids."""

    def __init__(self, page: Path):
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self._inside = False
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self._inside |= tag == "article"
        if self._inside:
            self.counts[tag] += 1
        self.ids.add(found.get("id") or "")
        if tag == "a" and found.get("href"):
            self.links.append(found["href"] or "")
        for name in ("src", "href") if tag != "a" else ():
            if found.get(name):
                self.loaded.append(found[name] or "")

    def handle_endtag(self, tag: str) -> None:
        self._inside &= tag != "article"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site as `make docs` builds it; a warning is an error there."""
    folder: Path = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))
    return folder


def place(name: str) -> str:
    """Where a page of the repository lies on the site."""
    folder = name.removesuffix("README.md").removesuffix(".md").rstrip("/")
    return f"{folder}/index.html" if folder else "index.html"


@pytest.fixture(scope="module")
def pages(site) -> dict[str, Parts]:
    return {name: Parts(site / place(name)) for name in NAMES | OTHERS | REFERENCE}


def listed(nav: Any) -> Iterator[str]:
    for entry in nav:
        for value in entry.values():
            yield from listed(value) if isinstance(value, list) else [value]


def test_the_navigation_lists_every_page_once():
    names = list(listed(load_config(str(ROOT / "mkdocs.yml")).nav))
    assert sorted(names) == sorted(NAMES | OTHERS | REFERENCE)


def test_every_link_leads_to_a_file_and_an_id_of_the_site(site, pages):
    ids = {(site / place(name)).resolve(): page.ids for name, page in pages.items()}
    own = [(name, link) for name, page in pages.items() for link in (*page.links, *page.loaded) if "://" not in link]
    assert len(own) > 1000
    for name, link in own:
        here = (site / place(name)).resolve()
        target, _, fragment = link.partition("#")
        found = Path(os.path.normpath(here.parent / target)) if target else here
        found = found / "index.html" if found.is_dir() else found
        assert found.is_file(), (name, link)
        assert not fragment or fragment in ids[found], (name, link)


def test_the_site_loads_nothing_from_elsewhere(site, pages):
    assert {link for page in pages.values() for link in page.loaded if link.startswith(("http", "//"))} == set()
    styles = list(site.rglob("*.css"))
    assert styles
    assert [str(path) for path in styles if re.search(r"url\(['\"]?(https?:)?//", path.read_text("utf-8"))] == []


def test_pages_have_the_parts_that_they_have_on_github(pages):
    """Lists, tables and blocks of code are read alike: Python-Markdown wants blank lines where GitHub needs none."""
    reader = MarkdownIt("commonmark").enable("table")
    for name in NAMES | OTHERS:
        text = re.sub(r"\A---\n.*?\n---\n", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL)
        tokens = reader.parse(text)
        flat = [inner for token in tokens for inner in (token, *(token.children or []))]
        code = ("fence", "code_block")
        wanted = Counter("pre" if token.type in code else token.tag for token in flat if token.nesting >= 0)
        found = pages[name].counts
        assert {tag: found[tag] for tag in COUNTED} == {tag: wanted[tag] for tag in COUNTED}, name


def test_every_public_name_has_its_place_in_the_reference(pages):
    ids = pages["docs/reference/engine.md"].ids | pages["docs/reference/programs.md"].ids
    named = {one.rpartition(".")[2] for one in ids if one.startswith("shoal.")}
    assert set(shoal.__all__) - {"__version__"} - named == set()
    assert {"shoal.runtime.engine.engine.Engine.generate", "shoal.frontend.language.api.gen"} <= ids


def test_broken_links_stop_the_build(tmp_path, caplog):
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path))
    config.nav = ["docs/demo.md"]
    del config.plugins["mkdocstrings"]
    broken = ("nowhere.md", "engine.md#nowhere", "../benchmarks/missing.csv")
    words = "\n".join(f"[x]({link})" for link in broken)
    config.plugins.events["page_markdown"].append(lambda markdown, **_: f"{markdown}\n{words}")
    with pytest.raises(Abort, match="strict"):
        build(config)
    for link in broken:
        assert f"'{link}'" in caplog.text
