"""OpenAI's routes: completions, models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from ...request.output import RequestOutput
from ...text.parts import as_parts
from ..api_error import ApiError, bad_request
from ..batch import Batch, check_unicode, make_batch, names_of
from ..canvases import Shape, check_suffix, holes, infilled, take_lengths, templates, with_suffix
from ..choices import check_body, end, events, frame, headers, openai_values
from ..cost import check_work
from ..field_table import COMPLETIONS
from ..json_body import JSONBodyRoute
from ..logprobs import of_completion, take_logprobs
from ..preparation import encode_all, prepared
from ..replies import JSONReply, usage
from ..schemas import CompletionBody
from ..sse import EventStream
from ..state import ServerState, ready_state, server_state
from ..wording import shown

COMPLETION_MAX_TOKENS = 16
router = APIRouter(tags=["openai"], route_class=JSONBodyRoute)
Ready = Annotated[ServerState, Depends(ready_state)]


@router.post("/v1/completions", summary="OpenAI completions")
async def completions(body: CompletionBody, request: Request, state: Ready) -> Response:
    """Text or token ids in, choices out; with a list of prompts, n choices for each in order."""
    check_body(COMPLETIONS, body)
    prompts = _completion_prompts(body.prompt)
    values = take_logprobs(body, openai_values(body.fields(), body.max_tokens, drop=("prompt", "rid")))
    echo = bool(values.pop("echo", False))
    single = prompts == [body.prompt]
    each = [dict(values) for _ in prompts]
    names = names_of("prompt", prompts, single, "max_tokens", each)
    canvases = templates(body.canvas, len(prompts), single)
    if body.suffix and body.canvas is not None:
        raise bad_request("suffix", "suffix and canvas are both given; send one of them")
    take_lengths(canvases, each, names)
    batch = make_batch(state, request, body, prompts, each, names, COMPLETION_MAX_TOKENS)
    batch = replace(
        batch, inputs=tuple(replace(item, canvas=canvases[i // batch.n]) for i, item in enumerate(batch.inputs))
    )
    heads = [""] * len(batch.inputs)
    if echo:
        texts = await state.generations.run(request, batch.rid, _as_texts(state, prompts))
        heads = [text for text in texts for _ in range(batch.n)]
    shape: Shape | None = None
    if body.suffix:
        batch, shape = await _with_suffix(state, request, batch, body), infilled
    batch = await prepared(state, request, batch)
    base = frame(state, f"cmpl-{batch.rid}", "text_completion")

    told = [0] * len(batch.inputs)

    def choice(index: int, text: str, output: RequestOutput | None) -> dict[str, Any]:
        found = {} if body.canvas is None or output is None else {"holes": holes(output)}
        top = batch.inputs[index].sampling.logprobs
        logprobs = None if top is None or output is None else of_completion(output.logprobs, told[index], top)
        told[index] = 0 if output is None else len(output.logprobs)
        return {"index": index, "text": text, "logprobs": logprobs, **found, **end(state, batch, index, output)}

    if body.stream:
        chunks = events(state, batch, base, heads, body.stream_options, choice, shape=shape)
        return await EventStream(chunks, headers(batch)).prepare(request)
    outputs = await state.generations.collect(request, batch.rid, batch.inputs, state.at_a_time)
    outputs = outputs if shape is None else list(map(shape, outputs))
    choices = [choice(i, heads[i] + output.text, output) for i, output in enumerate(outputs)]
    counted = usage(batch, outputs, state.config.enable_cache_report)
    return JSONReply({**base, "choices": choices, "usage": counted}, headers=headers(batch))


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


def _completion_prompts(prompt: Any) -> list[Any]:
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        return [prompt]
    return list(prompt)


async def _with_suffix(state: ServerState, request: Request, batch: Batch, body: CompletionBody) -> Batch:
    """The batch with the suffix behind the masks of each canvas."""
    check_suffix(batch.inputs[0].sampling)
    check_unicode("suffix", body.suffix)
    text = as_parts(str(body.suffix), batch.inputs[0].sampling.split_special_tokens)
    (tokens,) = await state.generations.run(
        request, batch.rid, encode_all(state.service, [text], ["suffix"], add_special_tokens=False)
    )
    inputs = tuple(with_suffix(item, tokens, state.service.info) for item in batch.inputs)
    firsts = inputs[:: batch.n]
    prompts, params = [item.prompt for item in firsts], [item.sampling for item in firsts]
    check_work(state.config, state.service.info, prompts, params, batch.n, "prompt", "max_tokens and suffix")
    return replace(batch, inputs=inputs)


async def _as_texts(state: ServerState, prompts: Sequence[Any]) -> list[str]:
    service = state.service
    return [p if isinstance(p, str) else await service.detokenize(p, skip_special_tokens=False) for p in prompts]
