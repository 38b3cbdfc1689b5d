"""Decimal numbers in ranges, as expressions over bytes, in JSON's notation."""

from __future__ import annotations

from .expression import NEVER, Both, Bytes, Expression, Graph, Repeat, choice, optional, sequence, text

DIGITS = 15
"""Digits before and behind the point: so many a double can hold."""
DIGIT = Bytes.of(0x30, 0x39)
MAX_MULTIPLE = 1000
"""Largest whole number whose multiples can be had."""
_REMAINDER_STATES = 2000
"""Digits times remainders, where a schema sets no bounds: fewer digits for many remainders."""
_NOT_ZERO = Bytes.of(0x31, 0x39)


def multiples(of: int, low: int | None, high: int | None) -> Expression:
    """As `integers`, the multiples of `of` (1 to MAX_MULTIPLE) alone; without bounds a large one has fewer digits."""
    if of == 1:
        return integers(low, high)
    state, count = _remainders(of)
    edges = dict.fromkeys((1 + state[rest], Bytes(1 << 0x30 + digit), 1 + state[(10 * rest + digit) % of])
                          for rest in range(of) for digit in range(10))  # fmt: skip
    first = 1 + state[0]
    graph = Graph(((0, optional(text("-")), first), *edges), frozenset((first,)))
    digits = max(len(str(of)) + 1, min(DIGITS, _REMAINDER_STATES // count))
    return Both(integers(low, high, digits), graph)


def _remainders(of: int) -> tuple[list[int], int]:
    """The class of each remainder, and their number: those of a class become 0 behind the same digits.

    By Moore's refinement, so that multiples of 1000 take 4 states.
    """
    classes, count = [int(rest > 0) for rest in range(of)], 2
    while True:
        keys = [(classes[rest], *(classes[(10 * rest + digit) % of] for digit in range(10))) for rest in range(of)]
        number = {key: at for at, key in enumerate(dict.fromkeys(keys))}
        classes = [number[key] for key in keys]
        if len(number) == count:
            return classes, count
        count = len(number)


def integers(low: int | None, high: int | None, digits: int = DIGITS) -> Expression:
    """Whole numbers from `low` to `high`; where one is None, of up to `digits` digits (or as many as the other has)."""
    digits = max(digits, *(len(str(abs(bound))) for bound in (low, high) if bound is not None), 0)
    most = 10**digits - 1
    low, high = -most if low is None else low, most if high is None else high
    parts = [_between(max(low, 0), high)] if high >= 0 else []
    if low < 0:
        parts.append(sequence(text("-"), _between(max(1, -high), -low)))
    return choice(*parts)


def numbers() -> Expression:
    """Any number: up to 15 digits before and behind the point, exponents of two digits."""
    whole = choice(text("0"), sequence(_NOT_ZERO, Repeat(DIGIT, 0, DIGITS - 1)))
    fraction = sequence(text("."), Repeat(DIGIT, 1, DIGITS))
    sign = optional(Bytes(1 << ord("+") | 1 << ord("-")))
    exponent = sequence(Bytes(1 << ord("e") | 1 << ord("E")), sign, Repeat(DIGIT, 1, 2))
    return sequence(optional(text("-")), whole, optional(fraction), optional(exponent))


def reals(low: int | None, high: int | None, above: bool, below: bool) -> Expression:
    """Numbers from `low` to `high` without an exponent; not the bounds themselves with `above` and `below`.

    Whole part and fraction have so many digits together that a double keeps them apart from the bounds.
    """
    size = max(len(str(abs(bound))) for bound in (low, high) if bound is not None)
    most = 10 ** max(size, 9) - 1
    least, last = -most if low is None else low, most if high is None else high
    parts = [integers(least + above, last - below)] if least + above <= last - below else []
    places = DIGITS - max(size, 9)
    if places >= 1:
        parts.append(_fractions(least, last, above, below, places))
        parts.append(sequence(text("-"), _fractions(-last, -least, below, above, places)))
    return choice(*parts)


def _fractions(low: int, high: int, above: bool, below: bool, places: int) -> Expression:
    """n.f from `low` to `high` and from 0 on; not `low` itself with `above`, nor `high` with `below`."""
    parts = []
    if high >= 0 and not below and not (above and low == high):
        parts.append(sequence(text(f"{high}."), Repeat(text("0"), 1, places)))
    first = max(low, 0)
    if above and low >= 0:
        if first < high:
            some = choice(*(sequence(Repeat(text("0"), n, n), _NOT_ZERO, Repeat(DIGIT, 0, places - n - 1))
                            for n in range(places)))  # fmt: skip
            parts.append(sequence(text(f"{first}."), some))
        first += 1
    if first < high:
        parts.append(sequence(_between(first, high - 1), text("."), Repeat(DIGIT, 1, places)))
    return choice(*parts)


def _between(low: int, high: int) -> Expression:
    """Whole numbers from `low` (at least 0) to `high`."""
    if low > high:
        return NEVER
    most = len(str(high))
    if low <= 1 and high == 10**most - 1:
        some = sequence(_NOT_ZERO, Repeat(DIGIT, 0, most - 1))
        return some if low else choice(text("0"), some)
    parts = []
    for length in range(len(str(low)), most + 1):
        least = max(low, 10 ** (length - 1) if length > 1 else 0)
        parts.append(_same_length(str(least), str(min(high, 10**length - 1))))
    return choice(*parts)


def _same_length(low: str, high: str) -> Expression:
    if low == high:
        return text(low)
    if low[0] == high[0]:
        return sequence(text(low[0]), _same_length(low[1:], high[1:]))
    rest = len(low) - 1
    if low[1:] == "0" * rest and high[1:] == "9" * rest:
        return sequence(Bytes.of(ord(low[0]), ord(high[0])), Repeat(DIGIT, rest, rest))
    parts = [sequence(text(low[0]), _same_length(low[1:], "9" * rest)),
             sequence(text(high[0]), _same_length("0" * rest, high[1:]))]  # fmt: skip
    if int(high[0]) - int(low[0]) > 1:
        inner = Bytes.of(ord(low[0]) + 1, ord(high[0]) - 1)
        parts.append(sequence(inner, Repeat(DIGIT, rest, rest)))
    return choice(*parts)
