"""The arguments of `Engine.generate` and its siblings, as the requests that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np

from ..config import CacheMode
from ..errors import InvalidRequestError, shorten
from ..request.field_names import FieldNames
from ..request.input import Conversation, GenerateInput, Prompt
from ..request.sampling_params import SamplingParams
from ..request.snapshot import StreamMode


class ScoreOptions(TypedDict, total=False):
    """Options of a request that scores.

    Attributes:
        cache_mode: None: the engine's default.
        cache_salt: only requests with the same salt share prefixes.
        shared_prefix: how many leading prompt tokens were computed on their own before (`pin`, or max_new_tokens=0): of
            those, if all are cached, the `reuse_margin` is not left out.
    """

    cache_mode: CacheMode | None
    cache_salt: str
    shared_prefix: int


class RequestOptions(ScoreOptions, total=False):
    """Options of a request that generates.

    Attributes:
        canvas: a template: token ids, and -1 for a mask; for a list of prompts a list with a template or None for each.
            Fixed tokens stay as they are, the runs of -1 (holes) are filled, and `RequestOutput.holes` has each one's
            text, cut at its own first EOS. The canvas is decoded to its end; its length takes the place of
            max_new_tokens (for all holes to be filled together, give it as block_length).
        stream_mode: of a stream: `text` (outputs as text is committed) or `denoise` (after every commit, each with a
            `snapshot` of the whole canvas).
    """

    canvas: Sequence[int] | Sequence[Sequence[int] | None] | None
    stream_mode: StreamMode


def is_single(prompts: Any) -> bool:
    """Whether `prompts` is one prompt: text, token ids, or one chat.

    Raises InvalidRequestError for anything but a prompt or a list of prompts.
    """
    if isinstance(prompts, str | Conversation):
        return True
    if not _is_list(prompts):
        message = f"prompts is {shorten(prompts)}; it must be a prompt (text, token ids, messages) or a list of them"
        raise InvalidRequestError(message, field="prompts", value=prompts)
    return len(prompts) > 0 and isinstance(prompts[0], int | np.integer | dict)


def inputs_of(
    prompts: Sequence[Prompt],
    sampling_params: SamplingParams | Sequence[SamplingParams] | None,
    default: SamplingParams,
    *,
    cache_mode: CacheMode | None = None,
    cache_salt: str = "",
    shared_prefix: int = 0,
    canvas: Any = None,
    stream_mode: StreamMode = "text",
) -> list[GenerateInput]:
    """A request for each prompt. `canvas` is None, or a list with a template or None for each. `default` is for prompts
    without sampling parameters; its canvas may become shorter.

    Raises InvalidRequestError for lists that do not go with the prompts, TypeError for an unknown option.
    """
    count = len(prompts)
    if canvas is None:
        canvas = [None] * count
    elif not _is_list(canvas) or len(canvas) != count or any(c is not None and not _is_list(c) for c in canvas):
        message = f"canvas is {shorten(canvas)}; it must be a list of token ids, one such list for each prompt"
        raise InvalidRequestError(message, field="canvas", value=canvas, limit=count)
    return [
        GenerateInput(
            prompt=prompt, sampling=sampling, cache_mode=cache_mode, cache_salt=cache_salt, canvas=template,
            shared_prefix=shared_prefix, stream_mode=stream_mode,
            names=FieldNames(
                f"prompts[{index}]", "max_new_tokens" if template is None else "canvas", sampling_params is not None
            ),
        )
        for index, (prompt, sampling, template) in enumerate(
            zip(prompts, _sampling(sampling_params, default, count), canvas, strict=True)
        )
    ]  # fmt: skip


def _sampling(given: Any, default: SamplingParams, count: int) -> list[SamplingParams]:
    """Sampling parameters for each of `count` prompts."""
    if given is None or isinstance(given, SamplingParams):
        return [given or default] * count
    if not _is_list(given):
        message = f"sampling_params is {shorten(given)}; it must be a SamplingParams, or one for each prompt"
        raise InvalidRequestError(message, field="sampling_params", value=given)
    if len(given) != count:
        message = f"sampling_params has {len(given)} entries for {count} prompts"
        raise InvalidRequestError(message, field="sampling_params", value=len(given), limit=count)
    return list(given)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes)
