"""Canvases with fixed text: templates of a body, and infilling between a prompt and a suffix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..request.field_names import FieldNames
from ..request.input import GenerateInput
from ..request.output import RequestOutput
from ..request.sampling_params import SamplingParams
from ..service.info import ServiceInfo
from ..text.running import UNFINISHED
from .api_error import bad_request

Shape = Callable[[RequestOutput], RequestOutput]
"""An output as the client sees it."""


def templates(canvas: Any, count: int, single: bool) -> list[list[int] | None]:
    """A canvas template, or None, for each of `count` prompts. Raises ApiError (400)."""
    if canvas is None:
        return [None] * count
    nested = bool(canvas) and not isinstance(canvas[0], int)
    if single != (not nested) or (nested and len(canvas) != count):
        raise bad_request("canvas", f"canvas must be one list of token ids for each of the {count} prompts")
    return canvas if nested else [canvas]


def take_lengths(
    canvases: Sequence[list[int] | None], values: Sequence[dict[str, Any]], names: list[FieldNames]
) -> None:
    """Set the canvas length in the sampling fields and names of each prompt that has a template."""
    for index, canvas in enumerate(canvases):
        if canvas is not None:
            values[index]["max_new_tokens"] = len(canvas)
            names[index] = replace(names[index], length="canvas")


def holes(output: RequestOutput) -> list[dict[str, Any]]:
    """The holes of a template as a reply has them."""
    return [{"start": h.start, "stop": h.stop, "text": h.text, "output_ids": list(h.token_ids)} for h in output.holes]


def check_suffix(params: SamplingParams) -> None:
    """Raise ApiError (400) for options that do not go with a suffix."""
    if params.max_new_tokens < 1:
        raise bad_request("max_tokens", "max_tokens is 0; with suffix it must be at least 1")
    for name, value in (("stop", params.stop), ("min_tokens", params.min_tokens)):
        if value:
            words = "the text before it ends at its own EOS or stop_token_ids"
            raise bad_request(name, f"{name} can't be used with suffix: {words}")
    if params.structure is not None:
        raise bad_request("suffix", f"suffix can't be used with {params.structure}, which speaks of the whole text")


def with_suffix(item: GenerateInput, suffix: Sequence[int], info: ServiceInfo) -> GenerateInput:
    """The request whose canvas ends in fixed tokens; `steps` stay those of the masks alone.

    One whose masks alone are too long stays as it is: the check of its length refuses it.
    """
    params = item.sampling
    if params.max_new_tokens >= info.max_tokens:
        return item
    total = params.max_new_tokens + len(suffix)
    steps, size = params.steps, params.block_length or info.block_length
    if steps is not None:
        masked, blocks = -(-params.max_new_tokens // size), -(-total // size)
        steps = steps // masked * blocks + steps % masked
    return replace(
        item, canvas=[-1] * params.max_new_tokens + list(suffix), names=replace(item.names, suffix=len(suffix)),
        sampling=replace(params, max_new_tokens=total, steps=steps),
    )  # fmt: skip


def infilled(output: RequestOutput) -> RequestOutput:
    """An output of `with_suffix` as the text between prompt and suffix."""
    if not output.holes:  # aborted before it ran
        return output
    (hole,) = output.holes
    reason = output.finish_reason
    if reason == "length" and len(hole.token_ids) < hole.stop - hole.start:
        reason = "stop"
    text = hole.text if output.finished else hole.text.rstrip(UNFINISHED)
    return replace(
        output, text=text, token_ids=hole.token_ids, completion_tokens=len(hole.token_ids), finish_reason=reason,
        logprobs=output.logprobs[: len(hole.token_ids)],
    )  # fmt: skip
