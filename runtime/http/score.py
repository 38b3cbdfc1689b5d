"""Scores of choices behind a prompt: /score."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from ..sampling_params import SamplingParams
from ..scoring import ScorePlan
from ..service import GenerateInput
from .errors import bad_request
from .inputs import check_unicode, routing_of, single_rid
from .replies import JSONReply
from .schemas import ScoreBody
from .state import ServerState, ready_state

router = APIRouter(tags=["native"])


@router.post("/score", summary="How probable a model finds each of several choices behind a prompt")
async def score(body: ScoreBody, request: Request, state: Annotated[ServerState, Depends(ready_state)]) -> Response:
    """For each choice a score for each of its tokens, their sum and their mean; `best` is the highest mean.

    `meta_info` has sums over the requests that it took: nfe, prompt_tokens, cached_tokens and more.
    """
    if (body.text is None) == (body.input_ids is None):
        raise bad_request("text", "exactly one of text and input_ids must be given")
    if len(body.choices) > state.config.max_batch:
        raise bad_request("choices", f"there are {len(body.choices)} choices; at most {state.config.max_batch}")
    for field in ("text", "choices", "cache_salt", "extra_key"):
        check_unicode(field, getattr(body, field))
    service, started = state.service, time.monotonic()
    prompt = await service.tokenize(body.text) if body.text is not None else list(body.input_ids or ())
    choices = [await service.tokenize(c, False) if isinstance(c, str) else c for c in body.choices]
    plan = ScorePlan(choices, body.method, service.info.block_length)
    rid = single_rid(state, request, body.rid)
    base = GenerateInput(
        rid=f"{rid}-warm", prompt=prompt, sampling=SamplingParams(max_new_tokens=0), stream=False,
        shared_prefix=body.shared_prefix, **routing_of(body, state),
    )  # fmt: skip
    warm_up = []
    if plan.needs_warm_up:
        warm_up = await state.generations.collect(request, f"{rid}-warm", [base])
    if base.timeout_s is not None:  # the time is for all of it; what is used up ends the next step at once
        base = replace(base, timeout_s=max(base.timeout_s - (time.monotonic() - started), 1e-3))
    inputs = [
        replace(base, rid=f"{rid}-{i}", sampling=SamplingParams(max_new_tokens=len(canvas)), canvas=canvas,
                targets=targets, shared_prefix=len(prompt))
        for i, (canvas, targets) in enumerate(zip(plan.canvases, plan.targets, strict=True))
    ]  # fmt: skip
    scored = plan.gather(await state.generations.collect(request, rid, inputs), warm_up)
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
