"""Token ids of text, and back."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.responses import Response

from ...text.parts import TextPart, as_parts
from ..api_error import bad_request
from ..batch import check_unicode
from ..conversation import conversation
from ..field_table import DETOKENIZE, TOKENIZE
from ..fields import check_fields
from ..json_body import JSONBodyRoute
from ..replies import JSONReply
from ..schemas import ChatRendering, DetokenizeBody, TokenizeBody
from ..state import ServerState, ready_state
from ..tool_use import Choice, chat_tools, tool_use

router = APIRouter(tags=["tokenization"], route_class=JSONBodyRoute)
Ready = Annotated[ServerState, Depends(ready_state)]


@router.post("/tokenize", summary="Token ids of a prompt, prompts or chat messages")
@router.post("/v1/tokenize", include_in_schema=False)
async def tokenize(body: TokenizeBody, state: Ready) -> Response:
    """`tokens` and `count`; lists of them for a list of prompts."""
    check_fields(TOKENIZE, body.fields())
    if sum(given is not None for given in (body.prompt, body.messages, body.parts)) != 1:
        raise bad_request("prompt", "exactly one of prompt, messages and parts must be given")
    if body.split_special_tokens is not None and body.prompt is None:
        raise bad_request("split_special_tokens", "split_special_tokens is for a prompt; leave it out")
    if body.messages is None:
        for name, value in ((name, getattr(body, name)) for name in ChatRendering.model_fields):
            if value is not None:
                raise bad_request(name, f"{name} is for messages; leave it out")
    check_unicode("prompt", body.prompt)
    limit = state.service.info.max_tokens
    if isinstance(body.prompt, list):
        if len(body.prompt) > state.config.max_batch:
            raise bad_request("prompt", f"there are {len(body.prompt)} prompts; at most {state.config.max_batch}")
        texts = [as_parts(prompt, body.split_special_tokens) for prompt in body.prompt]
        many = [
            await state.service.tokenize(text, body.add_special_tokens, f"prompt[{index}]")
            for index, text in enumerate(texts)
        ]
        return JSONReply({"tokens": many, "count": [len(ids) for ids in many], "max_model_len": limit})
    asked: Any
    if body.messages is not None:
        use = tool_use(chat_tools(body.tools), Choice("auto", None, None), None)
        asked, name = conversation(body, body.messages, use), "messages"
    elif body.parts is not None:
        asked, name = [TextPart(part.text, part.split_special_tokens) for part in body.parts], "parts"
        check_unicode(name, [part.text for part in asked])
        if not asked:
            raise bad_request("parts", "parts is empty; it must have at least one part")
    else:
        asked, name = as_parts(str(body.prompt), body.split_special_tokens), "prompt"
    ids = await state.service.tokenize(asked, body.add_special_tokens, name)
    return JSONReply({"tokens": ids, "count": len(ids), "max_model_len": limit})


@router.post("/detokenize", summary="Text of token ids")
@router.post("/v1/detokenize", include_in_schema=False)
async def detokenize(body: DetokenizeBody, state: Ready) -> Response:
    """`text`; a list of texts for a list of lists."""
    check_fields(DETOKENIZE, body.fields())
    if body.tokens and isinstance(body.tokens[0], list):
        if len(body.tokens) > state.config.max_batch:
            raise bad_request("tokens", f"there are {len(body.tokens)} lists; at most {state.config.max_batch}")
        many: list[Any] = list(body.tokens)
        return JSONReply({"text": [await state.service.detokenize(ids, body.skip_special_tokens) for ids in many]})
    one: Any = body.tokens
    return JSONReply({"text": await state.service.detokenize(one, body.skip_special_tokens)})
