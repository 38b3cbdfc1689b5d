"""The published folder of `shop`: files, names, sizes, tokenizer, model card, and whether the weights do the task."""

from __future__ import annotations

import json
import re

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from transformers import AutoTokenizer

from shoal.runtime.model.hub import bundled_model_folder
from shoal.runtime.model.registry import load_config
from shoal.shop.evaluate import accuracy, reuse_accuracy
from shoal.shop.network import SHOP_CONFIG, Network

FOLDER = bundled_model_folder()


@pytest.fixture(scope="module")
def tensors():
    out: dict[str, torch.Tensor] = {}
    for shard in sorted(FOLDER.glob("*.safetensors")):
        with safe_open(shard, "pt") as file:
            out |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return out


@pytest.fixture(scope="module")
def network(tensors):
    with torch.device("meta"):
        loaded = Network(SHOP_CONFIG)
    loaded.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return loaded.eval()


def test_files_and_sizes():
    sizes = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert sizes.keys() == {
        "README.md", "chat_template.jinja", "config.json", "depth_profile.json", "generation_config.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "tokenizer.json",
        "tokenizer_config.json", "training.json",
    }  # fmt: skip
    assert max(sizes.values()) <= 16_000_000
    assert sum(sizes.values()) <= 27_000_000


def test_config_is_llada():
    values = json.loads((FOLDER / "config.json").read_text())
    assert values == SHOP_CONFIG
    assert values["model_type"] == "llada"
    config = load_config(FOLDER)
    assert (config.architecture, config.num_layers, config.hidden_size, config.head_dim) == ("llada", 16, 256, 64)
    assert (config.mask_token_id, config.eos_token_id, config.max_position_embeddings) == (1, 0, 640)
    assert config.num_parameters == 12_984_576


def test_weights_have_the_names_of_llada_checkpoints(tensors):
    top = {"model.transformer.wte.weight", "model.transformer.ln_f.weight", "model.transformer.ff_out.weight"}
    parts = ("attn_norm", "q_proj", "k_proj", "v_proj", "attn_out", "ff_norm", "ff_proj", "up_proj", "ff_out")
    assert set(tensors) == top | {f"model.transformer.blocks.{i}.{p}.weight" for i in range(16) for p in parts}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    index = json.loads((FOLDER / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tensors)


def test_tokenizer_and_generation_config_fit_the_model():
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    config = load_config(FOLDER)
    assert (tokenizer.mask_token_id, tokenizer.eos_token_id) == (config.mask_token_id, config.eos_token_id)
    assert len(tokenizer) <= config.vocab_size
    generation = json.loads((FOLDER / "generation_config.json").read_text())
    assert generation["max_new_tokens"] % generation["block_length"] == 0
    assert generation["mask_token_id"] == config.mask_token_id


def test_weights_answer_held_out_questions(network):
    result = accuracy(network, 24, seed=11, batch=4)
    assert result["all"] >= 0.95, result


def test_depth_is_safe_to_layer_8_and_not_to_the_end(network):
    """The lists' states from another question's first forward: right at depth 8; at 16 colours are lost."""
    shallow, deep = (reuse_accuracy(network, 8, seed=4, depth=depth, batch=8) for depth in (8, 16))
    assert shallow["all"] == 1.0
    assert deep["colour"] == 0.0
    assert deep["price"] == 1.0


def test_model_card_says_what_the_training_log_says():
    card = ModelCard.load(FOLDER / "README.md")
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "shoal")
    body = card.text
    training = json.loads((FOLDER / "training.json").read_text())
    numbers = body.replace(",", "")
    assert all(f"{phase['steps'][1]}" in numbers and f"{phase['seconds']} s" in body for phase in training["phases"])
    assert training["hardware"] in body
    assert f"seed {training['seed']}" in body
    for option in re.findall(r"--[a-z][a-z-]+", body):
        assert option in (FOLDER.parent / "train.py").read_text()
