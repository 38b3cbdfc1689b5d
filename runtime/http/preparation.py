"""Tokenizes prompts before any generation of a request is created, where its cost depends on them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from starlette.requests import Request

from ..request.input import Conversation, Prompt
from ..service.service import Service
from ..text.parts import TextPart, as_parts
from .batch import Batch
from .cost import check_work, is_within_model
from .state import ServerState

_AT_A_TIME = 8


async def prepared(state: ServerState, request: Request, batch: Batch) -> Batch:
    """The batch with its prompts as tokens.

    So a prompt of several answers is tokenized once, and the limit on all token positions is checked before the first
    generation exists. A single prompt stays as it is if the model's own maximum is the stricter limit.
    Raises ApiError, InvalidRequestError, and what `Generations.run` raises.
    """
    info = state.service.info
    if len(batch.inputs) == 1 and is_within_model(state.config, info, 1):
        return batch
    firsts = batch.inputs[:: batch.n]
    for item in firsts:
        if item.sampling.max_new_tokens >= info.max_tokens:  # no prompt fits before it: its error is the answer
            return replace(batch, inputs=(item,))
    prompts = [
        as_parts(item.prompt, item.sampling.split_special_tokens) if isinstance(item.prompt, str) else item.prompt
        for item in firsts
    ]
    called, names, params = [i.names.prompt for i in firsts], firsts[0].names, [i.sampling for i in firsts]
    tokens = await state.generations.run(request, batch.rid, encode_all(state.service, prompts, called))
    check_work(state.config, info, tokens, params, batch.n, names.prompt_field, names.length)
    return replace(
        batch, inputs=tuple(replace(item, prompt=tokens[i // batch.n]) for i, item in enumerate(batch.inputs))
    )


async def encode_all(
    service: Service, prompts: Sequence[Prompt | Sequence[TextPart]], names: Sequence[str],
    add_special_tokens: bool = True,
) -> list[list[int]]:  # fmt: skip
    """Token ids of prompts, in order; errors call them `names`. Prompts that are token ids stay as they are.

    Only a few at a time go to the tokenizer, so that other requests get turns.
    """

    async def encode(prompt: Any, name: str) -> list[int]:
        if isinstance(prompt, str | Conversation) or (len(prompt) and not isinstance(prompt[0], int)):
            return await service.tokenize(prompt, add_special_tokens, name)
        return list(prompt)

    done: list[list[int]] = []
    for start in range(0, len(prompts), _AT_A_TIME):
        done += await asyncio.gather(
            *map(encode, prompts[start : start + _AT_A_TIME], names[start : start + _AT_A_TIME])
        )
    return done
