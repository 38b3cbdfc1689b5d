"""From prompts to requests: tokens, limits, ids. Everything a caller can get wrong is found here."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np

from .build import Parts
from .errors import InvalidRequestError, shorten
from .request import CACHE_MODES, CacheMode, Request
from .sampling_params import SamplingParams
from .text_stream import TextStream

Prompt = str | Sequence[int] | Sequence[dict[str, str]]
"""Text, token ids, or chat messages ({"role", "content"}) that the model's chat template renders."""


def is_single(prompts: Any) -> bool:
    """Whether `prompts` is one prompt: text, token ids, or the messages of one chat."""
    if isinstance(prompts, str):
        return True
    first = next(iter(prompts), None)
    return isinstance(first, int | np.integer | dict)


class Intake:
    """Makes requests for one engine."""

    def __init__(self, parts: Parts, cache_mode: CacheMode):
        self._parts = parts
        self._cache_mode = cache_mode
        self._ids = itertools.count()

    def requests(
        self,
        prompts: Any,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        cache_mode: CacheMode | None,
        cache_salt: str,
    ) -> list[Request]:
        """Requests for prompts that the engine was given, all checked.

        Raises InvalidRequestError or PoolTooSmallError, naming field, value and limit, for the first that is wrong.
        """
        prompts = list(prompts)
        if sampling_params is None or isinstance(sampling_params, SamplingParams):
            params = [sampling_params or SamplingParams()] * len(prompts)
        else:
            params = list(sampling_params)
        if len(params) != len(prompts):
            message = f"sampling_params has {len(params)} entries for {len(prompts)} prompts"
            raise InvalidRequestError(message, field="sampling_params", value=len(params), limit=len(prompts))
        mode = cache_mode or self._cache_mode
        if mode not in CACHE_MODES:
            limit = ", ".join(CACHE_MODES)
            raise InvalidRequestError(
                f"cache_mode is {shorten(mode)}; it must be one of {limit}", field="cache_mode", value=mode, limit=limit
            )
        if not isinstance(cache_salt, str):
            raise InvalidRequestError("cache_salt must be a string", field="cache_salt", value=cache_salt)
        return [self._request(p, s, mode, cache_salt, i) for i, (p, s) in enumerate(zip(prompts, params, strict=True))]

    def _request(self, prompt: Any, params: SamplingParams, mode: CacheMode, salt: str, index: int) -> Request:
        if not isinstance(params, SamplingParams):
            raise InvalidRequestError(
                f"sampling_params[{index}] is {shorten(params)}; it must be a SamplingParams",
                field="sampling_params", value=params,
            )  # fmt: skip
        params.check_for(self._parts.block_length)
        tokens = self._encode(prompt, f"prompts[{index}]")
        block_length = params.block_length or self._parts.block_length
        request = Request(
            rid=f"{next(self._ids)}-{secrets.token_hex(4)}",
            prompt=tokens,
            sampling=params,
            cache_mode=mode,
            cache_salt=salt,
            block_length=block_length,
            seed=params.seed if params.seed is not None else secrets.randbits(63),
            stream=TextStream(self._parts.tokenizer, params.stop),
        )
        limit = self._parts.decoder.config.max_position_embeddings
        if request.total_tokens > limit:
            message = (
                f"prompts[{index}] has {len(tokens)} tokens and its canvas {request.canvas_length} (max_new_tokens): "
                f"{request.total_tokens}, over the model's maximum of {limit}"
            )
            raise InvalidRequestError(message, field="max_new_tokens", value=request.total_tokens, limit=limit)
        self._parts.scheduler.check_fits(len(tokens), request.canvas_length)
        return request

    def _encode(self, prompt: Any, name: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        tokenizer = self._parts.tokenizer
        vocabulary = self._parts.decoder.config.embedding_size
        if isinstance(prompt, str) or (prompt and all(isinstance(part, dict) for part in prompt)):
            if tokenizer is None:
                raise InvalidRequestError(f"{name}: without a tokenizer, prompts must be token ids", field="prompts")
            ids = tokenizer.encode(prompt) if isinstance(prompt, str) else tokenizer.apply_chat_template(prompt)
        elif all(isinstance(t, int | np.integer) and not isinstance(t, bool) for t in prompt):
            ids = [int(token) for token in prompt]
        else:
            message = f"{name} is {shorten(prompt)}; it must be text, token ids or chat messages"
            raise InvalidRequestError(message, field="prompts", value=prompt)
        if not ids:
            raise InvalidRequestError(f"{name} is empty; it must have at least one token", field="prompts", limit=1)
        if min(ids) < 0 or max(ids) >= vocabulary:
            bad = next(token for token in ids if not 0 <= token < vocabulary)
            message = f"{name} has token id {bad}; ids must be at least 0 and below {vocabulary}"
            raise InvalidRequestError(message, field="prompts", value=bad, limit=vocabulary)
        return np.array(ids, np.int64)
