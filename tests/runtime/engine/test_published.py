"""The settings of LLaDA's and Dream's published generation code, by the names of their code, on tiny checkpoints.

The references here are those loops in plain Python over the model in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from shoal.runtime.errors import InvalidRequestError
from shoal.runtime.http.config import ServerConfig
from shoal.runtime.http.decoding import sampling_params
from shoal.runtime.request.sampling_params import SamplingParams

from ..oracle import Dense, Session
from ..tiny import MASK, make_engine, tokens

CLOSE = 3e-4


def logits_of(model: Dense, sequence: Sequence[int]) -> Tensor:
    """Log-probabilities that each position's token is read from, [tokens, vocab]."""
    session = Session(model, len(sequence))
    rows = model.probabilities(session.forward(list(sequence), 0, len(sequence), len(sequence))).log()
    return rows if not model.shift else torch.cat((rows[:1], rows[:-1]))


def llada(model: Dense, prompt: list[int], length: int, block: int, steps: int, cfg: float) -> tuple[list[int], float]:
    """LLaDA's loop at temperature 0, with remasking low_confidence; and how close the closest decision was."""
    x, gap = prompt + [MASK] * length, math.inf
    for start in range(len(prompt), len(x), block):
        each = steps // (length // block)
        base, extra = divmod(block, each)
        for step in range(each):
            rows = logits_of(model, x)
            if cfg:
                without = logits_of(model, [MASK] * len(prompt) + x[len(prompt) :])
                rows = without + (cfg + 1) * (rows - without)
                rows[:, MASK] = -math.inf
            p = rows.softmax(1)
            best = p.topk(2).values
            masks = [at for at in range(start, start + block) if x[at] == MASK]
            order = sorted(masks, key=lambda at: -float(best[at, 0]))
            count = base + (step < extra)
            gap = min(gap, *(float(best[at, 0] - best[at, 1]) for at in masks))
            if count < len(order):
                gap = min(gap, float(best[order[count - 1], 0] - best[order[count], 0]))
            for at in order[:count]:
                x[at] = int(p[at].argmax())
    return x[len(prompt) :], gap


def dream(model: Dense, prompt: list[int], length: int, steps: int, alg: str, eps: float) -> tuple[list[int], float]:
    """Dream's loop at temperature 0 with alg_temp 0 (None there)."""
    x, gap = prompt + [MASK] * length, math.inf
    times = torch.linspace(1, eps, steps + 1)
    for step in range(steps):
        p = logits_of(model, x).softmax(1)
        best = p.topk(2).values
        masks = [at for at in range(len(prompt), len(x)) if x[at] == MASK]
        entropy = -(p * p.clamp_min(1e-300).log()).sum(1)
        confidence = {"maskgit_plus": best[:, 0], "topk_margin": best[:, 0] - best[:, 1], "entropy": -entropy}[alg]
        count = int(len(masks) * (1 - times[step + 1] / times[step])) if step < steps - 1 else len(masks)
        order = sorted(masks, key=lambda at: -float(confidence[at]))
        gap = min([gap, *(float(best[at, 0] - best[at, 1]) for at in order[:count])])
        if 0 < count < len(order):
            gap = min(gap, float(confidence[order[count - 1]] - confidence[order[count]]))
        for at in order[:count]:
            x[at] = int(p[at].argmax())
    return x[len(prompt) :], gap


def asked(**fields: Any) -> SamplingParams:
    """What a body with these fields asks for."""
    return sampling_params({**fields, "ignore_eos": True}, ServerConfig(), {"max_new_tokens": 1024})


@pytest.mark.parametrize("cfg", [0.0, 0.5, 2.0])
def test_llada_s(folders, oracles, cfg):
    fields = {"steps": 8, "gen_length": 16, "block_length": 8, "temperature": 0.0, "cfg_scale": cfg,
              "remasking": "low_confidence"}  # fmt: skip
    equal = 0
    with make_engine(folders["llada"]) as engine:
        for seed in range(20):
            if equal == 3:
                break
            expected, gap = llada(oracles["llada"], tokens(7, seed), 16, 8, 8, cfg)
            if gap > CLOSE:
                output = engine.generate(tokens(7, seed), asked(**fields), cache_mode="none")
                assert list(output.token_ids) == expected
                assert output.nfe == 8 * (2 if cfg else 1)
                equal += 1
    assert equal == 3


@pytest.mark.parametrize("alg", ["maskgit_plus", "topk_margin", "entropy"])
def test_dream_s(folders, oracles, alg):
    equal = 0
    fields = {"steps": 9, "gen_length": 16, "block_length": 16, "temperature": 0.0, "alg": alg, "eps": 1e-3,
              "alg_temp": 0.0}  # fmt: skip
    with make_engine(folders["dream"]) as engine:
        for seed in range(20):
            if equal == 3:
                break
            expected, gap = dream(oracles["dream"], tokens(7, seed), 16, 9, alg, 1e-3)
            if gap > CLOSE:
                output = engine.generate(tokens(7, seed), asked(**fields), cache_mode="none")
                assert list(output.token_ids) == expected
                equal += 1
        recipe = {**fields, "temperature": 0.2, "top_p": 0.95, "alg_temp": 0.1, "seed": 1}
        drawn = engine.generate(tokens(7, 0), asked(**recipe), cache_mode="none")
        assert engine.generate(tokens(7, 0), asked(**recipe), cache_mode="none").token_ids == drawn.token_ids
    assert equal == 3


def test_guidance_depends_on_no_other_request_and_is_refused_where_it_can_not_be_had(llada):
    params = SamplingParams(max_new_tokens=16, threshold=0.5, cfg_scale=1.5, ignore_eos=True)
    with make_engine(llada) as engine:
        alone = engine.generate(tokens(9, 1), params, cache_mode="none")
        plain = SamplingParams(max_new_tokens=24, threshold=0.5, ignore_eos=True)
        prompts = [tokens(9, n) for n in range(4)]
        mixed = engine.generate(prompts, [plain, params, plain, params], cache_mode="none")
        assert mixed[1].token_ids == alone.token_ids
        assert mixed[2].token_ids == engine.generate(prompts[2], plain, cache_mode="none").token_ids
        assert alone.token_ids != engine.generate(tokens(9, 1), plain, cache_mode="none").token_ids[:16]
        for mode in ("prefix", "dual", "lm", "bicache"):
            with pytest.raises(InvalidRequestError, match=f"cache_mode none alone, not in {mode}") as caught:
                engine.generate(tokens(9, 1), params, cache_mode=mode)
            assert caught.value.field == "cfg_scale"
        with pytest.raises(InvalidRequestError, match="cfg_scale can't be used with a canvas"):
            engine.generate(tokens(9, 1), params, cache_mode="none", canvas=[-1, 5])
