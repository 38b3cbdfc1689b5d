"""Scaled RoPE against transformers' own implementation, and what of it is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from shoal.runtime.errors import ModelLoadError
from shoal.runtime.model.registry import published, read_config
from shoal.runtime.model.rope_scaling import RopeScaling

from .oracle import A2D_QWEN3_TINY, A2D_TINY, rope_speeds

# What the published configurations of Llama 3.1 8B and Llama 3.2 1B say.
LLAMA_3_1 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
LLAMA_3_2 = {**LLAMA_3_1, "factor": 32.0}
SCALINGS: list[dict[str, Any]] = [
    LLAMA_3_1,
    LLAMA_3_2,
    {**LLAMA_3_1, "low_freq_factor": 2.5, "high_freq_factor": 3.0, "original_max_position_embeddings": 1000},
    {"rope_type": "linear", "factor": 4.0},
    {"type": "linear", "factor": 2},
    {"rope_type": "default"},
]
BASES = [(A2D_TINY, LlamaConfig, LlamaRotaryEmbedding), (A2D_QWEN3_TINY, Qwen3Config, Qwen3RotaryEmbedding)]


def shapes(base: dict[str, Any], scaling: dict[str, Any], head_dim: int, theta: float) -> dict[str, Any]:
    values = {**base, "head_dim": head_dim, "rope_theta": theta, "max_position_embeddings": 131072}
    return {**values, "rope_scaling": dict(scaling)}


@pytest.mark.parametrize(("base", "make_config", "make_rotary"), BASES)
@pytest.mark.parametrize(("head_dim", "theta"), [(128, 500000.0), (64, 10000.0)])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_frequencies_are_those_of_transformers(base, make_config, make_rotary, head_dim, theta, scaling):
    values = shapes(base, scaling, head_dim, theta)
    config = read_config(values)
    plain = torch.tensor([theta ** (-2 * pair / head_dim) for pair in range(head_dim // 2)], dtype=torch.float64)
    found = plain * torch.tensor(config.rope_multipliers or [1.0] * len(plain), dtype=torch.float64)
    rotary = make_rotary(make_config(**{key: value for key, value in values.items() if key != "model_type"}))
    assert rotary.attention_scaling == 1.0
    torch.testing.assert_close(found, rotary.inv_freq.double(), rtol=2e-6, atol=0)
    changed = (found != plain).sum()
    assert changed == 0 if scaling.get("rope_type") == "default" else changed > len(plain) // 4


def test_the_three_bands_of_llama3():
    multipliers = RopeScaling("llama3", 8.0, 1.0, 4.0, 8192).multipliers(128, 500000.0)
    waves = [2 * torch.pi * 500000.0 ** (2 * pair / 128) for pair in range(64)]
    for wave, multiplier in zip(waves, multipliers, strict=True):
        if wave < 8192 / 4:
            assert multiplier == 1
        elif wave > 8192:
            assert multiplier == 1 / 8
        else:
            assert 1 / 8 < multiplier < 1
    assert sorted(multipliers, reverse=True) == multipliers
    assert len({*multipliers} - {1, 1 / 8}) > 3


@pytest.mark.parametrize("scaling", SCALINGS)
def test_rope_parameters_of_transformers_5_read_as_rope_scaling_does(scaling):
    values = shapes(A2D_QWEN3_TINY, scaling, 64, 10000.0)
    new = {key: value for key, value in values.items() if key not in ("rope_theta", "rope_scaling")}
    assert read_config({**new, "rope_parameters": {**scaling, "rope_theta": 10000.0}}) == read_config(values)


def test_original_length_where_transformers_looks_for_it():
    """Beside `rope_scaling` first, then in it, then the model's own length."""
    without = {key: value for key, value in LLAMA_3_1.items() if key != "original_max_position_embeddings"}

    def length(values: dict[str, Any]) -> int:
        scaling = read_config({**A2D_TINY, **values}).rope_scaling
        assert scaling is not None
        return scaling.original_max_position_embeddings

    assert length({"rope_scaling": LLAMA_3_1, "original_max_position_embeddings": 4096}) == 4096
    assert length({"rope_scaling": LLAMA_3_1}) == 8192
    assert length({"rope_scaling": without}) == A2D_TINY["max_position_embeddings"]


def test_a_model_without_scaling_has_the_digest_it_always_had():
    for name in ("a2d-qwen3-0.6b", "dream-7b"):
        assert read_config(published(name)).rope_multipliers is None
    plain = {key: value for key, value in A2D_TINY.items() if key != "rope_scaling"}
    digests = {
        read_config({**plain, "rope_scaling": scaling}).config_digest for scaling in (None, LLAMA_3_1, LLAMA_3_2)
    }
    assert len(digests) == 3
    assert read_config(plain).config_digest in digests


def test_the_oracle_of_these_tests_scales_as_transformers_does():
    rotary = LlamaRotaryEmbedding(LlamaConfig(**{key: value for key, value in A2D_TINY.items() if key != "model_type"}))
    torch.testing.assert_close(rope_speeds(A2D_TINY, 16), rotary.inv_freq.double(), rtol=2e-6, atol=0)


@pytest.mark.parametrize(
    ("change", "key", "supported"),
    [
        ({"factor": 0.5}, "factor", "at least 1"),
        ({"factor": None}, "factor", "required"),
        ({"factor": "8"}, "factor", "number"),
        ({"low_freq_factor": None}, "low_freq_factor", "required"),
        ({"high_freq_factor": 1.0}, "high_freq_factor", "above low_freq_factor = 1"),
        ({"original_max_position_embeddings": 0}, "original_max_position_embeddings", "at least 1"),
        ({"original_max_position_embeddings": 0.5}, "original_max_position_embeddings", "whole number"),
        ({"partial_rotary_factor": 0.25}, "partial_rotary_factor", "1"),
    ],
)
@pytest.mark.parametrize("outer", ["rope_scaling", "rope_parameters"])
def test_a_bad_number_is_named_with_its_place(outer, change, key, supported):
    values = {**A2D_TINY, "rope_scaling": None, outer: {**LLAMA_3_1, **change}}
    with pytest.raises(ModelLoadError) as caught:
        read_config(values)
    assert caught.value.field == f"{outer}.{key}"
    assert supported in str(caught.value.limit)
    assert f"{outer}.{key}" in str(caught.value)
