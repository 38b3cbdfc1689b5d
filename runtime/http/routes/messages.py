"""Anthropic's routes: messages and their length."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from ...text.conversation import Conversation
from ..api_error import ApiError
from ..batch import adopt_routing, knobs_of, make_batch, merged, names_of
from ..conversation import check_data, check_ordinary, checked_messages, rendered
from ..field_table import COUNT_TOKENS, MESSAGES
from ..fields import check_fields
from ..json_body import JSONBodyRoute
from ..message_input import continues, message_chat, message_tools
from ..message_object import MessageObject
from ..preparation import prepared
from ..replies import JSONReply
from ..schemas import CountBody, MessagesBody
from ..sse import EventStream, named_event
from ..state import ServerState, ready_state
from ..tool_use import ToolUse

router = APIRouter(tags=["anthropic"], route_class=JSONBodyRoute)
Ready = Annotated[ServerState, Depends(ready_state)]
_OWN = ("messages", "system", "max_tokens", "stop_sequences", "rid", "metadata")


@router.post(MESSAGES, summary="Anthropic messages")
async def messages(body: MessagesBody, request: Request, state: Ready) -> Response:
    """Messages in, content blocks out. An assistant's message at the end is continued."""
    check_fields(MESSAGES, body.fields())
    check_ordinary(body)
    use, prompt = _prompt(body)
    adopt_routing(body, body.chat_template_kwargs)
    fields = {name: value for name, value in body.fields().items() if name not in _OWN}
    values = merged(knobs_of(body.chat_template_kwargs), fields, {"max_new_tokens": body.max_tokens})
    values["stop"] = use.with_stop(body.stop_sequences, "stop_sequences")
    use.constrain(values)
    names = names_of("messages", [prompt], True, "max_tokens", [values], use.schema_name, "stop_sequences")
    batch = make_batch(state, request, body, [prompt], [values], names)
    batch = await prepared(state, request, batch)
    message = MessageObject(state, batch, use, body.stop_sequences or ())
    headers = {"request-id": batch.rid, "x-request-id": batch.rid}
    if body.stream:
        return await EventStream(message.events(), headers, done=b"", failed=_failed).prepare(request)
    (output,) = await state.generations.collect(request, batch.rid, batch.inputs)
    return JSONReply(message.reply(output), headers=headers)


@router.post(COUNT_TOKENS, summary="How many tokens a body of /v1/messages has as a prompt")
async def count_tokens(body: CountBody, state: Ready) -> Response:
    """`input_tokens`."""
    check_fields(COUNT_TOKENS, body.fields())
    _, prompt = _prompt(body)
    return JSONReply({"input_tokens": len(await state.service.tokenize(prompt, name="messages"))})


def _prompt(body: CountBody) -> tuple[ToolUse, Conversation]:
    use = message_tools(body)
    check_data("system", body.system)
    check_data("messages", [message.fields() for message in body.messages])
    chat = checked_messages(message_chat(body), "messages")
    return use, rendered(body, chat, use, continue_final=continues(body))


def _failed(error: ApiError) -> bytes:
    return named_event("error", error.body_at(MESSAGES))
