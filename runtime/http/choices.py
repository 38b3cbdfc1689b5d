"""What OpenAI's completions and chats share: sampling fields, and choices of a reply or of a stream."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from ..request.output import RequestOutput
from .batch import Batch
from .canvases import Shape
from .field_table import STREAM_OPTIONS
from .fields import check_fields
from .replies import diffusion_info, snapshot, usage
from .schemas import ChatBody, CompletionBody, StreamOptions
from .sse import event, pace
from .state import ServerState

MakeChoice = Callable[[int, str, RequestOutput | None], dict[str, Any] | None]
"""(index, new text, output) -> the choice of a chunk, None: it shows nothing new; output None: it begins."""


def check_body(route: str, body: CompletionBody | ChatBody) -> None:
    """Raise ApiError for a field that can't be honoured, also inside other fields."""
    check_fields(route, body.fields())
    if body.stream_options is not None:
        check_fields(STREAM_OPTIONS, body.stream_options.fields(), "stream_options.")


def openai_values(fields: dict[str, Any], max_tokens: int | None, drop: Sequence[str]) -> dict[str, Any]:
    """Sampling fields under the names of the native route."""
    for name in (*drop, "max_tokens", "max_completion_tokens"):
        fields.pop(name, None)
    if max_tokens is not None:
        fields["max_new_tokens"] = max_tokens
    return fields


def headers(batch: Batch) -> dict[str, str]:
    """Headers of a reply."""
    return {"x-request-id": batch.rid}


def frame(state: ServerState, id: str, name: str) -> dict[str, Any]:
    """A reply or chunk without its choices; `name` is the kind of object."""
    return {"id": id, "object": name, "created": int(time.time()), "model": state.model_name}


def end(state: ServerState, batch: Batch, index: int, output: RequestOutput | None) -> dict[str, Any]:
    """How a choice ended; nulls while it runs."""
    if output is None or not output.finished:
        return {"finish_reason": None, "matched_stop": None}
    return {
        "finish_reason": output.finish_reason,
        "matched_stop": output.matched_stop,
        "meta_info": diffusion_info(output, batch.inputs[index], state.default_cache_mode),
    }


async def events(
    state: ServerState, batch: Batch, frame: dict[str, Any], heads: Sequence[str], options: StreamOptions | None,
    choice: MakeChoice, opening: bool = False, shape: Shape | None = None,
) -> AsyncGenerator[bytes, None]:  # fmt: skip
    """Chunks with the text committed since the last one; with `opening`, each choice begins with an empty chunk.

    `shape` changes outputs first.
    """
    latest: list[RequestOutput | None] = [None] * len(batch.inputs)
    report = state.config.enable_cache_report
    continuous = options is not None and bool(options.continuous_usage_stats)
    final = options is not None and bool(options.include_usage)

    def chunk(choices: list[dict[str, Any]], with_usage: bool) -> bytes:
        data: dict[str, Any] = {**frame, "choices": choices}
        if with_usage:
            data["usage"] = usage(batch, latest, report)
        return event(data)

    async with state.generations.open(batch.rid, batch.inputs, state.at_a_time) as generation:
        async for index, output in generation.outputs():
            output = output if shape is None else shape(output)
            before = latest[index]
            latest[index] = output
            new = output.text[len(before.text) if before is not None else 0 :]
            if before is None and opening and (begun := choice(index, "", None)) is not None:
                yield chunk([begun], continuous)
            if before is None:
                new = heads[index] + new
            view = snapshot(output)
            made = choice(index, new, output) if new or view or output.finished else None
            if made is not None:
                yield chunk([{**made, **view}], continuous)
                await pace(output)
    if final:
        yield chunk([], True)
