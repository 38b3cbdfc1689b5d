"""What a GPU's worker is built with, and which models and GPUs are refused."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from shoal.kernels.attention.tiling import shared_memory
from shoal.runtime.config import EngineConfig
from shoal.runtime.errors import ConfigError
from shoal.runtime.worker.device import device_of_rank
from shoal.runtime.worker.gpu import build as build_cuda
from shoal.runtime.worker.gpu.build import build_cuda_executor

from ..tiny import make_engine, write_model


@pytest.mark.parametrize(("dtype", "wanted", "folded"), [
    ("bfloat16", True, True), ("bfloat16", False, False), ("float32", True, False),
])  # fmt: skip
def test_norms_are_folded_into_weights_of_16_bits_alone(tmp_path, dtype, wanted, folded):
    with make_engine(write_model(tmp_path, "llada")) as engine:
        parts = engine.core.parts
        config = replace(engine.config, fold_norms=wanted).for_device("cpu")
        plain = parts.worker.executor
        plain.decoder.dtype = getattr(torch, dtype)
        executor = build_cuda_executor(config, plain.decoder, plain.kv, plain.boundary, parts.facts)
        assert plain.decoder.norms_folded is folded
        assert (executor.runner.layers.few_rows > 0) is folded


def test_ranks_have_the_gpus_from_the_configured_one_on(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [device_of_rank("cuda:2", rank, 2) for rank in range(2)] == ["cuda:2", "cuda:3"]
    assert [device_of_rank("auto", rank, 4) for rank in range(4)] == [f"cuda:{rank}" for rank in range(4)]
    assert device_of_rank("cpu", 1, 2) == "cpu"
    with pytest.raises(ConfigError, match="tp_size is 3; from cuda:2 on there are 2 GPUs") as caught:
        device_of_rank("cuda:2", 0, 3)
    assert (caught.value.field, caught.value.limit) == ("tp_size", 2)


@pytest.mark.parametrize(("head_dim", "kib", "refused"), [
    (128, 227, False), (128, 163, False), (256, 99, False), (256, 227, False), (512, 99, True), (512, 227, True),
    (128, 64, True), (512, None, True),
])  # fmt: skip
def test_a_gpu_whose_memory_tiles_of_attention_do_not_fit_is_refused(monkeypatch, head_dim, kib, refused):
    """A program has 227 KiB on an H100 or H200, 163 on an A100, 99 on an RTX 4090; None: whatever GPU it is."""
    model = SimpleNamespace(head_dim=head_dim, num_heads=8, num_kv_heads=8)
    device = torch.device("cpu" if kib is None else "cuda:0")
    decoder: Any = SimpleNamespace(config=model, device=device, dtype=torch.bfloat16)
    properties = SimpleNamespace(shared_memory_per_block_optin=(kib or 0) << 10)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(build_cuda, "shared_memory", shared_memory.__wrapped__)  # what it says here is not to be kept
    config = EngineConfig(page_size=64)
    if not refused:
        build_cuda.check_kernels_fit(config, decoder)
        return
    with pytest.raises(ConfigError, match=f"head_dim is {head_dim}: attention takes .* KiB") as caught:
        build_cuda.check_kernels_fit(config, decoder)
    assert (caught.value.field, caught.value.value) == ("head_dim", head_dim)
