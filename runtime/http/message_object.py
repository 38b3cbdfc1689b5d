"""The reply of /v1/messages, whole and as the events of a stream."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from ..errors import RequestAbortedError
from ..request.output import RequestOutput
from ..text.tool_calls import Answer
from .batch import Batch
from .growth import growing
from .replies import diffusion_info
from .sse import named_event
from .state import ServerState
from .tool_use import ToolUse, call_id


@dataclass(frozen=True, slots=True)
class MessageObject:
    """One message of a server."""

    state: ServerState
    batch: Batch
    use: ToolUse
    stop_sequences: Sequence[str] = ()

    def reply(self, output: RequestOutput) -> dict[str, Any]:
        """The whole message. Raises RequestAbortedError if its request was aborted."""
        answer = _readable(self.use.read(output))
        return {
            **self._frame(),
            "content": [*([{"type": "text", "text": answer.text}] if answer.text else []), *_calls(answer)],
            **self._stop(output, answer),
            "usage": self._usage(output),
            "meta_info": diffusion_info(output, self.batch.inputs[0], self.state.default_cache_mode),
        }

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The events of a stream: text as it comes, calls at the end."""
        index = -1
        begun = shown = False
        async with self.state.generations.open(self.batch.rid, self.batch.inputs) as generation:
            async for growth in growing(generation, self.use):
                output = growth.output
                if not begun:
                    begun = True
                    usage = {**self._usage(output), "output_tokens": 0}
                    message = {**self._frame(), "content": [], "stop_reason": None, "stop_sequence": None}
                    yield _say("message_start", message={**message, "usage": usage})
                answer, text = growth.answer, growth.text
                if output.finished:
                    answer = _readable(answer)
                    text += answer.text[len(growth.answer.text) :]
                if text and not shown:
                    shown, index = True, index + 1
                    yield _say("content_block_start", index=index, content_block={"type": "text", "text": ""})
                if text:
                    yield _say("content_block_delta", index=index, delta={"type": "text_delta", "text": text})
                if not output.finished:
                    continue
                ended = self._stop(output, answer)
                if shown:
                    yield _say("content_block_stop", index=index)
                for block in _calls(answer):
                    index += 1
                    yield _say("content_block_start", index=index, content_block={**block, "input": {}})
                    delta = {"type": "input_json_delta", "partial_json": orjson.dumps(block["input"]).decode()}
                    yield _say("content_block_delta", index=index, delta=delta)
                    yield _say("content_block_stop", index=index)
                yield _say("message_delta", delta=ended, usage=self._usage(output))
                yield _say("message_stop")

    def _frame(self) -> dict[str, Any]:
        return {
            "id": f"msg_{self.batch.rid}", "type": "message", "role": "assistant", "model": self.state.model_name,
        }  # fmt: skip

    def _stop(self, output: RequestOutput, answer: Answer) -> dict[str, Any]:
        """Why it stopped. Raises RequestAbortedError."""
        match output.finish_reason:
            case "length":
                return {"stop_reason": "max_tokens", "stop_sequence": None}
            case "stop" if answer.calls:
                return {"stop_reason": "tool_use", "stop_sequence": None}
            case "stop" if output.matched_stop in self.stop_sequences:
                return {"stop_reason": "stop_sequence", "stop_sequence": output.matched_stop}
            case "stop":
                return {"stop_reason": "end_turn", "stop_sequence": None}
        raise RequestAbortedError("the request was aborted", field="rid")

    def _usage(self, output: RequestOutput) -> dict[str, int]:
        """Tokens; those of the prompt that the cache had are not among `input_tokens`."""
        cached = output.cached_tokens if self.state.config.enable_cache_report else 0
        return {
            "input_tokens": output.prompt_tokens - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": output.completion_tokens,
        }


def _say(kind: str, **fields: Any) -> bytes:
    return named_event(kind, {"type": kind, **fields})


def _readable(answer: Answer) -> Answer:
    """An answer all of whose calls have an object as input: a forced one that was cut short comes as text."""
    cut = [call for call in answer.calls if not _is_object(call.arguments)]
    text = answer.text + "".join(call.arguments for call in cut)
    return Answer(text, tuple(call for call in answer.calls if call not in cut)) if cut else answer


def _is_object(text: str) -> bool:
    """Whether JSON text is an object that a reply can hold."""
    try:
        value = json.loads(text)
        orjson.dumps(value)
    except (ValueError, TypeError, RecursionError):
        return False
    return isinstance(value, dict)


def _calls(answer: Answer) -> list[dict[str, Any]]:
    return [
        {"type": "tool_use", "id": call_id("toolu_"), "name": call.name, "input": json.loads(call.arguments)}
        for call in answer.calls
    ]
