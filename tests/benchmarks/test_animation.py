"""The animated picture: well-formed, small, and it shows what was recorded; the committed one too."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from benchmarks.animation import Recorded, draw

PICTURE = Path(__file__).parents[2] / "docs" / "denoising.svg"
SVG = "{http://www.w3.org/2000/svg}"
MOST_BYTES = 2_000_000


def recorded(cut: int, depth: int) -> Recorded:
    texts = ("17", "<", "", "<|eos|>")
    return Recorded("What <is> it?", texts, (2, 1, 0, 3), (0.9, None, None, 0.5), 40, cut, depth, 16)


def cells(picture: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in picture.iter(f"{SVG}text") if text.get("class") == "cell"]


def test_it_shows_tokens_at_their_passes_and_what_came_from_the_cache():
    picture = ElementTree.fromstring(draw([recorded(0, 0), recorded(20, 8)], "here & now"))
    assert cells(picture) == ["17", "<", "·"] * 2
    words = ["".join(text.itertext()) for text in picture.iter(f"{SVG}text")]
    assert "1. What <is> it?" in words
    assert "all 40 prompt tokens are read" in words
    assert "20 of 40 tokens, 8 of 16 layers deep, from the cache: 25% not read again" in words
    moments = [
        [float(time) for time in animation.attrib["keyTimes"].split(";")] for animation in picture.iter(f"{SVG}animate")
    ]
    assert all(times == sorted(times) and times[-1] == 1 for times in moments)


def test_the_committed_picture_is_one_of_these_and_small():
    picture = ElementTree.fromstring(PICTURE.read_text(encoding="utf-8"))
    assert PICTURE.stat().st_size < MOST_BYTES
    assert "59" in "".join(cells(picture))
    assert "python benchmarks/animation.py" in (picture.findtext(f"{SVG}desc") or "")
