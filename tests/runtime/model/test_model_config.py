"""Reading config.json: the published shapes, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, cast

import pytest

from shoal.runtime.errors import ModelLoadError
from shoal.runtime.model.registry import load_config, published, read_config
from shoal.runtime.model.rope_scaling import RopeScaling

from .oracle import A2D_QWEN2_TINY, A2D_QWEN3_TINY, A2D_TINY, DREAM_TINY, ILLADA_TINY, LLADA_MOE_TINY, LLADA_TINY

# What the published GSAI-ML/LLaDA-8B-Instruct and Dream-org/Dream-v0-Instruct-7B say, where the tiny ones differ.
LLADA_PUBLISHED = {
    **LLADA_TINY,
    "d_model": 4096,
    "embedding_size": 126464,
    "eos_token_id": 126081,
    "mask_token_id": 126336,
    "max_sequence_length": 4096,
    "mlp_hidden_size": 12288,
    "n_heads": 32,
    "n_kv_heads": 32,
    "n_layers": 32,
    "pad_token_id": 126081,
    "vocab_size": 126464,
}
DREAM_PUBLISHED = {
    **DREAM_TINY,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "mask_token_id": 151666,
    "max_position_embeddings": 131072,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "pad_token_id": 151643,
    "vocab_size": 152064,
}
LLADA_8B = read_config(published("llada-8b"))
DREAM_7B = read_config(published("dream-7b"))


def test_presets_are_what_the_published_configurations_read_as():
    assert read_config(LLADA_PUBLISHED) == LLADA_8B
    assert read_config(DREAM_PUBLISHED) == DREAM_7B


def test_presets_have_the_published_number_of_parameters():
    assert LLADA_8B.num_parameters == 8_015_581_184
    assert DREAM_7B.num_parameters == 7_615_616_512


def test_a_dream_configuration_written_by_transformers_5_reads_the_same():
    values = {**DREAM_PUBLISHED, "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}}
    del values["rope_theta"], values["rope_scaling"]
    assert read_config(values) == DREAM_7B


def test_sliding_window_sizes_are_fine_while_the_window_is_off():
    values = {**DREAM_PUBLISHED, "sliding_window": 131072, "use_sliding_window": False}
    assert read_config(values) == DREAM_7B


def test_multi_query_attention_means_one_kv_head():
    values = {**LLADA_TINY, "n_kv_heads": None, "multi_query_attention": True}
    assert read_config(values).num_kv_heads == 1
    assert read_config({**LLADA_TINY, "n_kv_heads": None}).num_kv_heads == LLADA_TINY["n_heads"]


def test_digest_follows_every_field_and_nothing_else():
    digest = read_config(LLADA_TINY).config_digest
    assert read_config({**LLADA_TINY, "transformers_version": "9.9"}).config_digest == digest
    base = read_config(published("llada-moe-7b"))  # only rope_scaling has its default
    changed = set()
    for field in dataclasses.fields(base):
        value = getattr(base, field.name)
        other: object
        if field.name == "architecture":
            other = "dream"
        elif isinstance(value, bool):
            other = not value
        elif field.name == "rope_scaling":
            other = RopeScaling("linear", 2.0)
        elif field.name in ("num_heads", "head_dim"):
            other = value * 2
        elif field.name == "num_kv_heads":
            other = 8
        elif field.name == "vocab_size":
            other = value - 1
        else:
            other = value + 1
        changed.add(dataclasses.replace(base, **cast(Any, {field.name: other})).config_digest)
    assert len(changed - {base.config_digest}) == len(dataclasses.fields(base))


@pytest.mark.parametrize(
    ("base", "key", "value", "supported"),
    [
        (LLADA_TINY, "model_type", "llama", "llada"),
        (LLADA_TINY, "model_type", None, "llada"),
        (LLADA_TINY, "block_type", "sequential", "llama"),
        (LLADA_TINY, "activation_type", "gelu", "silu"),
        (LLADA_TINY, "layer_norm_type", "default", "rms"),
        (LLADA_TINY, "layer_norm_with_affine", False, "True"),
        (LLADA_TINY, "alibi", True, "False"),
        (LLADA_TINY, "rope", False, "True"),
        (LLADA_TINY, "rope_scaling", {"type": "linear", "factor": 4.0}, "null"),
        (LLADA_TINY, "attention_layer_norm", True, "False"),
        (LLADA_TINY, "include_bias", True, "False"),
        (LLADA_TINY, "scale_logits", True, "False"),
        (LLADA_TINY, "input_emb_norm", True, "False"),
        (LLADA_TINY, "block_group_size", 4, "1"),
        (LLADA_TINY, "quantization_config", {"bits": 4}, "null"),
        (LLADA_TINY, "d_model", "48", "whole number"),
        (LLADA_TINY, "d_model", None, "required"),
        (LLADA_TINY, "n_layers", True, "whole number"),
        (LLADA_TINY, "n_heads", 5, "divisor"),
        (LLADA_TINY, "rope_theta", "big", "number"),
        (LLADA_TINY, "rope_theta", float("inf"), "finite number"),
        (LLADA_TINY, "rope_theta", 10**400, "finite number"),
        (LLADA_TINY, "weight_tying", "no", "true or false"),
        (LLADA_TINY, "mask_token_id", None, "required"),
        (LLADA_TINY, "eos_token_id", "</s>", "token id"),
        (A2D_TINY, "attention_bias", True, "False"),
        (A2D_TINY, "mlp_bias", True, "False"),
        (A2D_TINY, "shift_logits", "yes", "true or false"),
        (A2D_TINY, "mask_token_id", None, "required"),
        (A2D_QWEN3_TINY, "attention_bias", True, "False"),
        (A2D_QWEN3_TINY, "layer_types", ["full_attention", "sliding_attention"], "full_attention"),
        (A2D_QWEN2_TINY, "use_sliding_window", True, "False"),
        (ILLADA_TINY, "attention_bias", True, "False"),
        (LLADA_MOE_TINY, "norm_topk_prob", True, "False"),
        (LLADA_MOE_TINY, "shared_expert_intermediate_size", 64, "null"),
        (LLADA_MOE_TINY, "moe_layer_freq", [0, 1, 1], "[1, 1, 1]"),
        (LLADA_MOE_TINY, "moe_router_score_function", "sigmoid", "softmax"),
        (LLADA_MOE_TINY, "routed_scaling_factor", 2.5, "1"),
        (DREAM_TINY, "hidden_act", "gelu", "silu"),
        (DREAM_TINY, "use_sliding_window", True, "False"),
        (DREAM_TINY, "partial_rotary_factor", 0.5, "1"),
        *(
            (base, key, {name: kind, "factor": 4.0}, "'linear'")
            for base in (DREAM_TINY, A2D_TINY)
            for key, name in (("rope_scaling", "rope_type"), ("rope_scaling", "type"))
            for kind in ("yarn", "dynamic", "longrope", "mrope", 3)
        ),
        (A2D_QWEN3_TINY, "rope_parameters", {"rope_type": "yarn", "factor": 4.0}, "'linear'"),
        (A2D_QWEN3_TINY, "rope_parameters", "llama3", "object"),
        (DREAM_TINY, "quantization_config", {"quant_method": "gptq"}, "null"),
        (DREAM_TINY, "num_attention_heads", 7, "divisor"),
    ],
)
def test_what_cannot_run_is_refused_with_field_value_and_what_is_supported(base, key, value, supported):
    with pytest.raises(ModelLoadError) as caught:
        read_config({**base, key: value})
    assert caught.value.field == key
    assert caught.value.value == value
    assert supported in str(caught.value.limit)
    assert key in str(caught.value)


@pytest.mark.parametrize(
    ("base", "key", "value", "field"),
    [
        (LLADA_TINY, "n_layers", 0, "num_layers"),
        (LLADA_TINY, "mlp_hidden_size", -1, "intermediate_size"),
        (LLADA_TINY, "n_kv_heads", 2, "num_kv_heads"),
        (LLADA_TINY, "embedding_size", 50, "embedding_size"),
        (LLADA_TINY, "mask_token_id", 104, "mask_token_id"),
        (DREAM_TINY, "head_dim", 7, "head_dim"),
        (LLADA_MOE_TINY, "num_experts", 0, "experts_per_token"),
        (LLADA_MOE_TINY, "num_experts", -1, "num_experts"),
        (LLADA_MOE_TINY, "num_experts_per_tok", 8, "experts_per_token"),
        (LLADA_TINY, "rms_norm_eps", float("nan"), "rms_norm_eps"),
    ],
)
def test_values_out_of_range_are_refused_by_field(base, key, value, field):
    with pytest.raises(ModelLoadError) as caught:
        read_config({**base, key: value})
    assert caught.value.field == field
    assert caught.value.limit


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", b"\xff\xfe{}", b"3", b"[" * 200_000])
def test_a_missing_or_broken_config_file_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"config\.json") as caught:
        load_config(tmp_path)
    assert caught.value.field == "config.json"


def test_a_folder_reads_as_its_config_file(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(DREAM_TINY))
    assert load_config(tmp_path) == read_config(DREAM_TINY)


def test_an_a2d_model_shifts_its_logits_only_where_it_says_so():
    config = read_config(A2D_TINY)
    assert (config.architecture, config.qkv_bias, config.shift_logits) == ("a2d-llama", False, True)
    assert (config.head_dim, config.num_kv_heads, config.tie_word_embeddings) == (16, 1, True)
    silent = {key: value for key, value in A2D_TINY.items() if key != "shift_logits"}
    assert not read_config(silent).shift_logits
