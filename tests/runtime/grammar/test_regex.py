"""Automata of regular expressions and of number ranges, against Python's own."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from shoal.runtime.grammar.automaton import MAX_STATES, Automaton
from shoal.runtime.grammar.characters import LAST, inverted, utf8
from shoal.runtime.grammar.errors import GrammarError
from shoal.runtime.grammar.expression import Listing, text
from shoal.runtime.grammar.numbers import integers, reals
from shoal.runtime.grammar.regex import whole

PATTERNS = [
    "", "a", "a|b", "ab*c", "a+?b?", "(a|b){2,3}", "(?:ab){0,2}c", "(?P<x>a)(?<y>b)", "[^ab]c", "[a-c]{2}",
    r"\d{1,2}[.]b", r"\w\s", r"[\d-]+", r"\x61\u0062", "^a.b$", "a{2}", "a{,2}", r"[\]a\\]", "(a*)*b", "é|ß|€|😀",
        "a{0}b",
]  # fmt: skip
ALPHABET = "abc1.- ]{},2\\éß€😀\n"


@pytest.mark.parametrize("pattern", PATTERNS)
def test_texts_match_as_in_python(pattern):
    automaton = Automaton.of(whole(pattern))
    own = re.compile(pattern.replace("(?<", "(?P<").replace("{,2}", r"\{,2\}"), re.ASCII)
    texts = ["".join(letters) for size in range(4) for letters in itertools.product(ALPHABET, repeat=size) if size < 3]
    rng = random.Random(0)
    texts += ["".join(rng.choices("abc1", k=rng.randint(3, 6))) for _ in range(300)] + ["a{,2}", "abab", "ababc"]
    for one in texts:
        assert automaton.accepts(one.encode()) == (own.fullmatch(one) is not None), one


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("(?=a)b", "not regular"), (r"(a)\1", r"\1"), (r"\bword", r"\b"), ("a(", "without its )"), ("a)",
         "without its ("),
        ("[ab", "without its ]"), ("*a", "nothing before"), ("a**", "quantifier behind"), ("a{3,2}", "below"),
        ("a{2000}", "1024"), ("x^", "^ inside"), ("$x", "$ inside"), ("(a$)b", "$ inside"), ("[b-a]", "no order"),
         ("[]a]", "empty [ ]"),
        ("\\", "nothing behind"), ("(?i)a", "sets flags"), (r"\x6", "hexadecimal"), ("a" * 5000, "4096"),
        ("[^\x00-\U0010ffff]", "no text satisfies"), ("(" * 60 + ")" * 60, "50 deep"),
        ("(a|b){1000}(c|d){1000}(a|b){1000}(.{1000}){5}", "too large"), (r"\p{L}", r"\p"),
    ],
)  # fmt: skip
def test_what_is_not_regular_or_too_large_is_refused_with_the_place(pattern, words):
    with pytest.raises(GrammarError) as caught:
        Automaton.of(whole(pattern))
    assert words in caught.value.reason
    assert MAX_STATES == 4096


@pytest.mark.parametrize("pattern", [".*a.{1000}", "(a?){1000}(b?){1000}", "((((a?){30}){30}){30}){30}", "(.?){1000}"])
def test_what_would_take_long_is_refused_soon(pattern):
    """Short expressions whose automata have large sets of parts: by a count of the work, not by a clock."""
    with pytest.raises(GrammarError, match="too large"):
        Automaton.of(whole(pattern))


def test_utf8_has_every_character_and_no_other_bytes():
    everything = Automaton.of(utf8([(0, LAST)]))
    for code in [*range(0x900), 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF, *random.Random(1).sample(range(LAST), 2000)]:
        if not 0xD800 <= code <= 0xDFFF:
            assert everything.accepts(chr(code).encode())
    for bad in (
        b"\x80",
        b"\xc0\x80",
        b"\xc1\xbf",
        b"\xe0\x80\x80",
        b"\xed\xa0\x80",
        b"\xf0\x80\x80\x80",
        b"\xf4\x90\x80\x80",
    ):
        assert not everything.accepts(bad)
    some = [(0x61, 0x7A), (0x7F0, 0x810), (0xFFF0, 0x10010)]
    inside, outside = Automaton.of(utf8(some)), Automaton.of(utf8(inverted(some)))
    for code in [*range(0x50, 0x90), *range(0x7E0, 0x820), *range(0xFFE0, 0x10020)]:
        is_in = any(low <= code <= high for low, high in some)
        assert inside.accepts(chr(code).encode()) == is_in != outside.accepts(chr(code).encode())


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 0), (0, 9), (3, 7), (-5, 5), (17, 1234), (-1234, -17), (99, 100), (-100, 1000), (None, 42), (-42, None), (800,
     None)],
)  # fmt: skip
def test_whole_numbers_in_a_range(low, high):
    automaton = Automaton.of(integers(low, high))
    for number in [*range(-1500, 1500), 10**14, -(10**14)]:
        expected = (low is None or number >= low) and (high is None or number <= high)
        assert automaton.accepts(str(number).encode()) == expected, number
    for wrong in (b"", b"-", b"01", b"-0", b"1.0", b"+1"):
        assert not automaton.accepts(wrong)


@pytest.mark.parametrize(
    ("low", "high", "above", "below"),
    [(0, 1, True, True), (0, 1, False, False), (-2, 3, True, False), (-3, -1, False, True), (5, None, True, False),
     (None, 0, False, True), (10, 12, True, True)],
)  # fmt: skip
def test_numbers_in_a_range(low, high, above, below):
    """Those that are taken lie in it, and near every bound some are taken."""
    automaton, taken = Automaton.of(reals(low, high, above, below)), []
    for hundredths in range(-400, 1400):
        for form in (f"{hundredths / 100:.2f}", f"{hundredths / 100:.1f}", str(hundredths // 100)):
            number = float(form)
            inside = (low is None or (number > low if above else number >= low)) and (
                high is None or (number < high if below else number <= high)
            )
            if automaton.accepts(form.encode()):
                assert inside, form
                taken.append(number)
            assert not inside or "-0." in form or automaton.accepts(form.encode()), form
    assert taken


def test_items_come_in_their_order_with_separators_between():
    listing = Automaton.of(Listing(((text("a"), False), (text("b"), True), (text("c"), False)), text(",")))
    taken = {
        ",".join(items) for size in range(4) for items in itertools.product("abc", repeat=size)
        if listing.accepts(",".join(items).encode())
    }  # fmt: skip
    assert taken == {"b", "a,b", "b,c", "a,b,c"}
