"""Drawn generations of LLaDA's and Dream's published code equal the engine's, given the same draws.

The references are those loops in float64 over plain tensors. They draw as the published code does, and take the
uniform numbers that the engine's generator of the same seed gives: one a masked position of the block and token, then
with alg_temp one a masked position. `gap` is how close the closest decision was; where fp32 might decide otherwise, the
next seed is taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from shoal.runtime.http.config import ServerConfig
from shoal.runtime.http.decoding import sampling_params

from ..oracle import Dense
from ..tiny import MASK, make_engine, tokens
from .test_published import CLOSE, logits_of

EQUAL, MOST = 4, 30
LENGTH, STEPS = 16, 9
DREAM = {"temperature": 0.2, "top_p": 0.95, "alg": "entropy", "alg_temp": 0.0}
"""The settings of Dream's README; the others are those of its evaluation and demos, and warmer ones."""
RECIPES: list[Mapping[str, Any]] = [
    DREAM,
    {**DREAM, "alg": "maskgit_plus"},
    {**DREAM, "alg": "topk_margin"},
    {**DREAM, "temperature": 0.1, "top_p": 0.9},
    {**DREAM, "alg_temp": 0.1},
    {**DREAM, "temperature": 1.2, "top_p": 0.95, "alg": "maskgit_plus"},
    {**DREAM, "temperature": 1.2, "top_p": 0.8, "alg": "topk_margin", "top_k": 50, "alg_temp": 0.5},
]


class Draws:
    """The uniform numbers in (0, 1) of one request; `sure`: fp32 decides nothing otherwise."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)
        self.sure = True

    def decide(self, gaps: Tensor, close: float = CLOSE) -> None:
        self.sure &= bool((gaps > close).all())

    def uniform(self, *shape: int) -> Tensor:
        return 1 - torch.rand(shape, dtype=torch.float64, generator=self.generator)

    def categorical(self, p: Tensor) -> Tensor:
        """A token for each row of probabilities [rows, vocab], by the exponential race: argmax of p / -log u."""
        race = p.log() - (-self.uniform(*p.shape).log()).log()
        best = race.topk(2).values
        self.decide(best[:, 0] - best[:, 1])
        return race.argmax(1)

    def first(self, scores: Tensor, count: int) -> Tensor:
        """Indices of the `count` largest scores, the earlier of equal ones.

        Scores are equal where top_p leaves one token: its probability is 1 and its entropy 0, in any precision.
        """
        order = torch.sort(scores, descending=True, stable=True).indices
        if count < len(order) and scores[order[count - 1]] != scores[order[count]]:
            self.decide(scores[order[count - 1]] - scores[order[count]])
        return order[:count]

    def nucleus(self, p: Tensor, top_p: float) -> Tensor:
        """Logits [rows, vocab] of the tokens that reach top_p; -inf for the others."""
        ordered, order = p.sort(descending=True, stable=True)
        total = ordered.cumsum(1)
        self.decide((total - top_p).abs(), CLOSE / 20)
        removed = total > top_p
        removed[:, 1:] = removed[:, :-1].clone()
        removed[:, 0] = False
        return p.log().masked_fill(torch.zeros_like(removed).scatter(1, order, removed), -math.inf)


def dream(
    model: Dense, prompt: list[int], seed: int, recipe: Mapping[str, Any], ranked_by: str = "sampled"
) -> tuple[list[int], bool]:
    """Dream's `diffusion_generate`, but for forwards that commit nothing: their draws are thrown away there.

    `ranked_by="model"` is not Dream's: confidence is then of the logits that neither temperature nor cuts touched.
    """
    draws, x = Draws(seed), prompt + [MASK] * LENGTH
    times = torch.linspace(1, 1e-3, STEPS + 1)
    for step in range(STEPS):
        masks = [at for at in range(len(prompt), len(x)) if x[at] == MASK]
        count = int(len(masks) * (1 - times[step + 1] / times[step])) if step < STEPS - 1 else len(masks)
        if not count:
            continue
        undisturbed = logits_of(model, x)[masks]
        logits = undisturbed / recipe["temperature"]
        logits = draws.nucleus(logits.softmax(1), recipe["top_p"])
        if "top_k" in recipe:
            logits = logits.masked_fill(logits < logits.topk(recipe["top_k"]).values[:, -1:], -math.inf)
        p = logits.softmax(1)
        token = draws.categorical(p)
        p = p if ranked_by == "sampled" else undisturbed.softmax(1)
        best = p.topk(2).values
        confidence = {
            "maskgit_plus": p.gather(1, token[:, None])[:, 0],
            "topk_margin": best[:, 0] - best[:, 1],
            "entropy": (p * (p + 1e-10).log()).sum(1),
        }[recipe["alg"]]
        if recipe["alg_temp"]:  # multinomial without replacement is a race too
            race = (confidence / recipe["alg_temp"]).softmax(0).log()
            confidence = race - (-draws.uniform(len(masks)).log()).log()
        for index in draws.first(confidence, count).tolist():
            x[masks[index]] = int(token[index])
    return x[len(prompt) :], draws.sure


def llada(
    model: Dense, prompt: list[int], seed: int, temperature: float, block: int, tempered: bool = False
) -> tuple[list[int], bool]:
    """LLaDA's `generate` with remasking low_confidence: argmax of exp(logits) / (-log u) ** temperature.

    `tempered=True` is not LLaDA's: confidence is then of logits / temperature, as Dream has it.
    """
    draws, x, steps = Draws(seed), prompt + [MASK] * LENGTH, 4
    for start in range(len(prompt), len(x), block):
        base, extra = divmod(block, steps)
        for step in range(steps):
            masks = [at for at in range(start, start + block) if x[at] == MASK]
            logits = logits_of(model, x)[masks]
            noisy = logits.exp() / (-draws.uniform(*logits.shape).log()) ** temperature
            best = noisy.topk(2).values.log()
            draws.decide(best[:, 0] - best[:, 1])
            token = noisy.argmax(1)
            p = (logits / temperature if tempered else logits).softmax(1)
            for index in draws.first(p.gather(1, token[:, None])[:, 0], base + (step < extra)).tolist():
                x[masks[index]] = int(token[index])
    return x[len(prompt) :], draws.sure


def body(fields: Mapping[str, Any], seed: int) -> Any:
    """What a body with these fields asks for."""
    values = {**fields, "gen_length": LENGTH, "seed": seed, "ignore_eos": True}
    return sampling_params(values, ServerConfig(), {"max_new_tokens": 1024})


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: "-".join(map(str, r.values())))
def test_dream_s_draws(folders, oracles, recipe):
    equal = others = 0
    fields = {**recipe, "steps": STEPS, "block_length": LENGTH, "eps": 1e-3}
    with make_engine(folders["dream"]) as engine:
        for seed in range(MOST):
            prompt = tokens(7, seed)
            expected, sure = dream(oracles["dream"], prompt, seed, recipe)
            if sure:
                output = engine.generate(prompt, body(fields, seed), cache_mode="none")
                assert list(output.token_ids) == expected, seed
                equal += 1
                others += others or dream(oracles["dream"], prompt, seed, recipe, "model")[0] != expected
            if equal >= EQUAL and others:
                break
    assert equal >= EQUAL
    assert others


@pytest.mark.parametrize("temperature", [0.5, 1.5])
def test_llada_s_draws(folders, oracles, temperature):
    equal = others = 0
    fields = {"steps": 8, "block_length": 8, "temperature": temperature, "remasking": "low_confidence"}
    with make_engine(folders["llada"]) as engine:
        for seed in range(MOST):
            prompt = tokens(7, seed)
            expected, sure = llada(oracles["llada"], prompt, seed, temperature, 8)
            if sure:
                output = engine.generate(prompt, body(fields, seed), cache_mode="none")
                assert list(output.token_ids) == expected, seed
                equal += 1
                others += others or llada(oracles["llada"], prompt, seed, temperature, 8, tempered=True)[0] != expected
            if equal >= EQUAL and others:
                break
    assert equal >= EQUAL
    assert others
