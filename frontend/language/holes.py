"""Canvases with holes, as programs write them: `fill` and `json_skeleton`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ...runtime.errors import shorten
from ..errors import ExpressionError, UnsupportedError
from .expressions import Expression, Fill, Gen, Text, flat
from .settings import settings


def fill(*parts: Any, name: str | None = None, **values: Any) -> Fill:
    """Fixed text and `gen`s as holes in one canvas, denoised together: each hole sees what stands on both sides of it.

    Every hole needs max_tokens, its number of positions. Fixed text is kept exactly; a hole's text ends at its first
    EOS (the rest is padding) or before a stop string. `name`: a variable for the whole text. Settings (threshold,
    steps, block_length, temperature ...) hold for the canvas; without block_length all of it is one block.
    """
    return Fill(tuple(expression for part in parts for expression in flat(part)), _canvas_settings(values), name=name)


def json_skeleton(value: Any, *, name: str | None = None, **values: Any) -> Fill:
    """JSON whose keys and punctuation are fixed and whose values are filled together: the text always parses.

    `value` is JSON data with `gen(name, max_tokens=..., dtype=str | int | float | bool)` where a value is to be filled
    in (str by default). Variables get Python values: None, and null in the text, where a hole held no value of its
    type. `name`: a variable for the whole, parsed. A blank before a number or a word is the hole's own, since
    tokenizers write " 42" as one piece.
    """
    return Fill(tuple(skeleton_parts(value)), _canvas_settings(values), as_json=True, name=name)


def _canvas_settings(values: dict[str, Any]) -> dict[str, Any]:
    if values.get("max_new_tokens") is not None:
        raise UnsupportedError("max_new_tokens can't be set for a canvas: its holes say how long it is",
                               field="max_new_tokens")  # fmt: skip
    return settings(values)


def skeleton_parts(value: Any) -> Iterator[Expression]:
    """Parts of a JSON skeleton: literal JSON, and a hole for every `gen` in `value`, in quotes for strings.

    Before a bare hole there is no blank: it is part of what is filled in. Raises ExpressionError for what is no JSON
    and no gen.
    """
    text = ""
    for piece in _pieces(value, "skeleton"):
        if isinstance(piece, str):
            text += piece
            continue
        if piece.dtype in (None, str):
            yield Text(text + '"')
            text = '"'
        else:
            yield Text(text.rstrip(" "))
            text = ""
        yield piece
    yield Text(text)


def _pieces(value: Any, where: str) -> Iterator[str | Gen]:
    if isinstance(value, Gen):
        yield value
    elif isinstance(value, dict):
        yield "{"
        for index, (key, inner) in enumerate(value.items()):
            if not isinstance(key, str):
                raise ExpressionError(f"{where} has the key {shorten(key)}; keys must be strings", field=where)
            yield ", " * bool(index) + json.dumps(key, ensure_ascii=False) + ": "
            yield from _pieces(inner, f"{where}[{key!r}]")
        yield "}"
    elif isinstance(value, list | tuple):
        yield "["
        for index, inner in enumerate(value):
            yield ", " * bool(index)
            yield from _pieces(inner, f"{where}[{index}]")
        yield "]"
    elif value is None or isinstance(value, str | int | float | bool):
        yield json.dumps(value, ensure_ascii=False, allow_nan=False)
    else:
        message = f"{where} is {shorten(value)}; it must be JSON data or gen(...)"
        raise ExpressionError(message, field=where, value=value)
