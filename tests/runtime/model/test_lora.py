"""LoRA adapters against merging by hand, and what is refused."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from shoal.runtime.errors import ModelLoadError
from shoal.runtime.model.digest import model_digest
from shoal.runtime.model.loader import load_model

from .checkpoints import write_folder
from .oracle import DREAM_TINY, LLADA_MOE_TINY, LLADA_TINY, random_state_dict
from .test_decoder import run

SETTINGS: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "bias": "none", "task_type": None}
MODULES = {
    "llada": ("model.transformer.blocks.0.q_proj", "model.transformer.blocks.2.ff_out", "model.transformer.ff_out"),
    "dream": ("model.layers.1.self_attn.v_proj", "model.layers.0.mlp.gate_proj", "lm_head"),
    "llada-moe": (
        "model.layers.0.mlp.gate",
        "model.layers.1.mlp.experts.3.down_proj",
        "model.layers.2.self_attn.o_proj",
    ),
}
CONFIGS = {"llada": LLADA_TINY, "dream": DREAM_TINY, "llada-moe": LLADA_MOE_TINY}


def pairs(state: dict[str, Tensor], modules: tuple[str, ...], rank: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    out = {}
    for module in modules:
        rows, columns = state[f"{module}.weight"].shape
        out[f"base_model.model.{module}.lora_A.weight"] = torch.randn(rank, columns, generator=generator) / 4
        out[f"base_model.model.{module}.lora_B.weight"] = torch.randn(rows, rank, generator=generator) / 4
    return out


def write_adapter(folder, weights: dict[str, Tensor], **settings: Any):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**SETTINGS, **settings}))
    save_file({name: tensor.clone() for name, tensor in weights.items()}, folder / "adapter_model.safetensors")
    return folder


def logits(folder, **options) -> Tensor:
    return run(load_model(folder, **options), torch.arange(20), torch.arange(20))


def merged(state: dict[str, Tensor], weights: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    state = dict(state)
    for name, a in weights.items():
        if ".lora_A." in name:
            target = name.removeprefix("base_model.model.").replace(".lora_A", "")
            state[target] = state[target] + scale * (weights[name.replace("lora_A", "lora_B")] @ a)
    return state


@pytest.mark.parametrize("name", list(CONFIGS))
def test_an_adapter_gives_the_logits_of_weights_merged_by_hand(tmp_path, name):
    state = random_state_dict(CONFIGS[name])
    weights = pairs(state, MODULES[name])
    base = write_folder(tmp_path / "base", CONFIGS[name], state, shards=2)
    by_hand = write_folder(tmp_path / "merged", CONFIGS[name], merged(state, weights, 6 / 4))
    adapter = write_adapter(tmp_path / "adapter", weights)
    found = logits(base, lora=adapter)
    torch.testing.assert_close(found, logits(by_hand), rtol=1e-5, atol=1e-5)
    assert (found - logits(base)).abs().max() > 0.1
    assert model_digest(base, lora=adapter) != model_digest(base)


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"use_rslora": True}, 6 / math.sqrt(4)),
        ({"alpha_pattern": {"q_proj": 2}}, 2 / 4),
        ({"rank_pattern": {r"blocks\.\d+\.q_proj": 4}, "r": 8}, 6 / 4),
        ({"inference_mode": True, "target_modules": ["q_proj"], "lora_dropout": 0.1}, 6 / 4),
    ],
)
def test_scales_as_peft_has_them(tmp_path, settings, scale):
    state = random_state_dict(LLADA_TINY)
    weights = pairs(state, MODULES["llada"][:1])
    base = write_folder(tmp_path / "base", LLADA_TINY, state)
    by_hand = write_folder(tmp_path / "merged", LLADA_TINY, merged(state, weights, scale))
    found = logits(base, lora=write_adapter(tmp_path / "adapter", weights, **settings))
    torch.testing.assert_close(found, logits(by_hand), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"peft_type": "LOHA"}, "peft_type"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"r": 3}, "rank 3"),
        ({"alpha_pattern": {"(": 2}}, "regular expression"),
    ],
)
def test_settings_that_mean_more_than_two_matrices_are_refused(tmp_path, settings, word):
    state = random_state_dict(LLADA_TINY)
    base = write_folder(tmp_path / "base", LLADA_TINY, state)
    adapter = write_adapter(tmp_path / "adapter", pairs(state, MODULES["llada"]), **settings)
    with pytest.raises(ModelLoadError, match=word) as caught:
        load_model(base, lora=adapter)
    assert caught.value.field == "lora"


def test_weights_that_do_not_fit_are_refused_by_name(tmp_path):
    state = random_state_dict(LLADA_TINY)
    base = write_folder(tmp_path / "base", LLADA_TINY, state)
    good = pairs(state, MODULES["llada"][:1])
    (a, b), (a_weight, b_weight) = good.keys(), good.values()
    for number, (weights, word) in enumerate(
        [
            ({a: a_weight}, "lora_B"),
            ({}, "at least one pair"),
            ({a: a_weight[:, 1:].contiguous(), b: b_weight}, "lora_A"),
            ({**good, "base_model.model.lm_head.lora_A.weight": a_weight}, "lm_head"),
            ({**good, "base_model.model.model.transformer.wte.lora_embedding_A": a_weight}, "lora_embedding_A"),
            ({**good, a.replace("blocks.0", "blocks.9"): a_weight}, "blocks.9"),
        ]
    ):
        with pytest.raises(ModelLoadError, match=word):
            load_model(base, lora=write_adapter(tmp_path / str(number), weights))


def test_a_folder_that_is_no_adapter_and_dummy_weights_are_refused(tmp_path):
    base = write_folder(tmp_path / "base", LLADA_TINY, random_state_dict(LLADA_TINY))
    with pytest.raises(ModelLoadError, match=r"adapter_config\.json") as caught:
        load_model(base, lora=tmp_path / "nothing")
    assert caught.value.field == "lora"
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "adapter_config.json").write_text(json.dumps(SETTINGS))
    with pytest.raises(ModelLoadError, match=r"adapter_model\.safetensors"):
        load_model(base, lora=tmp_path / "empty")
    with pytest.raises(ModelLoadError, match="dummy"):
        load_model(base, lora=tmp_path / "nothing", load_format="dummy")
