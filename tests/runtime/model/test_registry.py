"""Which family a configuration belongs to, what is refused, and where the mask token comes from."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shoal.runtime.errors import ModelLoadError
from shoal.runtime.model.registry import FAMILIES, family_named, load_config, published, read_config

from .oracle import A2D_QWEN3_TINY, ILLADA_TINY, LLADA_MOE_TINY, TINY

PUBLISHED = [(family.name, name) for family in FAMILIES for name in family.published]
PARAMETERS = {
    "llada-8b": 8_015_581_184,
    "llada-moe-7b": 7_356_880_896,
    "dream-7b": 7_615_616_512,
    "a2d-qwen2-0.5b": 494_032_768,
    "a2d-qwen3-0.6b": 596_049_920,
}


def refused(values: dict[str, Any]) -> ModelLoadError:
    with pytest.raises(ModelLoadError) as caught:
        read_config(values)
    return caught.value


@pytest.mark.parametrize(("family", "name"), PUBLISHED)
def test_a_published_configuration_reads_as_its_family(family, name):
    config = read_config(published(name))
    assert config.architecture == family
    if name in PARAMETERS:
        assert config.num_parameters == PARAMETERS[name]


def test_names_are_distinct_and_found():
    assert [family_named(family.name) for family in FAMILIES] == list(FAMILIES)
    assert len({name for _, name in PUBLISHED}) == len(PUBLISHED)
    with pytest.raises(KeyError):
        family_named("gpt2")
    with pytest.raises(KeyError):
        published("gpt2")


@pytest.mark.parametrize("name", ["llada-8b", "llada-moe-7b", "illada-8b"])
@pytest.mark.parametrize("architectures", [None, "LLaDAModelLM", ["MyOwnName"], []])
def test_without_a_known_architecture_the_keys_tell_the_families_of_a_model_type_apart(name, architectures):
    values = {**published(name), "model_type": "llada", "architectures": architectures}
    assert read_config(values) == read_config(published(name))


def test_an_architecture_decides_before_the_model_type():
    assert read_config({**LLADA_MOE_TINY, "d_model": 48}).architecture == "llada-moe"
    assert read_config({**ILLADA_TINY, "architectures": ["LLaDAModelLM"]}).architecture == "illada"


@pytest.mark.parametrize("model_type", ["gpt2", None, 3, "llama", ["llada"]])
def test_the_error_for_an_unknown_model_lists_what_is_served_and_what_is_not(model_type):
    error = refused({"model_type": model_type, "architectures": ["LLaDAModelLM"]})
    assert error.field == "model_type"
    for word in ("'llada'", "'dream'", "'a2d-qwen3'", "LLaDA-MoE", "DreamOn", "SDAR", "causal between blocks"):
        assert word in str(error), word


@pytest.mark.parametrize("base", ["llama", "qwen2", "qwen3"])
def test_a_causal_model_is_not_taken_for_one_without_its_causal_mask(base):
    tiny = next(values for name, values in TINY.items() if name == f"a2d-{base}")
    causal = {"model_type": base, "architectures": [f"{base.capitalize()}ForCausalLM"]}
    error = refused({**tiny, **causal})
    assert (error.field, error.value) == ("model_type", base)
    assert f"'a2d-{base}'" in str(error)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"model_type": "llada2_moe", "architectures": ["LLaDA2MoeModelLM"]}, "LLaDA2.x"),
        ({"model_type": "llada", "architectures": ["LLaDA2MoeModelLM"]}, "LLaDA2.x"),
        ({"model_type": "sdar_moe", "architectures": ["SDARMoeForCausalLM"]}, "SDAR"),
        ({"model_type": "Fast_dLLM_Qwen", "architectures": ["Fast_dLLM_QwenForCausalLM"]}, "Fast-dLLM v2"),
        ({"model_type": "stable_diffcoder"}, "Stable-DiffCoder"),
        ({"model_type": "diffusion-gemma"}, "DiffusionGemma"),
    ],
)
def test_block_causal_models_are_refused_by_name_with_the_reason(values, name):
    error = refused(values)
    assert name in str(error)
    assert "causal between blocks" in str(error)
    assert error.field == ("architectures" if "architectures" in values else "model_type")


# --- the mask token ----------------------------------------------------------------------------------------------

WITHOUT = {key: value for key, value in A2D_QWEN3_TINY.items() if key != "mask_token_id"}
MASK = {"content": "<|mask|>", "special": True}


def write(folder, files: dict[str, Any]):
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_models_whose_configuration_names_no_mask_have_the_published_one():
    assert read_config(published("llada-moe-7b")).mask_token_id == 156895
    assert read_config(published("illada-8b")).mask_token_id == 5
    assert read_config({**published("illada-8b"), "mask_token_id": 7}).mask_token_id == 7


@pytest.mark.parametrize(
    "files",
    [
        {
            "tokenizer_config.json": {
                "mask_token": "<|mask|>",
                "added_tokens_decoder": {"0": {"content": "a"}, "17": MASK},
            }
        },
        {"tokenizer_config.json": {"mask_token": MASK}, "tokenizer.json": {"added_tokens": [{"id": 17, **MASK}]}},
        {"tokenizer_config.json": {"mask_token": MASK}, "tokenizer.json": {"model": {"vocab": {"<|mask|>": 17}}}},
        {"special_tokens_map.json": {"mask_token": "<|mask|>"}, "added_tokens.json": {"<|mask|>": 17}},
        {"tokenizer_config.json": {"mask_token": "<|mask|>"}, "vocab.json": {"<|mask|>": 17}, "tokenizer.json": "{"},
    ],
)
def test_the_tokenizer_names_the_mask_where_the_configuration_does_not(tmp_path, files):
    folder = write(tmp_path, {"config.json": WITHOUT, **files})
    assert load_config(folder).mask_token_id == 17
    assert load_config(folder, 18).mask_token_id == 18
    write(tmp_path, {"config.json": A2D_QWEN3_TINY})
    assert load_config(folder).mask_token_id == A2D_QWEN3_TINY["mask_token_id"]


@pytest.mark.parametrize(
    "files",
    [{}, {"tokenizer_config.json": {"mask_token": "<|mask|>"}}, {"tokenizer_config.json": [1], "tokenizer.json": "{"}],
)
def test_the_error_for_an_unknown_mask_names_all_ways_out(tmp_path, files):
    with pytest.raises(ModelLoadError) as caught:
        load_config(write(tmp_path, {"config.json": WITHOUT, **files}))
    assert caught.value.field == "mask_token_id"
    for way in ("config.json", "'mask_token'", "--mask-token-id"):
        assert way in str(caught.value)


def test_a_mask_beyond_the_vocabulary_is_refused(tmp_path):
    with pytest.raises(ModelLoadError, match=r"mask_token_id = 93 .*embedding_size = 93"):
        load_config(write(tmp_path, {"config.json": WITHOUT}), 93)
