"""Requests with lengths like ShareGPT's, of which a share begins with one of a few prefixes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

MEDIAN_INPUT, MEDIAN_OUTPUT = 795, 596
"""Tokens; the medians that Sangam reports of ShareGPT. The data set is not needed: a lognormal stands for it."""
_SIGMA = 0.7
_LEAST = 4


@dataclass(frozen=True, slots=True)
class Traffic:
    """What arrives.

    Attributes:
        scale: of all lengths: 1 for ShareGPT's, less for a small model.
        share: of requests that begin with a prefix (0 to 1).
        prefix: tokens of each prefix, scaled too, in front of the request's own input.
        prefixes: how many there are, equally popular.
        vocabulary: token ids are in [low, vocabulary).
        longest: most tokens of prompt and output together; longer requests are cut.
    """

    scale: float
    share: float
    prefix: int
    prefixes: int
    low: int
    vocabulary: int
    longest: int


@dataclass(frozen=True, slots=True)
class Planned:
    """One request: when it is sent (seconds after the first), its prompt and the tokens to generate."""

    at: float
    prompt: list[int]
    new_tokens: int


def plan(traffic: Traffic, rate: float, count: int, seed: int) -> list[Planned]:
    """`count` requests with exponential gaps of 1 / rate seconds on average; the same for the same arguments."""
    rng = np.random.default_rng(seed)
    # Lengths and prompts do not depend on the rate: two rates differ in the gaps alone.
    inputs = lengths(rng, MEDIAN_INPUT * traffic.scale, count)
    outputs = lengths(rng, MEDIAN_OUTPUT * traffic.scale, count)
    prefix = round(traffic.prefix * traffic.scale)
    shared = rng.integers(traffic.low, traffic.vocabulary, (traffic.prefixes, prefix)).tolist()
    chosen = rng.integers(0, traffic.prefixes, count)
    begins = rng.random(count) < traffic.share
    gaps = rng.exponential(1.0, count) / rate
    at, planned = 0.0, []
    for number in range(count):
        head = shared[chosen[number]] if begins[number] else []
        new = min(int(outputs[number]), max(_LEAST, (traffic.longest - len(head)) // 2))
        own = min(int(inputs[number]), traffic.longest - len(head) - new)
        prompt = head + rng.integers(traffic.low, traffic.vocabulary, max(1, own)).tolist()
        planned.append(Planned(at, prompt, new))
        at += float(gaps[number])
    return planned


def lengths(rng: np.random.Generator, median: float, count: int) -> np.ndarray:
    """int64 [count], lognormal with this median, at least a few."""
    drawn = rng.lognormal(math.log(median), _SIGMA, count)
    return np.maximum(_LEAST, np.rint(drawn)).astype(np.int64)
