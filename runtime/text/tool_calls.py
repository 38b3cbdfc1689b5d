"""Finds tool calls in an answer: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, the form of Hermes models.

What is no call of a known function stays text.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, NamedTuple

OPEN, CLOSE = "<tool_call>", "</tool_call>"
BEGINNING = f"{OPEN}\n"
"""The text of a call up to its JSON."""


class ToolCall(NamedTuple):
    """A call; `arguments` is JSON text."""

    name: str
    arguments: str


class Answer(NamedTuple):
    """An answer's text without its calls, and its calls in order."""

    text: str
    calls: tuple[ToolCall, ...]


def beginning_of_call(name: str) -> str:
    """The text of a call of `name` up to its arguments."""
    return f'{BEGINNING}{{"name": {json.dumps(name)}, "arguments": '


def read_answer(text: str, names: Collection[str], final: bool, forced: str | None = None) -> Answer:
    """The calls of functions `names` in `text`, and the rest.

    While an answer grows, so do both parts: the text of an earlier call is a prefix of later ones. So, unless `final`,
    what may become a call, and blanks before it, are left out. A call whose end is missing counts when the answer ends.

    Args:
        text: the answer so far; with `forced` only what follows `beginning_of_call`.
        names: functions that may be called.
        final: the answer is complete.
        forced: the function that is called in any case. At the end its arguments are the JSON object that the answer
            begins with, or else the answer as it is.
    """
    if forced is not None:
        return _forced(text, forced, final)
    pieces, calls, at = [], list[ToolCall](), 0
    while (start := text.find(OPEN, at)) >= 0:
        body = start + len(OPEN)
        stop = text.find(CLOSE, body)
        if stop < 0 and not final:
            break
        call = _call(text[body:] if stop < 0 else text[body:stop], names)
        if call is None:
            pieces.append(text[at:body])
            at = body
        else:
            calls.append(call)
            pieces.append(text[at:start])
            at = len(text) if stop < 0 else stop + len(CLOSE)
    if not final:
        rest = text[at : start if start >= 0 else len(text) - _begun(text)]
        return Answer(("".join(pieces) + rest).rstrip(), tuple(calls))
    whole = "".join(pieces) + text[at:]
    return Answer(whole.rstrip() if calls else whole, tuple(calls))


def _begun(text: str) -> int:
    """How many characters at the end of a text begin a call."""
    return next((n for n in range(len(OPEN) - 1, 0, -1) if text.endswith(OPEN[:n])), 0)


def _call(body: str, names: Collection[str]) -> ToolCall | None:
    value = _json(body)
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or value["name"] not in names:
        return None
    arguments = value.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _json(arguments)
    written = _written(arguments)
    return None if written is None else ToolCall(value["name"], written)


def _forced(text: str, name: str, final: bool) -> Answer:
    if not final:
        return Answer("", ())
    try:
        arguments, _ = _DECODER.raw_decode(text.lstrip())
    except (ValueError, RecursionError):
        arguments = None
    written = _written(arguments)
    return Answer("", (ToolCall(name, text.strip().removesuffix(CLOSE) if written is None else written),))


def _json(text: str) -> Any:
    """The value of a JSON text; None for what is none."""
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError):
        return None


def _written(arguments: Any) -> str | None:
    """An object as JSON text that UTF-8 can hold; None for what is none, or holds numbers beyond floats."""
    if not isinstance(arguments, dict):
        return None
    try:
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        text.encode()
        return text
    except UnicodeEncodeError:  # half a surrogate pair stays an escape
        return json.dumps(arguments)
    except (ValueError, RecursionError):
        return None


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_number)
