"""Prose out of packages."""

from __future__ import annotations

import gzip
import shutil
import subprocess
from pathlib import PurePath

import pytest

from shoal.text import documents, extract
from shoal.text.corpus import is_held_out, read_documents

PROSE = "The reader of this page will find that it is written in plain words, and that most of them are common ones."


def test_prose_is_told_from_code_lists_and_other_languages():
    assert extract.is_prose(PROSE)
    assert not extract.is_prose("int main(int argc, char **argv) { return printf(argv[0], a, b, c, d, e, f, g, h); }")
    assert not extract.is_prose("Der Leser dieser Seite wird finden, dass sie in einfachen Worten geschrieben ist, ja.")
    assert not extract.is_prose("Too short to tell.")


def test_html_loses_code_tables_and_navigation_and_keeps_inline_markup_in_its_sentence():
    page = f"<html><head><title>T</title></head><body><nav>Up</nav><p>One <b>two</b> <a href='x'>three</a>.</p><pre>x = 1\n\ny</pre><p>{PROSE}</p><table><tr><td>no</td></tr></table></body></html>"  # noqa: E501
    assert extract.from_html(page) == ["One two three.", PROSE]


def test_manual_pages_lose_their_macros():
    page = (
        ".TH X 1\n.SH NAME\n.B grep\nprints lines \\fBthat\\fR match \\(em or not.\n.PP\nA second \\-\\- paragraph.\n"
    )
    assert extract.from_man(page) == ["grep prints lines that match -- or not.", "A second -- paragraph."]


def test_pod_and_dictionaries_and_brown():
    assert extract.from_pod("=head1 NAME\n\nUse C<print> or L<say> here.\n\n  code();\n") == ["Use print or say here."]
    assert extract.from_dictionary("alpha\n   the first\n   letter\nbeta\n   the second\n") == [
        "alpha the first letter", "beta the second"
    ]  # fmt: skip
    tagged = "The/at jury/nn said/vbd ``/`` no/rb ''/'' (/( it/pps was/bedz late/jj )/) ,/, indeed/rb ;/. ;/."
    assert extract.from_brown(tagged) == ['The jury said "no" (it was late), indeed;']


@pytest.mark.parametrize(
    ("path", "reader"),
    [
        ("/usr/share/doc/x/html/page.html", extract.from_html),
        ("/usr/share/man/man3/printf.3.gz", extract.from_man),
        ("/usr/share/perl/perlfunc.pod", extract.from_pod),
        ("/usr/share/dictd/foldoc.dict.dz", extract.from_dictionary),
        ("/usr/share/doc/x/README", extract.from_text),
        ("/usr/share/doc/x/notes.txt.gz", extract.from_text),
        ("/usr/share/doc/x/changelog.Debian.gz", None),
        ("/usr/share/man/de/man1/ls.1.gz", None),
        ("/usr/share/help/pt_BR/page.html", None),
        ("/usr/bin/x", None),
    ],
)
def test_how_a_file_is_read(path, reader):
    assert extract.reader_of(PurePath(path)) is reader


def test_a_paragraph_stays_only_where_it_comes_first():
    long = PROSE * 20
    found = list(documents.without_repetition([("a", [long, PROSE]), ("b", [PROSE.upper()]), ("c", [long + " More."])]))
    assert [name for name, _ in found] == ["a", "c"]
    assert found[0][1] == long + "\n\n" + PROSE


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="makes and opens a Debian package")
def test_documents_of_a_package_and_of_brown(tmp_path):
    root = tmp_path / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        "Package: tiny-doc\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n"
    )
    doc = root / "usr" / "share" / "doc" / "tiny-doc"
    doc.mkdir(parents=True)
    pages = [f"Number {word} of these pages is here, and it is said that it has some text of its own to be read. " * 4
             for word in ("one", "two", "three", "four")]  # fmt: skip
    (doc / "guide.txt.gz").write_bytes(gzip.compress("\n\n".join(pages).encode()))
    (doc / "copyright").write_text(PROSE * 20)
    subprocess.run(["dpkg-deb", "-b", root, tmp_path / "tiny-doc_1_all.deb"], check=True, stdout=subprocess.DEVNULL)
    brown = tmp_path / "brown"
    brown.mkdir()
    (brown / "ca01").write_text("\n\n\n".join(" ".join(f"{w}/x" for w in (PROSE + str(i)).split()) for i in range(20)))
    (brown / "README").write_text("not a text of the corpus")
    out = tmp_path / "documents.jsonl.xz"
    documents.main(["--debs", str(tmp_path / "tiny-doc_1_all.deb"), "--brown", str(brown), "--out", str(out)])
    found = dict(read_documents(out))
    assert list(found) == ["brown:ca01", "tiny-doc:/usr/share/doc/tiny-doc/guide.txt.gz"]
    assert found["brown:ca01"].startswith(PROSE)


def test_about_half_of_brown_and_a_33rd_of_the_rest_are_held_out():
    assert 200 < sum(is_held_out(f"brown:c{i}") for i in range(500)) < 300
    assert 60 < sum(is_held_out(f"perl-doc:{i}") for i in range(3300)) < 140
