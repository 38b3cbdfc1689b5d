"""Log-probabilities of committed tokens: what a body asks for, and their forms in replies.

Each is the token's log-probability in the forward that committed it, by the model's undisturbed distribution; `step`
says which forward that was. They are no factors of a probability of the text: see docs/http-api.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from ..request.output import TokenLogprob
from ..request.parameter_checks import MAX_LOGPROBS
from ..text.running import UNFINISHED
from .api_error import bad_request
from .schemas import ChatBody, CompletionBody, GenerateBody
from .wording import shown

Logprobs = Sequence[TokenLogprob | None]
_NAMES = ("return_logprob", "logprobs", "top_logprobs", "top_logprobs_num", "logprob_start_len",
          "return_text_in_logprobs")  # fmt: skip
_ELSEWHERE = "a diffusion model has no log probabilities of a prompt; /score gives those of given answers"


def take_logprobs(body: GenerateBody | CompletionBody | ChatBody, values: dict[str, Any]) -> dict[str, Any]:
    """`values` with what the body asks for as the sampling parameter `logprobs`, in place of the route's own fields.

    Raises ApiError (400) for a number out of range, for one without the switch that it belongs to, and for
    log-probabilities of the prompt.
    """
    for name in _NAMES:
        values.pop(name, None)
    match body:
        case GenerateBody():
            start, top = body.logprob_start_len, body.top_logprobs_num
            wanted = _switched(body.return_logprob, "return_logprob", top, "top_logprobs_num")
            if wanted is not None and start not in (None, -1):
                words = f"logprob_start_len is {start}, which asks for those of the prompt; send -1"
                raise bad_request("logprob_start_len", f"{words}: {_ELSEWHERE}")
        case ChatBody():
            wanted = _switched(body.logprobs, "logprobs", body.top_logprobs, "top_logprobs")
        case _:
            wanted = None if body.logprobs is None else _checked(body.logprobs, "logprobs")
            if wanted is not None and body.echo:
                raise bad_request("logprobs", f"logprobs is {wanted}, with echo: {_ELSEWHERE}")
    return values if wanted is None else {**values, "logprobs": wanted}


def _switched(wanted: bool | None, switch: str, top: int | None, name: str) -> int | None:
    if wanted:
        return _checked(top or 0, name)
    if top:
        raise bad_request(name, f"{name} is {shown(top)}, but {switch} is not true")
    return None


def _checked(top: int, name: str) -> int:
    if not 0 <= top <= MAX_LOGPROBS:
        raise bad_request(name, f"{name} is {shown(top)}; it must be an integer from 0 to {MAX_LOGPROBS}")
    return top


def native(logprobs: Logprobs, top: int, texts: bool) -> dict[str, Any]:
    """Fields of `meta_info`: SGLang's, and `output_token_steps`; texts are null unless they are wanted."""
    fields: dict[str, Any] = {
        "input_token_logprobs": [],
        "output_token_logprobs": [
            None if one is None else [one.logprob, one.token, one.text if texts else None] for one in logprobs
        ],
        "output_token_steps": [None if one is None else one.step for one in logprobs],
    }
    if top:
        fields["output_top_logprobs"] = [
            None if one is None else [
                [value, token, text if texts else None]
                for (token, value), text in zip(one.top, one.top_texts, strict=True)
            ]
            for one in logprobs
        ]  # fmt: skip
    return fields


def of_chat(logprobs: Logprobs) -> dict[str, Any]:
    """`logprobs` of a chat's choice: OpenAI's fields, and `step`."""
    return {
        "content": [
            {
                **_entry(one.text, one.logprob),
                "top_logprobs": [
                    _entry(text, value) for (_, value), text in zip(one.top, one.top_texts, strict=True)
                ],
                "step": one.step,
            }
            for one in logprobs
            if one is not None
        ],
        "refusal": None,
    }  # fmt: skip


def _entry(text: str, logprob: float) -> dict[str, Any]:
    """A token; the bytes of a part of a character are not known."""
    return {"token": text, "logprob": logprob, "bytes": None if UNFINISHED in text else list(text.encode())}


def of_completion(logprobs: Logprobs, start: int, top: int) -> dict[str, Any]:
    """`logprobs` of a completion's choice, of its tokens from number `start` on: OpenAI's fields, and `steps`.

    Of tokens with one text, `top_logprobs` has the most probable one.
    """
    offset = sum(len(one.text) for one in logprobs[:start] if one is not None)
    new = [one for one in logprobs[start:] if one is not None]
    best: list[dict[str, float]] = []
    for one in new:
        best.append({})
        for (_, value), text in zip(one.top, one.top_texts, strict=True):
            best[-1].setdefault(text, value)
    return {
        "tokens": [one.text for one in new],
        "token_logprobs": [one.logprob for one in new],
        "top_logprobs": best if top else None,
        "text_offset": list(itertools.accumulate((len(one.text) for one in new), initial=offset))[:-1],
        "steps": [one.step for one in new],
    }
