"""Paragraphs of prose out of HTML, manual pages, POD, dictionaries, plain text and the tagged Brown corpus."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import PurePath

_COMMON = frozenset(
    "the of and to a in is that for it as with be by on not he his are this or was have from at but which you an they "
    "we if can will their has one all when would who what there so her my been its may were no your than i she do any "
    "had only more some them such must our other these into out also then should how like where about over most very"
    .split()
)  # fmt: skip
_DROPPED = {"script", "style", "pre", "nav", "head", "svg", "table", "programlisting", "screen"}
_INLINE = {
    "a", "abbr", "acronym", "b", "bdi", "cite", "code", "dfn", "em", "emphasis", "filename", "font", "i", "kbd", "link",
    "literal", "mark", "q", "s", "samp", "small", "span", "strong", "sub", "sup", "tt", "u", "ulink", "var", "xref",
}  # fmt: skip
_MACRO = re.compile(r"\.(?:B|I|BR|IR|RB|BI|RI|IB|Nm|Fl|Ar|Xr|Pa)\s+(.*)")
_FONT = re.compile(r"\\f(?:[BIRP]|\(..)|\\&|\\/|\\,")
_ESCAPES = (("\\-", "-"), ("\\(aq", "'"), ("\\(lq", '"'), ("\\(rq", '"'), ("\\(em", "--"), ("\\e", "\\"))
_PUNCTUATION = set(" ,.;:'\"()-?!")


def is_prose(paragraph: str) -> bool:
    """Whether a paragraph reads like English sentences: length, common words, letters, an end."""
    words = paragraph.split()
    if len(paragraph) < 60 or len(words) < 10:
        return False
    common = sum(word.strip(".,;:()\"'").lower() in _COMMON for word in words) / len(words)
    plain = sum(c.isalpha() or c in _PUNCTUATION for c in paragraph) / len(paragraph)
    ascii_share = sum(c.isascii() for c in paragraph) / len(paragraph)
    ends = paragraph[-1] in ".?!:;\"')" or len(words) > 40
    return common >= 0.24 and plain >= 0.93 and ascii_share >= 0.97 and ends


class _Blocks(HTMLParser):
    """Text of block elements, without what is dropped."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[str] = [""]
        self._dropping: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _DROPPED:
            self._dropping.append(tag)
        if tag not in _INLINE:
            self.blocks.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _INLINE:
            self.blocks.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._dropping:
            del self._dropping[self._dropping.index(tag) :]
        if tag not in _INLINE:
            self.blocks.append("")

    def handle_data(self, data: str) -> None:
        if not self._dropping:
            self.blocks[-1] += data


def from_html(text: str) -> list[str]:
    """Block elements of HTML or DocBook; code, tables and navigation are left out."""
    parser = _Blocks()
    parser.feed(text)
    parser.close()
    return [part for block in parser.blocks for part in from_text(block)]


def from_text(text: str) -> list[str]:
    """Paragraphs between empty lines."""
    return [_joined(part) for part in re.split(r"\n\s*\n", text) if part.strip()]


def from_man(text: str) -> list[str]:
    """Running text of a manual page, font macros resolved."""
    paragraphs, lines = [], []
    for line in [*text.split("\n"), ".PP"]:
        if not line.startswith((".", "'")):
            lines.append(line)
        elif found := _MACRO.match(line):
            lines.append(found[1].replace('"', ""))
        elif lines:
            paragraphs.append(" ".join(lines))
            lines = []
    return [_joined(_unescaped(paragraph)) for paragraph in paragraphs]


def from_pod(text: str) -> list[str]:
    """Ordinary paragraphs of Perl's documentation."""
    text = re.sub(r"[A-Z]<+ ?([^<>]*?) ?>+", r"\1", text)
    return [_joined(part) for part in re.split(r"\n\s*\n", text) if part.strip() and part[0] not in "= \t"]


def from_dictionary(text: str) -> list[str]:
    """Entries of a dictd dictionary: a headword, and indented lines."""
    return [_joined(part) for part in re.split(r"\n\s*\n|\n(?=\S)", text) if part.strip()]


def from_brown(text: str) -> list[str]:
    """A file of the Brown corpus as published: `word/tag`, paragraphs between two empty lines."""
    paragraphs = []
    for part in re.split(r"\n\s*\n\s*\n", text):
        words = " ".join(word.rsplit("/", 1)[0] for word in part.split())
        words = re.sub(r"\s+([.,;:?!)\]])", r"\1", words)
        words = re.sub(r"([(\[])\s+", r"\1", words)
        words = words.replace("`` ", '"').replace(" ''", '"').replace("``", '"').replace("''", '"')
        words = re.sub(r"([;:?!])\1", r"\1", words).strip()
        if len(words) > 40:
            paragraphs.append(words)
    return paragraphs


def reader_of(path: PurePath) -> Callable[[str], list[str]] | None:
    """How a file of a documentation package is read, by its path; None: not at all."""
    name = path.name.lower().removesuffix(".gz").removesuffix(".dz")
    suffix = PurePath(name).suffix
    if re.match(r"(changelog|copyright|news|index|genindex|search|py-modindex|authors|credits|todo)\b", name):
        return None
    if any(re.fullmatch(r"[a-z]{2}([_-][A-Za-z]{2})?(\.UTF-8)?", part) and part[:2] != "en" for part in path.parts):
        return None  # a translation
    if suffix in (".html", ".htm", ".xhtml", ".page", ".xml", ".docbook"):
        return from_html
    if suffix == ".pod":
        return from_pod
    if re.search(r"/man/man\d/", path.as_posix()):
        return from_man
    if suffix == ".dict":
        return from_dictionary
    if suffix in (".txt", ".text", ".rst", ".md", ".org") or (not suffix and "doc" in path.parts):
        return from_text
    return None


def _joined(paragraph: str) -> str:
    return " ".join(paragraph.split())


def _unescaped(text: str) -> str:
    text = _FONT.sub("", text)
    for escape, plain in _ESCAPES:
        text = text.replace(escape, plain)
    return text
