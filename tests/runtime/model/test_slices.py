"""What each rank of a model loads: its slices, read alone, which together are the whole model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from shoal.runtime.errors import ConfigError
from shoal.runtime.model import safetensors_folder
from shoal.runtime.model.linear import Linear, SummedLinear
from shoal.runtime.model.loader import load_model
from shoal.runtime.model.mlp import DenseMlp, ExpertMlp
from shoal.runtime.model.ranks import Ranks
from shoal.runtime.model.registry import load_config
from shoal.runtime.model.slices import check_tp_size
from shoal.runtime.worker.gpu.layers import FusedLayers, _add_linear

from .checkpoints import write_folder
from .oracle import DREAM_TINY, LLADA_MOE_TINY, LLADA_TINY, random_state_dict
from .test_lora import write_adapter

CPU = torch.device("cpu")
LLADA = LLADA_TINY | {"n_heads": 4, "n_kv_heads": 4}
MOE = LLADA_MOE_TINY | {"num_attention_heads": 4, "num_key_value_heads": 4}


def rank(number: int, size: int = 2) -> Ranks:
    """A rank that has met no other."""
    return Ranks(number, size, CPU)


@pytest.mark.parametrize("config", [LLADA, DREAM_TINY, MOE], ids=["llada", "dream", "moe"])
@pytest.mark.parametrize("load_format", ["auto", "dummy"])
def test_slices_are_parts_of_the_whole_model(config, load_format, tmp_path):
    folder = write_folder(tmp_path, config, random_state_dict(config, seed=1))
    whole, *parts = (load_model(folder, load_format=load_format, ranks=ranks) for ranks in (None, rank(0), rank(1)))
    full = whole.config
    for part in parts:
        assert part.config.num_heads * 2 == full.num_heads
        assert torch.equal(part.embedding, whole.embedding)
        assert torch.equal(part.head.weight_t, whole.head.weight_t)
    for layer, *of_rank in zip(whole.layers, *(part.layers for part in parts), strict=True):
        sizes = [full.q_size, full.kv_size, full.kv_size]
        same_columns(layer.qkv, [one.qkv for one in of_rank], sizes)
        assert all(isinstance(one.attention_out, SummedLinear) for one in of_rank)
        same_rows(layer.attention_out, [one.attention_out for one in of_rank])
        for mlp, *slices in mlps(layer.mlp, *(one.mlp for one in of_rank)):
            same_columns(mlp.gate_up, [one.gate_up for one in slices], [full.intermediate_size] * 2)
            same_rows(mlp.down, [one.down for one in slices])


def mlps(whole: Any, *parts: Any) -> list[tuple[DenseMlp, ...]]:
    if isinstance(whole, ExpertMlp):
        assert all(torch.equal(part.router.weight_t, whole.router.weight_t) for part in parts)
        return list(zip(whole.experts, *(part.experts for part in parts), strict=True))
    return [(whole, *parts)]


def same_columns(whole: Linear, parts: list[Linear], sizes: list[int]) -> None:
    """Matrices of `sizes` outputs side by side, each split over the ranks."""
    halves = [size // 2 for size in sizes]
    tensors = [(whole.weight_t, [part.weight_t for part in parts])]
    if whole.bias is not None:
        tensors.append((whole.bias, [part.bias for part in parts if part.bias is not None]))
    for tensor, of_rank in tensors:
        pieces = zip(tensor.split(sizes, -1), *(one.split(halves, -1) for one in of_rank), strict=True)
        for matrix, first, second in pieces:
            assert torch.equal(matrix, torch.cat([first, second], -1))


def same_rows(whole: Linear, parts: list[Linear]) -> None:
    assert torch.equal(whole.weight_t, torch.cat([part.weight_t for part in parts]))
    assert whole.bias is None


def test_a_rank_reads_its_slices_alone(tmp_path, monkeypatch):
    """The layers' matrices by half; embedding, head and norms whole."""
    folder = write_folder(tmp_path, LLADA, random_state_dict(LLADA, seed=1), shards=2)
    read: list[int] = []
    original = safetensors_folder.SafetensorsFolder.read

    def count(self: Any, *arguments: Any) -> torch.Tensor:
        tensor = original(self, *arguments)
        read.append(tensor.numel())
        return tensor

    monkeypatch.setattr(safetensors_folder.SafetensorsFolder, "read", count)
    config = load_model(folder, ranks=rank(1)).config
    whole = load_config(folder, None)
    norms = (2 * config.num_layers + 1) * config.hidden_size
    tables = 2 * config.embedding_size * config.hidden_size
    assert sum(read) == (whole.num_parameters - norms - tables) // 2 + norms + tables


def test_an_adapter_is_merged_into_slices(tmp_path):
    base = write_folder(tmp_path / "base", LLADA, random_state_dict(LLADA, seed=1))
    weights: dict[str, torch.Tensor] = {}
    for module, outputs, inputs in (("q_proj", 48, 48), ("ff_out", 48, 80)):
        name = f"base_model.model.model.transformer.blocks.1.{module}"
        weights |= {f"{name}.lora_A.weight": torch.randn(4, inputs), f"{name}.lora_B.weight": torch.randn(outputs, 4)}
    adapter = write_adapter(tmp_path / "adapter", weights, r=4)
    whole, *parts = (load_model(base, lora=adapter, ranks=ranks) for ranks in (None, rank(0), rank(1)))
    same_columns(whole.layers[1].qkv, [part.layers[1].qkv for part in parts], [48] * 3)
    [(mlp, *slices)] = mlps(whole.layers[1].mlp, *(part.layers[1].mlp for part in parts))
    same_rows(mlp.down, [one.down for one in slices])


@pytest.mark.parametrize(
    ("size", "name"), [(2, "num_kv_heads = 1"), (3, "num_heads = 4"), (5, "num_kv_heads = 1")],
)  # fmt: skip
def test_a_model_that_can_not_be_split_is_refused_by_name(size, name, tmp_path):
    config = DREAM_TINY | {"num_attention_heads": 4, "num_key_value_heads": 1}
    model = load_config(write_folder(tmp_path, config, {}), None)
    if size == 3:
        model = load_config(write_folder(tmp_path, config | {"num_key_value_heads": 4}, {}), None)
        name = "num_kv_heads = 4"
    with pytest.raises(ConfigError, match=f"tp_size is {size}; it must divide the model's {name}") as caught:
        check_tp_size(model, size)
    assert caught.value.field == "tp_size"


def test_on_a_gpu_one_rank_adds_the_residual_and_all_their_products(monkeypatch):
    """Without NCCL: the parts of both ranks are added up here."""
    x, weight, hidden = torch.randn(5, 8), torch.randn(8, 6), torch.randn(5, 6)
    monkeypatch.setattr(Ranks, "add_up", lambda self, part: part)
    parts = []
    for number in (0, 1):
        own = slice(4 * number, 4 * number + 4)
        parts.append(_add_linear(hidden.clone(), x[:, own], SummedLinear(Linear(weight[own]), rank(number))))
    torch.testing.assert_close(parts[0] + parts[1], hidden + x @ weight)


def test_on_a_gpu_one_rank_adds_the_residual_and_all_their_experts(monkeypatch):
    """Slices of each expert's width, stacked as a GPU has them."""
    experts, width, hidden = 4, 6, 8
    router = Linear(torch.randn(hidden, experts))
    gate, up = torch.randn(2, experts, width, hidden)
    down, residual, x = torch.randn(experts, hidden, width), torch.randn(5, hidden), torch.randn(5, hidden)
    layers: Any = FusedLayers.__new__(FusedLayers)

    def run(own: slice, ranks: Ranks | None) -> torch.Tensor:
        stacked = (torch.cat([gate[:, own], up[:, own]], 1).contiguous(), down[:, :, own].contiguous())
        return layers._experts(ExpertMlp(router, [], 2, stacked, ranks), residual.clone(), x)

    whole = run(slice(0, width), None)
    monkeypatch.setattr(Ranks, "add_up", lambda self, part: part)
    parts = [run(slice(0, 3), rank(0)), run(slice(3, 6), rank(1))]
    torch.testing.assert_close(parts[0] + parts[1], whole)
