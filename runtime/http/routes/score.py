"""Scores of choices behind a prompt: /score."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from ...errors import time_out
from ...request.field_names import FieldNames
from ...request.input import GenerateInput
from ...request.output import RequestOutput
from ...request.sampling_params import SamplingParams
from ...request.scoring import MAX_CHOICES, ScoreOutput, ScorePlan
from ...text.parts import as_parts
from ..api_error import bad_request
from ..batch import check_unicode, routing_of, single_rid
from ..field_table import SCORE
from ..fields import check_fields
from ..json_body import JSONBodyRoute
from ..preparation import encode_all
from ..replies import JSONReply
from ..schemas import ScoreBody
from ..state import ServerState, ready_state

router = APIRouter(tags=["native"], route_class=JSONBodyRoute)
_AT_A_TIME = 16
"""Most scoring requests of one call that the scheduler holds, so that other clients get turns."""
_TOKENS_AT_A_TIME = 1024
"""Most token positions of these together, if there are several: a forward of that size delays others little."""


@router.post("/score", summary="How probable a model finds each of several choices behind a prompt")
async def score(body: ScoreBody, request: Request, state: Annotated[ServerState, Depends(ready_state)]) -> Response:
    """For each choice a score for each of its tokens, their sum and their mean; `best` is the highest mean.

    `meta_info` has sums over its scoring requests: nfe, prompt_tokens, cached_tokens and more.
    """
    check_fields(SCORE, body.fields())
    if (body.text is None) == (body.input_ids is None):
        raise bad_request("text", "exactly one of text and input_ids must be given")
    most = min(state.config.max_batch, MAX_CHOICES)
    if not 1 <= len(body.choices) <= most:
        raise bad_request("choices", f"choices has {len(body.choices)} entries; it must have from 1 to {most}")
    for field in ("text", "choices", "cache_salt", "extra_key"):
        check_unicode(field, getattr(body, field))
    rid = single_rid(state, request, body.rid)
    base = GenerateInput(
        rid=f"{rid}-warm", prompt=list(body.input_ids or ()), sampling=SamplingParams(max_new_tokens=0), stream=False,
        shared_prefix=body.shared_prefix, names=FieldNames("input_ids" if body.text is None else "text", "choices"),
        **routing_of(body, request, state),
    )  # fmt: skip
    scored = await state.generations.run(request, rid, _scored(state, rid, body, base))
    reply: dict[str, Any] = {
        "choices": [
            {"token_ids": c.token_ids, "token_scores": c.token_scores, "total": c.total, "mean": c.mean}
            for c in scored.choices
        ],
        "best": scored.best,
        "method": scored.method,
        "meta_info": {
            "id": rid,
            "prompt_tokens": scored.prompt_tokens,
            "nfe": scored.nfe,
            "cached_tokens": scored.cached_tokens,
            "reused_token_layers": scored.reused_token_layers,
            "computed_token_layers": scored.computed_token_layers,
        },
    }
    return JSONReply(reply, headers={"x-request-id": rid})


async def _scored(state: ServerState, rid: str, body: ScoreBody, base: GenerateInput) -> ScoreOutput:
    """Tokenize, compute the prompt once if several forwards share it, then score a few canvases at a time."""
    start = time.monotonic()
    service, config, split = state.service, state.config, body.split_special_tokens
    prompt = list(body.input_ids or ())
    if body.text is not None:
        (prompt,) = await encode_all(service, [as_parts(body.text, split)], ["text"])
        base = replace(base, prompt=prompt)
    tokens = len(prompt)
    called = [f"choices[{index}]" for index in range(len(body.choices))]
    choices = [as_parts(choice, split) if isinstance(choice, str) else choice for choice in body.choices]
    plan = ScorePlan(
        await encode_all(service, choices, called, add_special_tokens=False), body.method, service.info.block_length,
        prompt_tokens=tokens, max_forwards=config.max_score_forwards, max_positions=config.max_request_tokens,
    )  # fmt: skip
    warm_up: list[RequestOutput] = []
    if plan.needs_warm_up:
        async with state.generations.open(base.rid, [_on_time(base, start)]) as generation:
            warm_up = await generation.collect()
    inputs = [
        replace(_on_time(base, start), rid=f"{rid}-{i}", sampling=SamplingParams(max_new_tokens=plan.canvas_length),
                canvas=plan.canvas(i), targets=plan.targets[i], shared_prefix=tokens)
        for i in range(plan.num_forwards)
    ]  # fmt: skip
    at_a_time = min(_AT_A_TIME, max(1, _TOKENS_AT_A_TIME // (tokens + plan.canvas_length)))
    async with state.generations.open(f"{rid}-scores", inputs, at_a_time) as generation:
        return plan.gather(await generation.collect(), warm_up)


def _on_time(item: GenerateInput, start: float) -> GenerateInput:
    """The input with its remaining time, counted from `start`. Raises RequestTimeoutError."""
    if item.timeout_s is None:
        return item
    spent = time.monotonic() - start
    if spent >= item.timeout_s:
        raise time_out(item.timeout_s, spent, "its prompt was computed")
    return replace(item, waited_s=spent)
