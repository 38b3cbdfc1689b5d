"""The causal base out of a GGUF file, against transformers; and the published folder against the engine's decoder."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from shoal.radix_cache.depth_profile import DepthProfile
from shoal.runtime.model.loader import load_model
from shoal.text import delta
from shoal.text.base import checkpoint_name, unpermuted, write_base
from shoal.text.network import MASK, MATRICES, Network
from shoal.text.publish import publish

from .tiny import SPECIAL, config, make_tokenizer, state


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k: halves interleaved."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(file) -> dict[str, torch.Tensor]:
    gguf = pytest.importorskip("gguf")
    tokenizer = make_tokenizer()
    values = config(tokenizer.get_vocab_size())
    tensors = state(values)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(values["num_hidden_layers"])
    writer.add_context_length(values["max_position_embeddings"])
    writer.add_embedding_length(values["hidden_size"])
    writer.add_feed_forward_length(values["intermediate_size"])
    writer.add_head_count(values["num_attention_heads"])
    writer.add_head_count_kv(values["num_key_value_heads"])
    writer.add_rope_freq_base(values["rope_theta"])
    writer.add_layer_norm_rms_eps(values["rms_norm_eps"])
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    names = {checkpoint_name(f"blk.{i}.{part}.weight"): f"blk.{i}.{part}.weight" for i in range(3) for part in PARTS}
    names |= {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    for name, tensor in tensors.items():
        rows = tensor.numpy()
        for part, heads in (("q_proj", values["num_attention_heads"]), ("k_proj", values["num_key_value_heads"])):
            rows = permuted(rows, heads) if part in name else rows
        writer.add_tensor(names[name], np.ascontiguousarray(rows))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


PARTS = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")


def test_unpermuted_undoes_llama_cpp():
    rows = np.arange(24 * 5).reshape(24, 5)
    assert (unpermuted(permuted(rows, 3), 3) == rows).all()


def test_the_base_of_a_gguf_file_is_the_model_that_transformers_runs(tmp_path):
    tensors = write_gguf(tmp_path / "model.gguf")
    write_base(tmp_path / "model.gguf", tmp_path / "base")
    network = Network.load_base(tmp_path / "base")
    assert torch.equal(network.stacks["qkv"][1][:64], tensors["model.layers.1.self_attn.q_proj.weight"].bfloat16())
    from transformers import LlamaForCausalLM

    reference = LlamaForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    tokens = torch.randint(17, 400, (2, 40))
    with torch.no_grad():
        torch.testing.assert_close(
            network.logits(network(tokens, causal=True)), reference(tokens).logits, rtol=1e-4, atol=1e-4
        )


def test_the_tokenizer_of_a_gguf_file_is_the_original(tmp_path):
    write_gguf(tmp_path / "model.gguf")
    write_base(tmp_path / "model.gguf", tmp_path / "base")
    read, original = Tokenizer.from_file(str(tmp_path / "base" / "tokenizer.json")), make_tokenizer()
    text = "<|im_start|>user\nThe cat sat on 12 mats.<|im_end|>\n"
    assert read.encode(text).ids == original.encode(text).ids
    assert read.decode(read.encode(text).ids, skip_special_tokens=False) == text


def dense_attend(index, q, k, v):
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)


def test_the_engine_computes_what_was_trained(base, tmp_path):
    network = Network.load_base(base)
    with torch.no_grad():
        network.mask.normal_()
        network.stacks["down"].add_(0.1)
    publish(network, base, tmp_path, dtype=torch.float32)
    assert not (tmp_path / "depth_profile.json").exists()  # known for the measured network alone
    decoder = load_model(tmp_path)
    assert (decoder.config.architecture, decoder.config.shift_logits) == ("a2d-llama", True)
    assert (decoder.config.mask_token_id, decoder.config.eos_token_id) == (MASK, 2)
    tokens = torch.randint(17, 400, (50,))
    tokens[30:] = MASK
    hidden = decoder.embed(tokens)
    for index in range(decoder.num_layers):
        hidden = decoder.layer(index, hidden, torch.arange(50), dense_attend)
    with torch.no_grad():
        trained = network.logits(network(tokens[None]))[0]
    found = decoder.logits(hidden)
    keep = [i for i in range(trained.shape[1]) if i != MASK]  # that row of the tied head is never a prediction
    torch.testing.assert_close(found[:, keep], trained[:, keep], rtol=1e-4, atol=1e-4)


def test_the_measured_network_is_published_with_its_depth_profile(base, tmp_path, monkeypatch):
    monkeypatch.setattr("shoal.text.publish.MEASURED_LAYERS", 6)
    values = {**json.loads((base / "config.json").read_text()), "num_hidden_layers": 6}
    publish(Network(values), base, tmp_path)
    profile = DepthProfile.load(tmp_path / "depth_profile.json", num_layers=6)
    assert (profile.depth(0.2), profile.depth(0.3), profile.depth(0.9)) == (0, 6, 6)


def test_a_delta_of_either_form_restores_the_network(base, tmp_path):
    network, original = Network.load_base(base), Network.load_base(base)
    torch.manual_seed(1)
    factors = {}
    with torch.no_grad():
        network.mask.normal_()
        for kind in MATRICES:
            layers, outputs, inputs = network.stacks[kind].shape
            factors[kind] = (0.1 * torch.randn(layers, 4, outputs), 0.1 * torch.randn(layers, 4, inputs))
            network.stacks[kind] += factors[kind][0].transpose(1, 2) @ factors[kind][1]
    delta.write_delta(tmp_path / "full.safetensors", network, original)
    delta.write_low_rank(tmp_path / "low.safetensors", network, factors)
    for name in ("full", "low"):
        restored = Network.load_base(base)
        delta.apply(tmp_path / f"{name}.safetensors", restored)
        torch.testing.assert_close(restored.mask, network.mask, rtol=1e-3, atol=1e-3)
        for kind in MATRICES:
            change = network.stacks[kind] - original.stacks[kind]
            error = (restored.stacks[kind] - network.stacks[kind]).norm() / change.norm()
            assert error < 0.16, (name, kind, error)  # 9 % a rounded matrix; of low rank there are two
    assert (tmp_path / "low.safetensors").stat().st_size < (tmp_path / "full.safetensors").stat().st_size / 3


def test_factorize_finds_a_matrix_of_that_rank():
    torch.manual_seed(0)
    change = torch.randn(2, 96, 8) @ torch.randn(2, 8, 128)
    up, down = delta.factorize(change, 8)
    torch.testing.assert_close(up.transpose(1, 2) @ down, change, rtol=1e-3, atol=1e-3)


def test_rounded_is_what_is_stored_and_passes_gradients():
    x = torch.randn(3, 128, requires_grad=True)
    seen = delta.rounded(x)
    assert torch.equal(seen, delta.dequantize(*delta.quantize(x.detach())))
    seen.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones_like(x))
    assert torch.equal(delta.dequantize(*delta.quantize(torch.zeros(1, 64))), torch.zeros(1, 64))
