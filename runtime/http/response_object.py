"""The reply of /v1/responses, whole and as the events of a stream."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..request.output import RequestOutput
from ..text.tool_calls import Answer, ToolCall
from .api_error import ApiError
from .batch import Batch
from .growth import growing
from .replies import diffusion_info
from .schemas import ResponseBody
from .sse import named_event
from .state import ServerState
from .tool_use import ToolUse, call_id


@dataclass(frozen=True, slots=True)
class ResponseObject:
    """One response of a server.

    Attributes:
        created: wall-clock seconds since the epoch.
    """

    state: ServerState
    body: ResponseBody
    batch: Batch
    use: ToolUse
    created: int = field(default_factory=lambda: int(time.time()))
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def reply(self, output: RequestOutput) -> dict[str, Any]:
        """The whole response."""
        return self._frame(output, self._items(self.use.read(output), output))

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The events of a stream: the message grows, calls come at the end."""
        begun = False
        message: dict[str, Any] | None = None
        async with self.state.generations.open(self.batch.rid, self.batch.inputs) as generation:
            async for growth in growing(generation, self.use):
                if not begun:
                    begun = True
                    for kind in ("response.created", "response.in_progress"):
                        yield self._say(kind, response=self._frame(None, []))
                last = growth.output.finished
                if message is None and (growth.text or (last and not growth.answer.calls)):
                    message = self._message("", "in_progress")
                    yield self._say("response.output_item.added", output_index=0, item={**message, "content": []})
                    yield self._say("response.content_part.added", part=_part(""), **_place(message))
                if message is not None and growth.text:
                    yield self._say("response.output_text.delta", delta=growth.text, logprobs=[], **_place(message))
                if not last:
                    continue
                items = self._items(growth.answer, growth.output, message)
                for index, item in enumerate(items):
                    for kind, fields in _finished(index, item):
                        yield self._say(kind, **fields)
                yield self._say(f"response.{_ending(growth.output)}", response=self._frame(growth.output, items))

    def failed(self, error: ApiError) -> bytes:
        """The last event of a stream that failed."""
        return self._say("error", code=str(error.code), message=error.message, param=error.param)

    def _say(self, kind: str, **fields: Any) -> bytes:
        return named_event(kind, {"type": kind, "sequence_number": next(self._numbers), **fields})

    def _items(
        self, answer: Answer, output: RequestOutput, message: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Output items; `message` is the one that a stream began."""
        status = "completed" if output.finish_reason == "stop" else "incomplete"
        items = []
        if answer.text or not answer.calls or message is not None:
            whole = self._message(answer.text, status)
            items.append(whole if message is None else {**whole, "id": message["id"]})
        return [*items, *(_call(call, status) for call in answer.calls)]

    def _message(self, text: str, status: str) -> dict[str, Any]:
        return {
            "id": call_id("msg_"), "type": "message", "role": "assistant", "status": status, "content": [_part(text)],
        }  # fmt: skip

    def _frame(self, output: RequestOutput | None, items: list[dict[str, Any]]) -> dict[str, Any]:
        body, ending = self.body, None if output is None else _ending(output)
        sampling = self.batch.inputs[0].sampling
        frame: dict[str, Any] = {
            "id": f"resp_{self.batch.rid}",
            "object": "response",
            "created_at": self.created,
            "status": ending or "in_progress",
            "background": False,
            "error": _error(output) if ending == "failed" else None,
            "incomplete_details": {"reason": "max_output_tokens"} if ending == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": self.state.model_name,
            "output": items,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": sampling.temperature,
            "text": {"format": (body.text or {}).get("format") or {"type": "text"}},
            "tool_choice": self.use.choice,
            "tools": [
                {"type": "function", **tool, "strict": tool["name"] in self.use.strict} for tool in self.use.given
            ],
            "top_p": sampling.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": body.user,
        }
        if output is not None:
            frame["completed_at"] = int(time.time()) if ending == "completed" else None
            frame["usage"] = _usage(output)
            frame["meta_info"] = diffusion_info(output, self.batch.inputs[0], self.state.default_cache_mode)
        return frame


def _ending(output: RequestOutput) -> str:
    return {"stop": "completed", "length": "incomplete"}.get(str(output.finish_reason), "failed")


def _error(output: RequestOutput | None) -> dict[str, Any]:
    message = output.error.message if output is not None and output.error is not None else "the request was aborted"
    return {"code": "server_error", "message": message}


def _usage(output: RequestOutput) -> dict[str, Any]:
    return {
        "input_tokens": output.prompt_tokens,
        "input_tokens_details": {"cached_tokens": output.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": output.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": output.prompt_tokens + output.completion_tokens,
    }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _place(item: dict[str, Any]) -> dict[str, Any]:
    """Where the text of the message is."""
    return {"item_id": item["id"], "output_index": 0, "content_index": 0}


def _call(call: ToolCall, status: str) -> dict[str, Any]:
    return {
        "id": call_id("fc_"), "type": "function_call", "call_id": call_id(), "name": call.name,
        "arguments": call.arguments, "status": status,
    }  # fmt: skip


def _finished(index: int, item: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The last events of an item; of a call all of them."""
    if item["type"] == "message":
        (part,) = item["content"]
        yield "response.output_text.done", {"text": part["text"], "logprobs": [], **_place(item)}
        yield "response.content_part.done", {"part": part, **_place(item)}
    else:
        place, whole = {"item_id": item["id"], "output_index": index}, item["arguments"]
        begun = {**item, "arguments": "", "status": "in_progress"}
        yield "response.output_item.added", {"output_index": index, "item": begun}
        yield "response.function_call_arguments.delta", {"delta": whole, **place}
        yield "response.function_call_arguments.done", {"arguments": whole, "name": item["name"], **place}
    yield "response.output_item.done", {"output_index": index, "item": item}
