"""Bounds on the cost of one HTTP request, checked before any of its work is created."""

from __future__ import annotations

from collections.abc import Sequence

from ..request.input import Conversation, Prompt
from ..request.sampling_params import SamplingParams
from ..service.info import ServiceInfo
from .api_error import bad_request
from .config import ServerConfig

MAX_LOGPROB_ENTRIES = 1 << 17
"""Log-probabilities in one reply: about 8 MB of JSON."""


def is_within_model(config: ServerConfig, info: ServiceInfo, answers: int) -> bool:
    """Whether the model's maximum alone keeps `answers` answers within max_request_tokens."""
    return answers * info.max_tokens <= config.max_request_tokens


def bounded(config: ServerConfig, positions: int) -> bool:
    """Whether so many positions, with a forward for each, keep one request within both bounds."""
    return positions <= min(config.max_request_tokens, config.max_request_forwards)


def check_work(
    config: ServerConfig, info: ServiceInfo, prompts: Sequence[Prompt], params: Sequence[SamplingParams], n: int,
    field: str, length: str = "max_new_tokens",
) -> None:  # fmt: skip
    """Raise ApiError for prompts and canvases, with `n` answers each, past max_request_tokens or max_request_forwards.

    Of prompts that are not tokens yet only the canvases count. Where the model's maximum is the stricter limit, each
    answer's own check refuses it. `field` and `length` are the client's names for prompts and canvases.
    """
    prompt_tokens = canvas_tokens = forwards = entries = 0
    drawn = False
    for prompt, sampling in zip(prompts, params, strict=True):
        prompt_tokens += _num_tokens(prompt)
        canvas_tokens += sampling.max_new_tokens
        entries += 0 if sampling.logprobs is None else sampling.max_new_tokens * (1 + sampling.logprobs)
        blocks = -(-sampling.max_new_tokens // (sampling.block_length or info.block_length))
        steps = sampling.steps or sampling.max_new_tokens
        steps = max(steps, blocks)
        # `origin` commits by chance, perhaps nothing for many steps.
        drawn |= sampling.strategy == "origin"
        passes = steps if sampling.strategy == "origin" else min(steps, sampling.max_new_tokens)
        forwards += sampling.passes * max(1, passes)
    _check_logprobs(n * entries, length)
    positions, limit = n * (prompt_tokens + canvas_tokens), config.max_request_tokens
    if positions > limit and not is_within_model(config, info, n * len(prompts)):
        if n * prompt_tokens <= limit:
            field = length
        message = (
            f"{field}: the answers have {n * prompt_tokens} prompt tokens and {n * canvas_tokens} canvas tokens "
            f"({length}) in all, {positions}; at most {limit} are taken in one request (max_request_tokens)"
        )
        raise bad_request(field, message)
    most = config.max_request_forwards
    if n * forwards > most and (drawn or n * len(prompts) * info.max_tokens > most):
        field = "steps" if any(sampling.steps for sampling in params) else length
        message = (
            f"{field}: the answers may take {n * forwards} forward passes in all (steps, or {length}, of each); "
            f"at most {most} are taken in one request (max_request_forwards)"
        )
        raise bad_request(field, message)


def _check_logprobs(entries: int, length: str) -> None:
    if entries > MAX_LOGPROB_ENTRIES:
        message = (
            f"{length}: with log-probabilities of the tokens and of the most probable ones the answers have up to "
            f"{entries} of them; at most {MAX_LOGPROB_ENTRIES} are given in one request"
        )
        raise bad_request(length, message)


def _num_tokens(prompt: Prompt) -> int:
    """Tokens of a prompt that is token ids; 0 for any other."""
    if isinstance(prompt, str | Conversation) or not len(prompt) or not isinstance(prompt[0], int):
        return 0
    return len(prompt)
