"""Sets of characters as expressions over UTF-8, raw and inside a JSON string."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .expression import Bytes, Expression, choice, sequence

Ranges = Sequence[tuple[int, int]]
"""(first, last) code points, sorted, apart from each other."""
LAST = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)
_LENGTHS = ((0x7F, 1), (0x7FF, 2), (0xFFFF, 3), (LAST, 4))
_ESCAPES = {'"': '"', "\\": "\\", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}
"""Characters that a JSON string has behind a backslash, and how each is spelled there."""


def merged(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """The same characters in sorted ranges that do not touch."""
    found: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if found and low <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(high, found[-1][1])
        elif low <= high:
            found.append((low, high))
    return found


def inverted(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """All other characters."""
    found, at = [], 0
    for low, high in merged(ranges):
        if at < low:
            found.append((at, low - 1))
        at = high + 1
    return [*found, (at, LAST)] if at <= LAST else found


def without(ranges: Ranges, out: Ranges) -> Ranges:
    """Characters of `ranges` that are not in `out`."""
    return inverted([*inverted(ranges), *out])


def utf8(ranges: Ranges) -> Expression:
    """One character of `ranges`, in UTF-8. Surrogates are no characters."""
    parts: list[tuple[Bytes, ...]] = []
    for low, high in without(merged(ranges), [_SURROGATES]):
        start = low
        for last, length in _LENGTHS:
            if start <= min(high, last):
                parts += _split(_encoded(start, length), _encoded(min(high, last), length))
                start = last + 1
    return choice(*(sequence(*part) for part in parts))


def _encoded(code: int, length: int) -> tuple[int, ...]:
    if length == 1:
        return (code,)
    tail = [0x80 | (code >> 6 * at) & 0x3F for at in range(length - 2, -1, -1)]
    return ((0xF00 >> length) & 0xFF | code >> 6 * (length - 1), *tail)


def _split(low: tuple[int, ...], high: tuple[int, ...]) -> list[tuple[Bytes, ...]]:
    """Byte strings of one length from `low` to `high`, as sequences of ranges of bytes."""
    if not low:
        return [()]
    first, last, rest = low[0], high[0], len(low) - 1
    least, most = (0x80,) * rest, (0xBF,) * rest
    if first == last:
        return [(Bytes.of(first, first), *part) for part in _split(low[1:], high[1:])]
    parts: list[tuple[Bytes, ...]] = []
    if low[1:] != least:
        parts += [(Bytes.of(first, first), *part) for part in _split(low[1:], most)]
        first += 1
    if high[1:] != most:
        parts += [(Bytes.of(last, last), *part) for part in _split(least, high[1:])]
        last -= 1
    if first <= last:
        parts.append((Bytes.of(first, last), *(Bytes.of(0x80, 0xBF) for _ in range(rest))))
    return parts


def in_json(ranges: Ranges) -> Expression:
    """One character of `ranges` as it stands in a JSON string: with a backslash where one is needed.

    Control characters without a short escape can't be had.
    """
    plain = without(merged(ranges), [(0, 0x1F), (0x22, 0x22), (0x5C, 0x5C)])
    escaped = 0
    for character, letter in _ESCAPES.items():
        if any(low <= ord(character) <= high for low, high in ranges):
            escaped |= 1 << ord(letter)
    backslash = Bytes(1 << 0x5C)
    return choice(utf8(plain), sequence(backslash, Bytes(escaped))) if escaped else utf8(plain)
