"""OpenAI's routes: completions, chat completions, models."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from ...request.output import RequestOutput
from ..api_error import ApiError, bad_request
from ..batch import Batch, adopt_routing, chat_messages, knobs_of, make_batch, merged, names_of
from ..field_table import CHAT, COMPLETIONS, KWARGS, STREAM_OPTIONS
from ..fields import check_fields
from ..json_body import JSONBodyRoute
from ..preparation import prepared
from ..replies import JSONReply, diffusion_info, snapshot, usage
from ..schemas import ChatBody, CompletionBody, StreamOptions
from ..sse import EventStream, event, pace
from ..state import ServerState, ready_state, server_state
from ..wording import shown

COMPLETION_MAX_TOKENS = 16
router = APIRouter(tags=["openai"], route_class=JSONBodyRoute)
Ready = Annotated[ServerState, Depends(ready_state)]
MakeChoice = Callable[[int, str, RequestOutput | None], dict[str, Any]]


@router.post("/v1/completions", summary="OpenAI completions")
async def completions(body: CompletionBody, request: Request, state: Ready) -> Response:
    """Text or token ids in, choices out; with a list of prompts, n choices for each in order."""
    _check(COMPLETIONS, body)
    prompts = _completion_prompts(body.prompt)
    values = _openai_values(body.fields(), body.max_tokens, drop=("prompt", "rid"))
    echo = bool(values.pop("echo", False))
    each = [values] * len(prompts)
    names = names_of("prompt", prompts, prompts == [body.prompt], "max_tokens", each)
    batch = make_batch(state, request, body, prompts, each, names, COMPLETION_MAX_TOKENS)
    heads = [""] * len(batch.inputs)
    if echo:
        texts = await state.generations.run(request, batch.rid, _as_texts(state, prompts))
        heads = [text for text in texts for _ in range(batch.n)]
    batch = await prepared(state, request, batch)
    frame = _frame(state, f"cmpl-{batch.rid}", "text_completion")

    def choice(index: int, text: str, output: RequestOutput | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, **_end(state, batch, index, output)}

    if body.stream:
        events = _events(state, batch, frame, heads, body.stream_options, choice)
        return await EventStream(events, _headers(batch)).prepare(request)
    outputs = await state.generations.collect(request, batch.rid, batch.inputs, state.at_a_time)
    choices = [choice(i, heads[i] + output.text, output) for i, output in enumerate(outputs)]
    counted = usage(batch, outputs, state.config.enable_cache_report)
    return JSONReply({**frame, "choices": choices, "usage": counted}, headers=_headers(batch))


@router.post("/v1/chat/completions", summary="OpenAI chat completions")
async def chat_completions(body: ChatBody, request: Request, state: Ready) -> Response:
    """Messages in, choices with an assistant message out."""
    _check(CHAT, body)
    if body.split_special_tokens is False:
        words = "split_special_tokens is false; contents of messages are always taken as ordinary text"
        raise bad_request("split_special_tokens", words)
    messages = chat_messages(body.messages)
    nested = body.chat_template_kwargs
    adopt_routing(body, nested)
    limit, name = body.max_tokens, "max_tokens"
    if body.max_completion_tokens is not None:
        if limit not in (None, body.max_completion_tokens):
            message = f"max_completion_tokens is {body.max_completion_tokens} and max_tokens {limit}; send one of them"
            raise bad_request("max_completion_tokens", message)
        limit, name = body.max_completion_tokens, "max_completion_tokens"
    values = merged(knobs_of(nested), _openai_values(body.fields(), limit, drop=("messages", "rid")))
    names = names_of("messages", [messages], True, name, [values])
    batch = make_batch(state, request, body, [messages], [values], names)
    batch = await prepared(state, request, batch)
    name = "chat.completion.chunk" if body.stream else "chat.completion"
    frame = _frame(state, f"chatcmpl-{batch.rid}", name)
    if body.stream:

        def delta(index: int, text: str, output: RequestOutput | None) -> dict[str, Any]:
            said = {"role": "assistant", "content": ""} if output is None else {"content": text}
            return {"index": index, "delta": said, "logprobs": None, **_end(state, batch, index, output)}

        heads = [""] * len(batch.inputs)
        events = _events(state, batch, frame, heads, body.stream_options, delta, opening=True)
        return await EventStream(events, _headers(batch)).prepare(request)
    outputs = await state.generations.collect(request, batch.rid, batch.inputs, state.at_a_time)
    choices = [
        {
            "index": i,
            "message": {"role": "assistant", "content": output.text, "refusal": None, "tool_calls": None},
            "logprobs": None,
            **_end(state, batch, i, output),
        }
        for i, output in enumerate(outputs)
    ]
    counted = usage(batch, outputs, state.config.enable_cache_report)
    return JSONReply({**frame, "choices": choices, "usage": counted}, headers=_headers(batch))


@router.get("/v1/models", summary="The one model that is served")
async def models(state: Annotated[ServerState, Depends(server_state)]) -> Response:
    """OpenAI's list of models."""
    return JSONReply({"object": "list", "data": [_card(state)]})


@router.get("/v1/models/{model:path}", summary="A model by its name")
async def model(model: str, state: Annotated[ServerState, Depends(server_state)]) -> Response:
    """The served model; 404 for any other name."""
    if model != state.model_name:
        message = f"the model {shown(model)} is not served here; this server has {shown(state.model_name)}"
        raise ApiError(404, message, kind="NotFoundError", param="model", code="model_not_found")
    return JSONReply(_card(state))


def _card(state: ServerState) -> dict[str, Any]:
    return {
        "id": state.model_name,
        "object": "model",
        "created": int(state.started),
        "owned_by": "shoal",
        "root": state.service.info.model_path,
        "parent": None,
        "max_model_len": state.service.info.max_tokens,
    }


def _check(route: str, body: CompletionBody | ChatBody) -> None:
    """Raise ApiError for a field that can't be honoured, also inside other fields."""
    check_fields(route, body.fields())
    if body.stream_options is not None:
        check_fields(STREAM_OPTIONS, body.stream_options.fields())
    if isinstance(body, ChatBody):
        check_fields(KWARGS, body.chat_template_kwargs or {})


def _completion_prompts(prompt: Any) -> list[Any]:
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        return [prompt]
    return list(prompt)


def _openai_values(fields: dict[str, Any], max_tokens: int | None, drop: Sequence[str]) -> dict[str, Any]:
    """Sampling fields under the names of the native route."""
    for name in (*drop, "max_tokens", "max_completion_tokens"):
        fields.pop(name, None)
    if max_tokens is not None:
        fields["max_new_tokens"] = max_tokens
    return fields


async def _as_texts(state: ServerState, prompts: Sequence[Any]) -> list[str]:
    service = state.service
    return [p if isinstance(p, str) else await service.detokenize(p, skip_special_tokens=False) for p in prompts]


def _headers(batch: Batch) -> dict[str, str]:
    return {"x-request-id": batch.rid}


def _frame(state: ServerState, id: str, name: str) -> dict[str, Any]:
    return {"id": id, "object": name, "created": int(time.time()), "model": state.model_name}


def _end(state: ServerState, batch: Batch, index: int, output: RequestOutput | None) -> dict[str, Any]:
    """How a choice ended; nulls while it runs."""
    if output is None or not output.finished:
        return {"finish_reason": None, "matched_stop": None}
    return {
        "finish_reason": output.finish_reason,
        "matched_stop": output.matched_stop,
        "meta_info": diffusion_info(output, batch.inputs[index], state.default_cache_mode),
    }


async def _events(
    state: ServerState, batch: Batch, frame: dict[str, Any], heads: Sequence[str], options: StreamOptions | None,
    choice: MakeChoice, opening: bool = False,
) -> AsyncGenerator[bytes, None]:  # fmt: skip
    """Chunks with the text committed since the last one; with `opening`, each choice begins with an empty chunk."""
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
            before = latest[index]
            latest[index] = output
            new = output.text[len(before.text) if before is not None else 0 :]
            if before is None and opening:
                yield chunk([choice(index, "", None)], continuous)
            if before is None:
                new = heads[index] + new
            shown = snapshot(output)
            if new or shown or output.finished:
                yield chunk([{**choice(index, new, output), **shown}], continuous)
                await pace(output)
    if final:
        yield chunk([], True)
