"""Parts of replies that several routes share: meta_info, finish reasons, usage."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from fastapi.responses import Response
from orjson import dumps

from ..request.input import GenerateInput
from ..request.output import RequestOutput
from ..request.snapshot import CanvasSnapshot
from .batch import Batch


class JSONReply(Response):
    """A JSON body, encoded by orjson."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Encode."""
        return dumps(content)


def meta_info(output: RequestOutput, item: GenerateInput, default_mode: str) -> dict[str, Any]:
    """`meta_info` of a native reply: SGLang's fields, and those of a diffusion model."""
    info: dict[str, Any] = {
        "id": item.rid,
        "finish_reason": native_finish_reason(output),
        "prompt_tokens": output.prompt_tokens,
        "completion_tokens": output.completion_tokens,
        "cached_tokens": output.cached_tokens,
        "weight_version": "default",
        "num_retractions": output.preemptions,
        **diffusion_info(output, item, default_mode),
    }
    if output.finished:
        info["e2e_latency"] = output.timings.total
    return info


def diffusion_info(output: RequestOutput, item: GenerateInput, default_mode: str) -> dict[str, Any]:
    """Cost of the decoding, and what it reused."""
    return {
        "nfe": output.nfe,
        "cache_mode": item.cache_mode or default_mode,
        "depth": output.depth,
        "reused_token_layers": output.reused_token_layers,
        "computed_token_layers": output.computed_token_layers,
        "prefix_refreshes": output.prefix_refreshes,
        "canvas_tokens": output.canvas_tokens,
        "queue_time": output.timings.queue,
        "first_text_latency": output.timings.first_text,
    }


def snapshot(output: RequestOutput) -> dict[str, Any]:
    """`{"snapshot": ...}` of a stream in mode `denoise`; nothing in others."""
    if output.snapshot is None:
        return {}
    shown = {field.name: getattr(output.snapshot, field.name) for field in fields(CanvasSnapshot)}
    shown["confidences"] = [None if c is None else round(c, 4) for c in output.snapshot.confidences]
    return {"snapshot": shown}


def native_finish_reason(output: RequestOutput) -> dict[str, Any] | None:
    """SGLang's form of the finish reason; null while the request runs."""
    match output.finish_reason:
        case None:
            return None
        case "stop":
            return {"type": "stop", "matched": output.matched_stop}
        case "length":
            return {"type": "length", "length": output.completion_tokens}
        case reason:
            return {"type": reason, "message": output.error.message if output.error else "aborted"}


def usage(batch: Batch, outputs: Iterable[RequestOutput | None], report_cache: bool) -> dict[str, Any]:
    """OpenAI's usage over the latest outputs of a batch; a prompt counts once, however many answers it has."""
    known = list(outputs)
    firsts = [o for o in known[:: batch.n] if o is not None]
    prompt = sum(output.prompt_tokens for output in firsts)
    completion = sum(output.completion_tokens for output in known if output is not None)
    counted: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if report_cache:
        counted["prompt_tokens_details"] = {"cached_tokens": sum(output.cached_tokens for output in firsts)}
    return counted
