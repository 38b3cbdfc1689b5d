"""A tiny checkpoint of every family through the engine: all cache modes, batches, an adapter, the mask's option."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal import SamplingParams
from shoal.runtime.config import CacheMode
from shoal.runtime.errors import ModelLoadError
from shoal.runtime.model.registry import FAMILIES
from shoal.runtime.worker.cpu.executor import CpuExecutor

from ..model.checkpoints import write_folder
from ..model.oracle import TINY, oracle_logits, random_state_dict
from ..tiny import EOS, MASK, VOCABULARY, assert_nothing_lost, make_engine, tokens, write_tokenizer
from ..worker.cuda_path import cuda_executor

MODES: tuple[CacheMode, ...] = ("none", "prefix", "dual", "lm", "bicache")


def config_of(family: str) -> dict[str, Any]:
    """With the tokenizer's vocabulary; four layers, so that half of them can be reused."""
    config = {**TINY[family], "vocab_size": VOCABULARY, "eos_token_id": EOS, "pad_token_id": EOS, "mask_token_id": MASK}
    if "d_model" in config:
        return {**config, "embedding_size": VOCABULARY, "n_layers": 4, "max_sequence_length": 128}
    for key, value in (("layer_types", ["full_attention"] * 4), ("moe_layer_freq", [1] * 4)):
        config |= {key: value} if key in config else {}
    return {**config, "num_hidden_layers": 4}


def state_of(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Sharp heads: decisions far from each other."""
    state = random_state_dict(config, seed=5)
    return {name: tensor * 3 if name in ("lm_head.weight", "model.transformer.ff_out.weight") else tensor
            for name, tensor in state.items()}  # fmt: skip


@pytest.fixture(scope="module", params=[family.name for family in FAMILIES])
def model(request, tmp_path_factory) -> tuple[dict[str, Any], dict[str, torch.Tensor], Path]:
    config = config_of(request.param)
    state = state_of(config)
    return config, state, write_tokenizer(write_folder(tmp_path_factory.mktemp("model"), config, state, shards=2))


def decoded(config: dict[str, Any], state: dict[str, torch.Tensor], prompt: list[int], blocks: int) -> list[int]:
    """Blocks of 8 by full recomputation in float64, two commits a step, the likeliest first."""
    shift = int(config.get("shift_logits", config["model_type"] == "Dream"))
    ids = torch.tensor(prompt + [MASK] * 8 * blocks)
    for block in range(blocks):
        first = len(prompt) + 8 * block
        for _ in range(4):
            masks = (ids[first : first + 8] == MASK).nonzero()[:, 0] + first
            logits = oracle_logits(config, state, ids, torch.arange(len(ids)))
            logits[:, MASK] = -torch.inf
            best, token = logits.softmax(-1)[masks - shift].max(-1)
            chosen = best.topk(2).indices
            ids[masks[chosen]] = token[chosen]
    return [int(token) for token in ids[len(prompt) :]]


def test_every_mode_and_batch(model):
    config, state, folder = model
    prompts = [tokens(20, seed=1), tokens(13, seed=2), tokens(20, seed=1)[:12] + tokens(9, seed=3)]
    params = SamplingParams(max_new_tokens=16, steps=8, schedule="even", ignore_eos=True)
    with make_engine(folder, depth=2) as engine:
        for mode in MODES:
            single = []
            for prompt in prompts:
                engine.flush_cache()
                single.append(engine.generate(prompt, params, cache_mode=mode).token_ids)
            engine.flush_cache()
            together = engine.generate(prompts[:2], params, cache_mode=mode)  # of these none reuses another's prefix
            assert [output.token_ids for output in together] == single[:2], mode
            if mode == "none":
                assert [list(ids) for ids in single] == [decoded(config, state, prompt, 2) for prompt in prompts]
            hit = engine.generate(prompts[2], params, cache_mode=mode)
            assert hit.cached_tokens == (12 if mode in ("lm", "bicache") else 0), mode
            assert len(hit.token_ids) == 16
        assert_nothing_lost(engine)


def cpu_executor(_, decoder, kv, boundary, __):
    return CpuExecutor(decoder, kv, boundary)


@pytest.mark.parametrize("fold", [False, True])
def test_the_path_of_a_gpu_gives_the_same_answers(model, fold):
    """Its layers and reference kernels, on the CPU; folded norms are put off into the kernel that norms heads."""
    _, _, folder = model
    params = SamplingParams(max_new_tokens=16, steps=8, ignore_eos=True)
    prompts = [tokens(20, seed=1), tokens(13, seed=2)]
    answers = []
    for build in (cpu_executor, cuda_executor):

        def executor(config, decoder, *rest, build=build):
            if fold:
                decoder.fold_norms()
            return build(config, decoder, *rest)

        with make_engine(folder, executor=executor, depth=2) as engine:
            for mode in ("none", "bicache"):
                answers.append([output.token_ids for output in engine.generate(prompts, params, cache_mode=mode)])
    assert answers[:2] == answers[2:]


def test_an_adapter_and_the_mask_are_options_of_the_engine(tmp_path):
    config = config_of("a2d-qwen3")
    del config["mask_token_id"]
    state = state_of(config)
    folder = write_tokenizer(write_folder(tmp_path / "model", config, state))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "OTHER"}))
    with pytest.raises(ModelLoadError, match="--mask-token-id"):
        make_engine(folder, depth=2)
    with pytest.raises(ModelLoadError, match="peft_type"):
        make_engine(folder, depth=2, mask_token_id=MASK, lora=str(adapter))
    with make_engine(folder, depth=2, mask_token_id=MASK) as engine:
        assert engine.model_config.mask_token_id == MASK
        params = SamplingParams(max_new_tokens=8, steps=4, ignore_eos=True)
        output = engine.generate(tokens(9), params, cache_mode="none")
        assert list(output.token_ids) == decoded(config, state, tokens(9), 1)


def test_the_token_that_lengthens_a_canvas_of_dreamon_is_never_chosen(tmp_path):
    """Its row of the head is large: without the bias some positions would hold it."""
    config, expand = config_of("dream"), MASK + 1
    state = state_of(config)
    state["model.norm.weight"] = state["model.norm.weight"].abs()
    state["lm_head.weight"][expand] = 3 * state["lm_head.weight"].abs().amax(0) * state["lm_head.weight"][9].sign()
    folder = write_tokenizer(write_folder(tmp_path, config, state))
    params = SamplingParams(max_new_tokens=16, steps=8, ignore_eos=True)
    with make_engine(folder, depth=2) as engine:
        without = engine.generate(tokens(20, seed=1), params, cache_mode="none")
    assert expand in without.token_ids
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    added = {"added_tokens_decoder": {str(expand): {"content": "<|expand|>", "special": True}}}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **added}))
    for executor in (cpu_executor, cuda_executor):
        with make_engine(folder, depth=2, executor=executor) as engine:
            for changed in (params, replace(params, logit_bias={expand: 100.0}), replace(params, temperature=1.0)):
                output = engine.generate(tokens(20, seed=1), changed, cache_mode="bicache")
                assert expand not in output.token_ids
                assert len(output.token_ids) == 16
