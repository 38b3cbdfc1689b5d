"""Regular expressions of clients, as expressions over bytes.

Taken: literals, `.`, classes with ranges and \\d \\w \\s (ASCII, as in ECMA 262) and their opposites, escapes, groups
(named ones too), alternatives, and quantifiers (lazy and possessive ones match the same texts). Refused by name: what
is not regular, or has no meaning for a whole text: look-around, references, word boundaries, flags, anchors inside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from .characters import LAST, Ranges, inverted, merged, utf8
from .errors import GrammarError
from .expression import EMPTY, Choice, Expression, Repeat, Sequence

Encode = Callable[[Ranges], Expression]
MAX_LENGTH = 4096
"""Characters of a regular expression."""
MAX_REPEAT = 1024
_MAX_DEPTH = 50
_CLASSES: dict[str, Ranges] = {
    "d": [(0x30, 0x39)],
    "w": [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)],
    "s": [(0x09, 0x0D), (0x20, 0x20)],
}
_CONTROLS = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "0": 0}
_ANY = inverted([(10, 10)])
ANYTHING: Ranges = [(0, LAST)]


def whole(pattern: str, encode: Encode = utf8) -> Expression:
    """Texts that `pattern` matches from beginning to end. Raises GrammarError.

    `encode` spells one character of a set.
    """
    return _Parser(pattern, encode).parsed(None)


def inside(pattern: str, encode: Encode) -> Expression:
    """Texts in which `pattern` matches somewhere, as JSON Schema has it. Raises GrammarError."""
    return _Parser(pattern, encode).parsed(Repeat(encode(ANYTHING), 0, None))


class _Parser:
    def __init__(self, pattern: str, encode: Encode):
        if len(pattern) > MAX_LENGTH:
            raise GrammarError(f"it has {len(pattern)} characters; at most {MAX_LENGTH} are taken")
        self._text = pattern
        self._encode = encode
        self._at = 0
        self._depth = 0

    def parsed(self, around: Expression | None) -> Expression:
        """The whole pattern; `around` may stand on each side of an alternative that has no anchor there."""
        parts = [self._anchored(around)]
        while self._take("|"):
            parts.append(self._anchored(around))
        if self._at < len(self._text):
            self._refuse("a ) without its (")
        return Choice(tuple(parts))

    def _anchored(self, around: Expression | None) -> Expression:
        begins = self._take("^")
        parts = list(self._items())
        ends = self._take("$")
        if ends and self._peek() not in ("", "|"):
            self._refuse("$ inside of it")
        if around is not None:
            parts = [*([] if begins else [around]), *parts, *([] if ends else [around])]
        return Sequence(tuple(parts))

    def _alternatives(self) -> Expression:
        parts = [Sequence(tuple(self._items()))]
        while self._take("|"):
            parts.append(Sequence(tuple(self._items())))
        return Choice(tuple(parts))

    def _items(self) -> list[Expression]:
        parts: list[Expression] = []
        while self._peek() not in ("", "|", ")", "$"):
            parts.append(self._quantified(self._atom()))
        return parts

    def _atom(self) -> Expression:
        character = self._next()
        match character:
            case "(":
                return self._group()
            case "[":
                return self._encode(self._set())
            case ".":
                return self._encode(_ANY)
            case "\\":
                return self._encode(self._escape())
            case "^":
                self._refuse("^ inside of it")
            case "*" | "+" | "?":
                self._refuse(f"{character} with nothing before it")
        return self._encode([(ord(character), ord(character))])

    def _group(self) -> Expression:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            self._refuse(f"groups more than {_MAX_DEPTH} deep")
        if self._take("?"):
            if self._take("P<") or (self._peek() == "<" and self._text[self._at : self._at + 2] not in ("<=", "<!")):
                self._at = self._text.find(">", self._at) + 1 or self._refuse("a group's name without >")
            elif not self._take(":"):
                self._refuse(f"(?{self._peek()}...), which is not regular or sets flags")
        inner = self._alternatives()
        if self._peek() == "$":
            self._refuse("$ inside of it")
        if not self._take(")"):
            self._refuse("a ( without its )")
        self._depth -= 1
        return inner

    def _quantified(self, part: Expression) -> Expression:
        bounds: tuple[int, int | None] | None = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(self._peek())
        if bounds is not None:
            self._at += 1
        elif self._peek() == "{":
            bounds = self._counts()
        if bounds is None:
            return part
        if self._peek() in ("?", "+"):
            self._at += 1
        if self._peek() in ("*", "+", "?"):
            self._refuse("a quantifier behind a quantifier")
        low, most = bounds
        if max(low, most or 0) > MAX_REPEAT:
            self._refuse(f"a repetition of more than {MAX_REPEAT}")
        return EMPTY if most == 0 else Repeat(part, low, most)

    def _counts(self) -> tuple[int, int | None] | None:
        """{m}, {m,} or {m,n}; anything else behind a { is text, as in ECMA 262."""
        end = self._text.find("}", self._at)
        low, comma, high = self._text[self._at + 1 : end].partition(",")
        if end < 0 or not low.isdecimal() or not (high.isdecimal() or not high) or len(low + high) > 12:
            return None
        self._at = end + 1
        least, most = int(low), int(high) if high else None if comma else int(low)
        if most is not None and most < least:
            self._refuse("a repetition whose end is below its beginning")
        return least, most

    def _set(self) -> Ranges:
        negated, found = self._take("^"), list[tuple[int, int]]()
        first = True
        while first or self._peek() != "]":
            if not self._peek():
                self._refuse("a [ without its ]")
            if first and self._peek() == "]":
                self._refuse("an empty [ ] (write \\] for the character)")
            first = False
            low = self._member()
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                high = self._member()
                if len(low) != 1 or len(high) != 1 or low[0][0] != low[0][1] or high[0][0] < low[0][0]:
                    self._refuse("a range of characters that has no order")
                found.append((low[0][0], high[0][1]))
            else:
                found += low
        self._at += 1
        return inverted(found) if negated else merged(found)

    def _member(self) -> Ranges:
        character = self._next()
        if character != "\\":
            return [(ord(character), ord(character))]
        if self._take("b"):
            return [(8, 8)]
        return self._escape()

    def _escape(self) -> Ranges:
        letter = self._next()
        if letter.lower() in _CLASSES:
            return _CLASSES[letter] if letter in _CLASSES else inverted(_CLASSES[letter.lower()])
        if letter in _CONTROLS:
            return [(_CONTROLS[letter],) * 2]
        if letter in "xu":
            braced = letter == "u" and self._take("{")
            end = self._text.find("}", self._at) if braced else self._at + (2 if letter == "x" else 4)
            digits = self._text[self._at : max(end, self._at)]
            try:
                code = int(digits, 16)
            except ValueError:
                code = -1
            if not 0 <= code <= LAST or (not braced and len(digits) != (2 if letter == "x" else 4)):
                self._refuse(f"\\{letter} without its hexadecimal digits")
            self._at = end + braced
            return [(code, code)]
        if letter.isalnum():
            self._refuse(f"\\{letter}, which is not supported")
        return [(ord(letter), ord(letter))]

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _next(self) -> str:
        character = self._peek()
        if not character:
            self._refuse("a \\ with nothing behind it")
        self._at += 1
        return character

    def _take(self, token: str) -> bool:
        found = self._text.startswith(token, self._at)
        self._at += len(token) if found else 0
        return found

    def _refuse(self, what: str) -> NoReturn:
        raise GrammarError(f"it has {what} (at character {self._at})")
