"""Token ids of text, and back."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.responses import Response

from .errors import bad_request
from .inputs import chat_messages, check_unicode
from .replies import JSONReply
from .schemas import DetokenizeBody, TokenizeBody
from .state import ServerState, ready_state

router = APIRouter(tags=["tokenization"])
Ready = Annotated[ServerState, Depends(ready_state)]


@router.post("/tokenize", summary="Token ids of a prompt, prompts or chat messages")
@router.post("/v1/tokenize", include_in_schema=False)
async def tokenize(body: TokenizeBody, state: Ready) -> Response:
    """`tokens` and `count`; lists of them for a list of prompts."""
    if (body.prompt is None) == (body.messages is None):
        raise bad_request("prompt", "exactly one of prompt and messages must be given")
    check_unicode("prompt", body.prompt)
    limit = state.service.info.max_tokens
    if isinstance(body.prompt, list):
        if len(body.prompt) > state.config.max_batch:
            raise bad_request("prompt", f"there are {len(body.prompt)} prompts; at most {state.config.max_batch}")
        many = [await state.service.tokenize(prompt, body.add_special_tokens) for prompt in body.prompt]
        return JSONReply({"tokens": many, "count": [len(ids) for ids in many], "max_model_len": limit})
    asked: Any = body.prompt if body.messages is None else chat_messages(body.messages)
    check_unicode("messages", asked)
    ids = await state.service.tokenize(asked, body.add_special_tokens)
    return JSONReply({"tokens": ids, "count": len(ids), "max_model_len": limit})


@router.post("/detokenize", summary="Text of token ids")
@router.post("/v1/detokenize", include_in_schema=False)
async def detokenize(body: DetokenizeBody, state: Ready) -> Response:
    """`text`; a list of texts for a list of lists."""
    if body.tokens and isinstance(body.tokens[0], list):
        if len(body.tokens) > state.config.max_batch:
            raise bad_request("tokens", f"there are {len(body.tokens)} lists; at most {state.config.max_batch}")
        many: list[Any] = list(body.tokens)
        return JSONReply({"text": [await state.service.detokenize(ids, body.skip_special_tokens) for ids in many]})
    one: Any = body.tokens
    return JSONReply({"text": await state.service.detokenize(one, body.skip_special_tokens)})
