"""A request as it enters a canvas slot, and its sampling parameters as the kernels read them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ....kernels.sampling.shaping import ENDS_TEXT, IN_PROMPT, LEAST_TEMPERATURE, Shaping
from ...request.sampling_params import SamplingParams


class SlotRequest(NamedTuple):
    """A request that gets a slot.

    tokens int64 and masked [prompt + canvas]: its sequence, of which `prompt_length` tokens are the prompt.
    page_table: int32 [bands, pages]. stop_ids end this text, end_ids the model's texts. seed: of its draws.
    """

    tokens: npt.NDArray[np.int64]
    masked: npt.NDArray[np.bool_]
    prompt_length: int
    page_table: npt.NDArray[np.int32]
    sampling: SamplingParams
    stop_ids: frozenset[int] = frozenset()
    end_ids: frozenset[int] = frozenset()
    seed: int = 0


def last_ids(sampling: SamplingParams, end_ids: frozenset[int]) -> frozenset[int]:
    """Tokens whose masks are committed last."""
    return end_ids if sampling.confidence_eos_eot_inf else frozenset()


def shaping_of_request(sampling: SamplingParams, prompt_length: int) -> Shaping:
    """What the request makes of its logits; nothing unless `SamplingParams.shapes`."""
    return Shaping(
        temperature=max(sampling.temperature, LEAST_TEMPERATURE) if sampling.temperature > 0 else 1.0,
        top_k=max(0, sampling.top_k) if sampling.uses_cuts else 0,
        top_p=sampling.top_p if sampling.uses_cuts else 1,
        log_min_p=math.log(sampling.min_p) if sampling.uses_cuts and sampling.min_p > 0 else -math.inf,
        ranks_sampled=float(sampling.ranks_sampled),
        has_rules=float(sampling.changes_logits),
        repetition=sampling.repetition_penalty,
        presence=sampling.presence_penalty,
        frequency=sampling.frequency_penalty,
        no_end_before=prompt_length + sampling.min_tokens if sampling.min_tokens else 0,
    )


def rules_of_request(
    request: SlotRequest, vocabulary: int, eos: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """The request's rows of `CanvasState.counts` and `biases`; `eos` is EOS as config.json has it."""
    sampling, start = request.sampling, request.prompt_length
    held = request.tokens[start:][~request.masked[start:]]
    counts = np.bincount(held[held < vocabulary], minlength=vocabulary).astype(np.int32)
    prompt = request.tokens[:start]
    counts[np.unique(prompt[prompt < vocabulary])] |= IN_PROMPT
    counts[[token for token in request.stop_ids if token < vocabulary]] |= ENDS_TEXT
    biases = np.zeros(vocabulary, np.float32)
    for token, bias in sampling.biases:
        biases[token] += bias
    biases[[token for token in request.end_ids if token < vocabulary]] -= sampling.eos_penalty
    if sampling.logits_eos_inf and eos < vocabulary:
        biases[eos] = -np.inf
    return counts, biases
