"""Canvases with holes, as programs write them: `fill` and `json_skeleton`."""

from __future__ import annotations

from typing import Any

from ..errors import UnsupportedError
from ..program.canvas import skeleton_parts
from .expressions import Fill, flat
from .settings import settings


def fill(*parts: Any, name: str | None = None, **values: Any) -> Fill:
    """Fixed text and `gen`s as holes in one canvas, denoised together: each hole sees what stands on both sides of it.

    Every hole needs max_tokens: so many positions it has. Fixed text is kept exactly; a hole's text ends at its first
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
