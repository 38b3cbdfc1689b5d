"""OpenAI's route for chats."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from ...request.output import RequestOutput
from ...text.tool_calls import ToolCall
from ..api_error import bad_request
from ..batch import Batch, adopt_routing, knobs_of, make_batch, merged, names_of
from ..choices import check_body, end, events, frame, headers, openai_values
from ..conversation import check_ordinary, conversation
from ..field_table import CHAT
from ..json_body import JSONBodyRoute
from ..logprobs import of_chat, take_logprobs
from ..preparation import prepared
from ..replies import JSONReply, usage
from ..schemas import ChatBody
from ..sse import EventStream
from ..state import ServerState, ready_state
from ..tool_use import ToolUse, call_id, chat_choice, chat_tools, tool_use

router = APIRouter(tags=["openai"], route_class=JSONBodyRoute)


@router.post("/v1/chat/completions", summary="OpenAI chat completions")
async def chat_completions(
    body: ChatBody, request: Request, state: Annotated[ServerState, Depends(ready_state)]
) -> Response:
    """Messages in, choices with an assistant message out."""
    check_body(CHAT, body)
    check_ordinary(body)
    use = tool_use(chat_tools(body.tools), chat_choice(body.tool_choice), body.parallel_tool_calls)
    prompt = conversation(body, body.messages, use)
    nested = body.chat_template_kwargs
    adopt_routing(body, nested)
    limit, name = _length(body)
    own = take_logprobs(body, openai_values(body.fields(), limit, drop=("messages", "rid")))
    values = merged(knobs_of(nested), own)
    values["stop"] = use.with_stop(values.get("stop"))
    use.constrain(values)
    names = names_of("messages", [prompt], True, name, [values], use.schema_name)
    batch = make_batch(state, request, body, [prompt], [values], names)
    batch = await prepared(state, request, batch)
    kind = "chat.completion.chunk" if body.stream else "chat.completion"
    base = frame(state, f"chatcmpl-{batch.rid}", kind)
    if body.stream:
        deltas = _Deltas(state, batch, use)
        chunks = events(state, batch, base, [""] * len(batch.inputs), body.stream_options, deltas.choice, opening=True)
        return await EventStream(chunks, headers(batch)).prepare(request)
    outputs = await state.generations.collect(request, batch.rid, batch.inputs, state.at_a_time)
    choices = [_choice(state, batch, use, i, output) for i, output in enumerate(outputs)]
    counted = usage(batch, outputs, state.config.enable_cache_report)
    return JSONReply({**base, "choices": choices, "usage": counted}, headers=headers(batch))


def _length(body: ChatBody) -> tuple[int | None, str]:
    """The canvas length and the client's name for it. Raises ApiError (400) for two of them."""
    if body.max_completion_tokens is None:
        return body.max_tokens, "max_tokens"
    if body.max_tokens not in (None, body.max_completion_tokens):
        message = (
            f"max_completion_tokens is {body.max_completion_tokens} and max_tokens {body.max_tokens}; send one of them"
        )
        raise bad_request("max_completion_tokens", message)
    return body.max_completion_tokens, "max_completion_tokens"


def _choice(state: ServerState, batch: Batch, use: ToolUse, index: int, output: RequestOutput) -> dict[str, Any]:
    text, calls = use.read(output)
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None, "tool_calls": None}
    if calls:
        message |= {"content": text or None, "tool_calls": [_call(call) for call in calls]}
    ended = end(state, batch, index, output)
    logprobs = _logprobs(batch, index, output)
    return {"index": index, "message": message, "logprobs": logprobs, **_with_calls(ended, bool(calls))}


def _logprobs(batch: Batch, index: int, output: RequestOutput, start: int = 0) -> dict[str, Any] | None:
    """Of the tokens from number `start` on; None if they were not asked for."""
    return None if batch.inputs[index].sampling.logprobs is None else of_chat(output.logprobs[start:])


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call_id(), "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _with_calls(ended: dict[str, Any], called: bool) -> dict[str, Any]:
    """How a choice ended, if it calls functions: an answer that was cut still says so."""
    return {**ended, "finish_reason": "tool_calls"} if called and ended["finish_reason"] == "stop" else ended


class _Deltas:
    """Choices of a stream's chunks: text as it comes, each call when it is complete."""

    def __init__(self, state: ServerState, batch: Batch, use: ToolUse):
        self._state = state
        self._batch = batch
        self._use = use
        self._shown = [(0, 0, 0)] * len(batch.inputs)  # characters of text, calls, tokens with log-probabilities

    def choice(self, index: int, text: str, output: RequestOutput | None) -> dict[str, Any] | None:
        """The choice of the next chunk; None: there is nothing new to show."""
        ended = end(self._state, self._batch, index, output)
        if output is None:
            said: dict[str, Any] = {"role": "assistant", "content": ""}
            return {"index": index, "delta": said, "logprobs": None, **ended}
        whole, calls = self._use.read(output)
        length, count, told = self._shown[index]
        said = {"content": whole[length:]} if len(whole) > length or not self._use.names else {}
        if len(calls) > count:
            said["tool_calls"] = [{"index": i, **_call(call)} for i, call in enumerate(calls) if i >= count]
        silent = not said and not output.finished and output.snapshot is None
        self._shown[index] = len(whole), len(calls), told if silent else len(output.logprobs)
        if silent:
            return None
        logprobs = _logprobs(self._batch, index, output, told)
        return {"index": index, "delta": said, "logprobs": logprobs, **_with_calls(ended, bool(calls))}
