"""What `make docs` builds the site from: the Markdown files, what they link, and a reference of the public names.

Pages keep their paths in the repository, so that a link works on the site as it does in a checkout.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "shoal/shop/model/README.md",
    "benchmarks/results/text_samples.md",
)
"""Pages outside of docs/."""
ICON = "runtime/http/playground/icon.svg"
_FIRST = ("Engine", "SamplingParams", "EngineConfig", "RequestOutput", "Conversation")
_LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^)\s#]+)(#[^)\s]*)?\)")
_ENGINE = """# Engine

Every name here is one of `shoal`: `import shoal`, then `shoal.Engine`.
"""
_PROGRAMS = """# Programs

Every name here is one of `shoal` and of `shoal.frontend`, which loads neither torch nor triton.
[Programs](../frontend.md) explains the language.
"""


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """The files of the site, by their paths in the repository."""
    pages = [*PAGES, *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").glob("*.md")))]
    linked = {ICON, *(target for page in pages for target in _linked_files(page))} - set(pages)
    named = [File.generated(config, name, abs_src_path=str(ROOT / name)) for name in (*pages, *sorted(linked))]
    made = {"docs/reference/engine.md": _reference(_ENGINE, engine_names()),
            "docs/reference/programs.md": _reference(_PROGRAMS, program_names())}  # fmt: skip
    theme = [file for file in files if file.src_dir != config.docs_dir]
    return Files([*theme, *named, *(File.generated(config, name, content=text) for name, text in made.items())])


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The text of a page, without its links to folders: a site has none to show."""
    here = (ROOT / page.file.src_uri).parent

    def kept(match: re.Match[str]) -> str:
        words, target, _ = match.groups()
        return words[1:-1] if "://" not in target and (here / target).is_dir() else match[0]

    return _LINK.sub(kept, markdown)


def _linked_files(page: str) -> Iterator[str]:
    """Files that a page links or shows, relative to the root."""
    path = ROOT / page
    for _, target, _ in _LINK.findall(path.read_text(encoding="utf-8")):
        found = path.parent.joinpath(target).resolve()
        if "://" not in target and found.is_file():
            yield found.relative_to(ROOT).as_posix()


def engine_names() -> dict[str, str]:
    """Public names that are not of the frontend, each with the module that defines it."""
    for node in ast.parse((ROOT / "shoal/__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOME":
            return {name: f"shoal.{module}" for name, module in ast.literal_eval(node.value).items()}
    raise LookupError("shoal/__init__.py has no _HOME")


def program_names() -> dict[str, str]:
    """Public names of the frontend, each with the module that defines it."""
    tree = ast.parse((ROOT / "frontend/__init__.py").read_text(encoding="utf-8"))
    return {
        alias.name: f"shoal.frontend.{node.module}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }


def _reference(head: str, names: dict[str, str]) -> str:
    """A page with the docstring of each name: the most used ones and functions first, errors last."""

    def order(name: str) -> tuple[bool, int, bool, str]:
        first = _FIRST.index(name) if name in _FIRST else len(_FIRST)
        return name.endswith("Error"), first, name[0].isupper(), name

    options = "    options:\n      heading: {0}\n      toc_label: {0}\n"
    return "\n".join(
        [head, *(f"::: {names[name]}.{name}\n{options.format(name)}" for name in sorted(names, key=order))]
    )
