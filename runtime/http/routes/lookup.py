"""What a prompt would reuse, without running it: /cache/match."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.responses import Response

from ...request.field_names import FieldNames
from ...request.input import GenerateInput
from ...request.sampling_params import SamplingParams
from ...text.parts import as_parts
from ..api_error import bad_request
from ..batch import cache_of, check_unicode
from ..defaults import Defaults
from ..field_table import LOOKUP
from ..fields import check_fields
from ..json_body import JSONBodyRoute
from ..preparation import encode_all
from ..replies import JSONReply
from ..schemas import LookupBody
from ..state import ServerState, ready_state

router = APIRouter(tags=["native"], route_class=JSONBodyRoute)


@router.post("/cache/match", summary="What a prompt would reuse from the cache")
async def match(body: LookupBody, state: Annotated[ServerState, Depends(ready_state)]) -> Response:
    """The leading tokens that are cached, and the cut and depth that a request would reuse. Changes nothing.

    It tells no more than `cached_tokens` of a request with the same salt would.
    """
    check_fields(LOOKUP, body.fields())
    if (body.text is None) == (body.input_ids is None):
        raise bad_request("text", "exactly one of text and input_ids must be given")
    for field in ("text", "cache_salt", "extra_key"):
        check_unicode(field, getattr(body, field))
    name = "input_ids" if body.text is None else "text"
    asked = list(body.input_ids or ()) if body.text is None else as_parts(body.text, body.split_special_tokens)
    (tokens,) = await encode_all(state.service, [asked], [name])
    length = body.max_new_tokens
    if length is None:
        length = Defaults.of(state.config, state.service.info).values["max_new_tokens"]
    given = GenerateInput(
        prompt=tokens,
        sampling=SamplingParams(max_new_tokens=length),
        shared_prefix=body.shared_prefix,
        names=FieldNames(name, "max_new_tokens", body.max_new_tokens is not None),
        **cache_of(body),
    )
    return JSONReply(asdict(await state.service.lookup(given)))
