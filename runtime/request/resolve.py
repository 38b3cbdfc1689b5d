"""Decoding parameters as the worker gets them: what depends on the model's family and on the device is filled in."""

from __future__ import annotations

from typing import Any

from ..errors import InvalidRequestError, shorten
from .facts import Facts
from .parameter_checks import LEAST_BIAS
from .sampling_params import DEFAULTS, MAX_TIMED_STEPS, SamplingParams

MAX_KL_ENTRIES = 1 << 26
"""Most probabilities of one request that are kept from a pass to the next for kl_threshold (256 MiB)."""


def resolved(params: SamplingParams, facts: Facts) -> SamplingParams:
    """`params` with `schedule` and `ranking` chosen, and without what changes nothing beside the rest of them.

    Tokens that the model's requests are never given get the lowest bias, whatever `params` says of them.

    Raises InvalidRequestError for a bias of a token that the model does not have, too many steps of a schedule with
    times, too long blocks for kl_threshold, and an option that the worker does not serve.
    """
    vocabulary = facts.model.vocab_size
    for token, _ in params.biases:
        if token >= vocabulary:
            message = f"logit_bias has token id {token}; ids must be at least 0 and below {vocabulary}"
            raise InvalidRequestError(message, field="logit_bias", value=token, limit=vocabulary)
    dream = facts.model.architecture == "dream"
    schedule, ranking = params.schedule, params.ranking
    if schedule is None or params.steps is None:
        linear = dream and params.steps is not None and "schedule=linear" not in facts.unserved
        schedule = "linear" if linear else "even"
    changes: dict[str, Any] = {"schedule": schedule}
    if facts.never_chosen:
        kept = [pair for pair in params.biases if pair[0] not in facts.never_chosen]
        changes["logit_bias"] = (*kept, *((token, LEAST_BIAS) for token in facts.never_chosen))
    if ranking is None:
        ranking = "sampled" if dream and "ranking=sampled" not in facts.unserved else "model"
    if params.temperature == 0 and not params.cuts:
        ranking = "model"
    if ranking == "model" and not params.draws:
        changes |= {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    params = params.changed(ranking=ranking, **changes)
    timed = params.schedule == "linear" or params.strategy == "origin"
    if timed and params.steps is not None and params.steps > MAX_TIMED_STEPS:
        what = "strategy origin" if params.strategy == "origin" else "schedule linear"
        message = f"steps is {params.steps}; with {what} it may be at most {MAX_TIMED_STEPS}"
        raise InvalidRequestError(message, field="steps", value=params.steps, limit=MAX_TIMED_STEPS)
    if params.kl_threshold is not None:
        block = min(params.block_length or facts.block_length, params.max_new_tokens)
        most = MAX_KL_ENTRIES // vocabulary
        if block > most:
            message = f"block_length is {block}; with kl_threshold it may be at most {most}"
            raise InvalidRequestError(message, field="block_length", value=block, limit=most)
    for entry in facts.unserved:
        name, _, value = entry.partition("=")
        given = getattr(params, name)
        if given == value if value else given != DEFAULTS[name]:
            message = f"{name} is {shorten(given)}, which shoal does not serve on a GPU: leave it out"
            raise InvalidRequestError(message, field=name, value=shorten(given))
    return params
