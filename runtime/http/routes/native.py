"""SGLang's native route: /generate."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from ...request.input import GenerateInput
from ...request.output import RequestOutput
from ..api_error import bad_request
from ..batch import Batch, adopt_routing, knobs_of, make_batch, merged, names_of
from ..canvases import holes, take_lengths, templates
from ..field_table import CUSTOM, GENERATE, SAMPLING
from ..fields import check_fields
from ..json_body import JSONBodyRoute
from ..logprobs import native, take_logprobs
from ..preparation import prepared
from ..replies import JSONReply, meta_info, snapshot
from ..schemas import GenerateBody
from ..sse import EventStream, event, pace
from ..state import ServerState, ready_state
from ..wording import shown

router = APIRouter(tags=["native"], route_class=JSONBodyRoute)


@router.post("/generate", summary="Generate text for a prompt or for a list of them")
@router.put("/generate", include_in_schema=False)
async def generate(
    body: GenerateBody, request: Request, state: Annotated[ServerState, Depends(ready_state)]
) -> Response:
    """A prompt in, an object out; a list in (or n > 1), a list out, in order.

    With `stream`, events with the text so far (it only grows), then `data: [DONE]`.
    """
    check_fields(GENERATE, body.fields())
    prompts, single = _prompts(body)
    values = [take_logprobs(body, each) for each in _sampling_values(body, len(prompts))]
    canvases = templates(body.canvas, len(prompts), single)
    names = names_of("input_ids" if body.text is None else "text", prompts, single, "max_new_tokens", values)
    take_lengths(canvases, values, names)
    batch = make_batch(state, request, body, prompts, values, names)
    batch = replace(batch, inputs=tuple(
        replace(item, canvas=canvases[i // batch.n], shared_prefix=body.shared_prefix or 0)
        for i, item in enumerate(batch.inputs)
    ))  # fmt: skip
    batch = await prepared(state, request, batch)
    headers, texts = {"x-request-id": batch.rid}, bool(body.return_text_in_logprobs)
    if body.stream:
        return await EventStream(_events(state, batch, texts), headers).prepare(request)
    outputs = await state.generations.collect(request, batch.rid, batch.inputs, state.at_a_time)
    replies = [_reply(state, o, item, texts) for o, item in zip(outputs, batch.inputs, strict=True)]
    return JSONReply(replies[0] if single and batch.n == 1 else replies, headers=headers)


def _prompts(body: GenerateBody) -> tuple[list[Any], bool]:
    """The prompts, and whether the body has a single one."""
    if (body.text is None) == (body.input_ids is None):
        raise bad_request("text", "exactly one of text and input_ids must be given")
    if body.text is not None:
        return (list(body.text), False) if isinstance(body.text, list) else ([body.text], True)
    assert body.input_ids is not None
    if body.input_ids and isinstance(body.input_ids[0], list):
        return list(body.input_ids), False
    return [body.input_ids], True


def _sampling_values(body: GenerateBody, count: int) -> list[dict[str, Any]]:
    """For each prompt, its sampling fields: the body's own, then custom_params, then sampling_params."""
    own = body.fields()
    for name in ("text", "input_ids", "sampling_params", "rid", "canvas", "shared_prefix"):
        own.pop(name, None)
    given = body.sampling_params if body.sampling_params is not None else {}
    each = given if isinstance(given, list) else [given] * count
    if len(each) != count:
        raise bad_request("sampling_params", f"sampling_params has {len(each)} entries for {count} prompts")
    for index, values in enumerate(each):
        at = f"sampling_params[{index}]." if isinstance(given, list) else "sampling_params."
        check_fields(SAMPLING, values, at)
        nested = values.get("custom_params")
        if nested is not None:
            if not isinstance(nested, Mapping):
                raise bad_request(f"{at}custom_params", f"{at}custom_params is {shown(nested)}; it must be an object")
            check_fields(CUSTOM, nested, f"{at}custom_params.")
        adopt_routing(body, values, at)
        adopt_routing(body, nested, f"{at}custom_params.")
    return [merged(own, knobs_of(values.get("custom_params")), values) for values in each]


def _reply(state: ServerState, output: RequestOutput, item: GenerateInput, texts: bool) -> dict[str, Any]:
    reply: dict[str, Any] = {
        "text": output.text,
        "output_ids": list(output.token_ids),
        "meta_info": meta_info(output, item, state.default_cache_mode),
    }
    if item.sampling.logprobs is not None:
        reply["meta_info"] |= native(output.logprobs, item.sampling.logprobs, texts)
    if item.canvas is not None:
        reply["holes"] = holes(output)
    return reply


async def _events(state: ServerState, batch: Batch, texts: bool) -> AsyncGenerator[bytes, None]:
    async with state.generations.open(batch.rid, batch.inputs, state.at_a_time) as generation:
        async for index, output in generation.outputs():
            reply = {**_reply(state, output, batch.inputs[index], texts), **snapshot(output)}
            if len(batch.inputs) > 1:
                reply["index"] = index
            yield event(reply)
            await pace(output)
