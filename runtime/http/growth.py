"""One answer as it grows: new text, and the calls at its end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple

from ..request.output import RequestOutput
from ..text.tool_calls import Answer
from .generation import Generation
from .tool_use import ToolUse


class Growth(NamedTuple):
    """`text` is new since the last one; `answer` is everything so far."""

    output: RequestOutput
    text: str
    answer: Answer


async def growing(generation: Generation, use: ToolUse) -> AsyncIterator[Growth]:
    """The only answer of a generation. The first and the last one always come. Raises as `Generation.outputs`."""
    shown: int | None = None
    async for _, output in generation.outputs():
        answer = use.read(output)
        new = answer.text[shown or 0 :]
        if new or output.finished or shown is None:
            yield Growth(output, new, answer)
        shown = len(answer.text)
