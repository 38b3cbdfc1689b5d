"""The decoder against the float64 oracle, and what its contract promises."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from shoal.runtime.model import linear
from shoal.runtime.model.config import ModelConfig
from shoal.runtime.model.decoder import Decoder
from shoal.runtime.model.loader import load_model
from shoal.runtime.model.registry import read_config

from .checkpoints import write_folder
from .oracle import A2D_QWEN3_TINY, DREAM_TINY, LLADA_TINY, TINY, oracle_logits, random_state_dict

CONFIGS: dict[str, dict[str, Any]] = {
    **TINY,
    "llada-gqa-tied-biased": {**LLADA_TINY, "n_kv_heads": 1, "weight_tying": True, "include_qkv_bias": True},
    "llada-long-sums": {**LLADA_TINY, "mlp_hidden_size": 1500, "n_layers": 1},
    "dream-tied": {**DREAM_TINY, "tie_word_embeddings": True},
    "a2d-qwen3-linear-rope": {
        **A2D_QWEN3_TINY,
        "rope_theta": None,
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100000.0},
    },
}


def dense_attend(index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every token sees every token."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)


def run(decoder: Decoder, token_ids: Tensor, positions: Tensor) -> Tensor:
    hidden = decoder.embed(token_ids)
    for index in range(decoder.num_layers):
        hidden = decoder.layer(index, hidden, positions, dense_attend)
    return decoder.logits(hidden)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).abs().max() / expected.abs().max())


@pytest.fixture(scope="module", params=list(CONFIGS))
def model(request, tmp_path_factory):
    config = CONFIGS[request.param]
    state = random_state_dict(config)
    folder = write_folder(tmp_path_factory.mktemp("model"), config, state, shards=3)
    return config, state, folder


@pytest.mark.parametrize("tokens", [1, 2, 19, 40])
def test_logits_match_the_float64_oracle_within_1e_4(model, tokens):
    config, state, folder = model
    token_ids = torch.randint(0, config["vocab_size"], (tokens,), generator=torch.Generator().manual_seed(tokens))
    positions = torch.arange(tokens) + 7
    found = run(load_model(folder), token_ids, positions)
    expected = oracle_logits(config, state, token_ids, positions)
    assert found.shape == expected.shape == (tokens, config["vocab_size"])
    assert found.dtype == torch.float32
    assert relative_error(found, expected) < 1e-4


def test_the_comparison_notices_a_wrong_weight_order(model):
    """Swap gate and up in what the oracle sees: the error must pass the bound by far."""
    config, state, folder = model
    gate, up = ("ff_proj", "up_proj") if "d_model" in config else ("gate_proj", "up_proj")
    swapped = dict(state)
    for name in state:
        if gate in name:
            swapped[name], swapped[name.replace(gate, up)] = state[name.replace(gate, up)], state[name]
    token_ids, positions = torch.arange(12), torch.arange(12)
    found = run(load_model(folder), token_ids, positions)
    assert relative_error(found, oracle_logits(config, swapped, token_ids, positions)) > 1e-2


def test_bfloat16_stays_close_to_the_oracle(model):
    config, state, folder = model
    decoder = load_model(folder, dtype=torch.bfloat16)
    token_ids, positions = torch.arange(20), torch.arange(20)
    logits = run(decoder, token_ids, positions)
    assert logits.dtype == decoder.dtype == torch.bfloat16
    assert relative_error(logits, oracle_logits(config, state, token_ids, positions)) < 0.05


def test_tokens_may_come_in_any_order_with_their_positions(model):
    config, _, folder = model
    decoder = load_model(folder)
    token_ids, positions = torch.arange(30) * 3 % config["vocab_size"], torch.arange(30)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    straight = run(decoder, token_ids, positions)
    shuffled = run(decoder, token_ids[order], positions[order])
    torch.testing.assert_close(shuffled, straight[order], rtol=1e-4, atol=1e-4)


def test_rotary_given_or_looked_up_is_the_same_and_hidden_is_not_changed(model):
    _, _, folder = model
    decoder = load_model(folder)
    positions = torch.tensor([5, 6, 9])
    hidden = decoder.embed(torch.tensor([1, 2, 3]))
    before = hidden.clone()
    looked_up = decoder.layer(0, hidden, positions, dense_attend)
    given = decoder.layer(0, hidden, positions, dense_attend, decoder.rotary(positions))
    assert torch.equal(looked_up, given)
    assert torch.equal(hidden, before)


def test_attend_gets_the_layer_index_and_heads_of_the_promised_shapes(model):
    _, _, folder = model
    decoder = load_model(folder)
    config = decoder.config
    seen = []

    def attend(index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.append((index, tuple(q.shape), tuple(k.shape), tuple(v.shape)))
        assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
        return dense_attend(index, q, k, v)

    hidden = decoder.embed(torch.arange(4))
    last = decoder.num_layers - 1
    decoder.layer(last, hidden, torch.arange(4), attend)
    kv = (4, config.num_kv_heads, config.head_dim)
    assert seen == [(last, (4, config.num_heads, config.head_dim), kv, kv)]


def test_dream_shifts_its_logits_and_an_a2d_model_that_says_so(model):
    config, _, folder = model
    shifts = config.get("shift_logits", config["model_type"] == "Dream")
    assert load_model(folder).config.shift_logits == shifts


def wide_config() -> ModelConfig:
    """The bundled model's widths, and a down projection with sums long enough to be cut."""
    return read_config(
        {
            **LLADA_TINY,
            "d_model": 256,
            "n_heads": 4,
            "n_kv_heads": 4,
            "n_layers": 1,
            "mlp_hidden_size": 1000,
            "vocab_size": 150,
            "embedding_size": 256,
            "max_sequence_length": 512,
        }
    )


def row_by_row(decoder: Decoder, hidden: Tensor) -> Tensor:
    """One layer and the head, with attention that leaves each row to itself."""
    tokens = hidden.shape[0]
    out = decoder.layer(0, hidden, torch.arange(tokens), lambda index, q, k, v: q + v)
    return torch.cat([out, decoder.logits(out)], dim=1)


def test_fp32_rows_do_not_depend_on_how_many_rows_are_computed_together():
    decoder = load_model(wide_config(), load_format="dummy")
    hidden = torch.randn(400, 256, generator=torch.Generator().manual_seed(0))
    together = row_by_row(decoder, hidden)
    for tokens in (1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 100, 128, 129, 255):
        assert torch.equal(row_by_row(decoder, hidden[:tokens]), together[:tokens]), tokens


def test_fp32_rows_do_not_depend_on_their_place_in_the_batch():
    decoder = load_model(wide_config(), load_format="dummy")
    row = torch.randn(1, 256, generator=torch.Generator().manual_seed(0))
    logits = decoder.logits(row.expand(67, -1))
    assert torch.equal(logits, logits[:1].expand(67, -1))


def test_tiles_are_batch_invariant_and_give_the_same_product(monkeypatch):
    monkeypatch.setattr(linear, "needed_tile", lambda *_: 24)
    weight = torch.randn(1000, 150, generator=torch.Generator().manual_seed(0))
    tiled = linear.Linear(weight, batch_invariant=True)
    x = torch.randn(100, 1000, generator=torch.Generator().manual_seed(1))
    together = tiled(x)
    torch.testing.assert_close(together.double(), x.double() @ weight.double(), rtol=1e-4, atol=1e-3)
    for tokens in (1, 23, 24, 25, 48, 77):
        assert torch.equal(tiled(x[:tokens]), together[:tokens]), tokens
        assert torch.equal(tiled(x[9 : 9 + tokens]), together[9 : 9 + tokens]), tokens


@pytest.mark.parametrize("outputs", [1, 4, 5, 7, 9, 11, 12, 15, 16])
def test_rows_of_few_outputs_depend_on_nothing_either(outputs):
    layer = linear.Linear(torch.randn(48, outputs, generator=torch.Generator().manual_seed(0)), batch_invariant=True)
    x = torch.randn(100, 48, generator=torch.Generator().manual_seed(1))
    together = layer(x)
    torch.testing.assert_close(together.double(), x.double() @ layer.weight_t.double(), rtol=1e-4, atol=1e-4)
    for first in (0, 1, 5, 9):
        for rows in (1, 3, 8, 24, 50):
            assert torch.equal(layer(x[first : first + rows]), together[first : first + rows]), (first, rows)


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="about MKL's kernels")
def test_rows_are_invariant_with_the_kernels_of_an_avx2_cpu_too():
    """MKL told to use AVX2, in a process of its own: the probe must find what it does and the tiles mend it."""
    program = """
import torch
from shoal.runtime.model.linear import Linear, needed_tile
for inputs, outputs in ((256, 768), (256, 256), (704, 256), (1000, 150), (256, 7)):
    layer = Linear(torch.randn(inputs, outputs), batch_invariant=True)
    x = torch.randn(200, inputs)
    together = layer(x)
    for tokens in (1, 2, 3, 8, 15, 16, 17, 24, 31, 48, 129):
        assert torch.equal(layer(x[:tokens]), together[:tokens]), (inputs, outputs, tokens)
print("tiles:", needed_tile(256, 256, torch.get_num_threads()))
"""
    environment = {**os.environ, "MKL_ENABLE_INSTRUCTIONS": "AVX2", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tiles:")


def test_batch_invariance_is_on_by_default_for_fp32_only():
    config = wide_config()
    assert load_model(config, load_format="dummy").batch_invariant
    assert not load_model(config, load_format="dummy", dtype=torch.bfloat16).batch_invariant
    assert not load_model(config, load_format="dummy", batch_invariant=False).batch_invariant
