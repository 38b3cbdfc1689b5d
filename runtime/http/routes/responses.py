"""OpenAI's route for responses. Nothing is kept: each request brings the whole conversation."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from ..api_error import ApiError
from ..batch import Batch, adopt_routing, check_unicode, knobs_of, make_batch, merged, names_of
from ..choices import headers
from ..conversation import check_data, check_ordinary, checked_messages, rendered
from ..field_table import RESPONSES
from ..fields import check_fields
from ..json_body import JSONBodyRoute
from ..preparation import prepared
from ..replies import JSONReply
from ..response_input import response_functions, response_messages, take_format
from ..response_object import ResponseObject
from ..schemas import ResponseBody
from ..sse import EventStream
from ..state import ServerState, ready_state
from ..tool_use import ToolUse, chat_choice, tool_use

router = APIRouter(tags=["openai"], route_class=JSONBodyRoute)
_OWN = ("input", "instructions", "max_output_tokens", "rid", "store", "text", "metadata", "user", "stream_options")


@router.post("/v1/responses", summary="OpenAI responses")
async def responses(
    body: ResponseBody, request: Request, state: Annotated[ServerState, Depends(ready_state)]
) -> Response:
    """Text or items in; a message, and calls of functions, out."""
    use, batch = _asked(body, request, state)
    batch = await prepared(state, request, batch)
    response = ResponseObject(state, body, batch, use)
    if body.stream:
        stream = EventStream(response.events(), headers(batch), done=b"", failed=response.failed)
        return await stream.prepare(request)
    (output,) = await state.generations.collect(request, batch.rid, batch.inputs)
    return JSONReply(response.reply(output), headers=headers(batch))


def _asked(body: ResponseBody, request: Request, state: ServerState) -> tuple[ToolUse, Batch]:
    check_fields(RESPONSES, body.fields())
    check_ordinary(body)
    if body.store:
        message = "store is true; this server keeps no responses: leave it out or send false"
        raise ApiError(400, message, param="store", code="unsupported_parameter")
    structure, called = take_format(body.text)
    check_data("metadata", body.metadata)
    check_data("text", body.text)
    check_data("input", body.input)
    for name in ("user", "instructions"):
        check_unicode(name, getattr(body, name))
    use = tool_use(response_functions(body.tools), chat_choice(body.tool_choice), body.parallel_tool_calls, inner="")
    messages = checked_messages(response_messages(body.instructions, body.input), "input")
    prompt = rendered(body, messages, use)
    adopt_routing(body, body.chat_template_kwargs)
    fields = {name: value for name, value in body.fields().items() if name not in _OWN}
    if body.max_output_tokens is not None:
        fields["max_new_tokens"] = body.max_output_tokens
    values = merged(knobs_of(body.chat_template_kwargs), fields, structure)
    values["stop"] = use.with_stop(values.get("stop"))
    use.constrain(values)
    names = names_of("input", [prompt], True, "max_output_tokens", [values], use.schema_name or called)
    return use, make_batch(state, request, body, [prompt], [values], names)
