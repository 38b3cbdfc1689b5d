"""Text in parts, some of which are data: nothing in data becomes a special token."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import InvalidRequestError

_ESCAPED = re.compile(r"\\u[0-9A-Fa-f]{4}")
_PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


class TextPart(NamedTuple):
    """A stretch of text. With `split_special_tokens` (transformers' name) it is data: a special token spelled in it is
    encoded as ordinary text.
    """

    text: str
    split_special_tokens: bool


def as_parts(text: str, split_special_tokens: bool | None) -> str | list[TextPart]:
    """Text as one part with the given `split_special_tokens`; the text itself if that is None."""
    return text if split_special_tokens is None else [TextPart(text, split_special_tokens)]


class Marks:
    """Stand-ins for characters of data, which show where each character of a text came from.

    A stand-in is one private-use character that occurs nowhere in the data, so lengths stay equal, and trimming,
    slicing and changes of case treat it as a letter.

    Args:
        characters: those that get a stand-in.
        data: every text to be marked, and the texts that will contain it.

    Raises InvalidRequestError when the data leaves too few private-use characters.
    """

    def __init__(self, characters: Iterable[str], data: Iterable[str]):
        free = _free("".join(data))
        self._of: dict[str, str] = {}
        for character in sorted(set(characters)):
            stand_in = next(free, None)
            if stand_in is None:
                message = "the text has every private-use character; at least one must be left out"
                raise InvalidRequestError(message, field="prompts", limit="some private-use characters unused")
            self._of[character] = stand_in

    def mark(self, text: str, characters: Iterable[str]) -> str:
        """`text` with stand-ins for those of `characters` in it that have one."""
        for character in characters:
            text = text.replace(character, self._of.get(character, character))
        return text

    def restore(self, text: str) -> str:
        """The original of a marked text; also undoes stand-ins that a template wrote as JSON escapes."""
        for character, stand_in in self._of.items():
            text = text.replace(stand_in, character)
        if "\\u" in text:
            for character, stand_in in self._of.items():
                text = text.replace(_escape(stand_in), _escape(character))
        return text


def strings(value: Any) -> Iterator[str]:
    """Every string in a value of JSON's kinds, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from strings(key)
            yield from strings(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from strings(inner)


def unused_character(data: Iterable[str]) -> str:
    """A private-use character that occurs in none of `data`. Raises InvalidRequestError if there is none."""
    free = next(_free("".join(data)), None)
    if free is None:
        message = "the text has every private-use character; at least one must be left out"
        raise InvalidRequestError(message, field="prompts", limit="some private-use characters unused")
    return free


def _free(text: str) -> Iterator[str]:
    """Private-use characters that do not occur in `text`, not even as JSON escapes."""
    used, escaped = set(text), {found.lower() for found in _ESCAPED.findall(text)}
    for numbers in _PRIVATE_USE:
        for number in numbers:
            if chr(number) not in used and _escape(chr(number))[:6] not in escaped:
                yield chr(number)


def _escape(character: str) -> str:
    return json.dumps(character)[1:-1]


NO_MARKS = Marks((), ())
