"""fp8 on a GPU: products against their emulation, and answers of the bundled model."""

import random

import pytest
import torch

from shoal import Engine
from shoal.kernels.attention.batch import AttentionBatch
from shoal.kernels.attention.reference import attention
from shoal.kernels.layers.fp8 import FP8, quantized
from shoal.kernels.layers.kv_write import rope_write_kv
from shoal.kernels.layers.rope import rope_table
from shoal.runtime.model.linear import Linear
from shoal.runtime.request.sampling_params import SamplingParams
from shoal.runtime.worker.gpu.fp8_layers import Fp8Layers
from shoal.runtime.worker.gpu.fp8_linear import MOST_UNSCALED_ROWS, Fp8Linear
from shoal.shop.task import KINDS, chat, make_list, make_question

from ..runtime.tiny import worker_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9), reason="needs a GPU with fp8"
    ),
]


@pytest.mark.parametrize("rows", [1, 32, 33, MOST_UNSCALED_ROWS, MOST_UNSCALED_ROWS + 1, 3000])
def test_products_are_the_emulations(rows):
    generator = torch.Generator("cuda").manual_seed(0)
    weight = (
        torch.randn(1536, 1024, device="cuda", generator=generator)
        * torch.logspace(-2, 1, 1536, device="cuda")[:, None]
    )
    linear = Fp8Linear(Linear(weight.bfloat16().t()))
    x = quantized(torch.randn(rows, 1024, device="cuda", generator=generator))
    right = (x.data.float() @ linear.data.float().t()) * x.scale * linear.scale
    for final in (False, True):
        found, scales = linear.of_rows(x, final)
        assert (scales is not None) == (not final and rows <= MOST_UNSCALED_ROWS)
        found = found.float() if scales is None else scales.apply(found)
        assert (found - right).norm() / right.norm() < 1e-2


@pytest.mark.parametrize("page_size", [16, 64])
@pytest.mark.parametrize(("heads", "kv_heads", "queries"), [(8, 8, 32), (12, 2, 33), (8, 8, 400)])
def test_attention_over_keys_and_values_in_fp8(heads, kv_heads, queries, page_size):
    """Against the reference, which reads the same numbers; the keys were written by the kernel that rotates."""
    keys, pages, device = 500, -(-500 // page_size), torch.device("cuda")
    generator = torch.Generator(device).manual_seed(1)
    tables = torch.randperm(pages + 3, generator=generator, device=device)[:pages].to(torch.int32)[None, None]
    batch = AttentionBatch.build(tables, [0], [keys], [keys])
    shape = (keys, heads + 2 * kv_heads, 128)
    qkv = torch.randn(shape, device=device, generator=generator).bfloat16()
    qkv[7, heads] = 600.0  # past the largest number
    q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
    cos, sin = rope_table(keys, 128, 1e4, device)
    at, rows = torch.arange(keys, device=device, dtype=torch.int32), torch.zeros(keys, device=device, dtype=torch.int32)
    pools = [torch.zeros((pages + 3, 2, page_size, kv_heads, 128), device=device).to(FP8) for _ in range(2)]
    rotated = rope_write_kv.triton(q, k, v, cos, sin, at, rows, batch, 0, pools[0])
    pools[1] = pools[1].view(torch.uint8).cpu().view(FP8)
    there = AttentionBatch.build(tables.cpu(), [0], [keys], [keys])
    q_there, k_there, v_there, *tables_there = (x.cpu() for x in (q, k, v, cos, sin, at, rows))
    cos_there, sin_there, at_there, rows_there = tables_there
    rope_write_kv.reference(q_there, k_there, v_there, cos_there, sin_there, at_there, rows_there, there, 0, pools[1])
    found, expected = pools[0].cpu().float(), pools[1].float()
    assert (found - expected).norm() / expected.norm() < 0.01  # a last bit may round the other way
    assert found.isfinite().all()
    own = rotated[-queries:]
    last = AttentionBatch.build(tables, [0], [queries], [keys])
    right, lse = attention.reference(own, pools[0], 0, last)
    for splits in (1, 4):
        out, out_lse = attention.triton(own, pools[0], 0, last, num_splits=splits)
        assert (out.float() - right.float()).abs().max() < 0.02 * right.float().abs().max()
        torch.testing.assert_close(out_lse, lse, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("graphs", [True, False])
def test_answers_of_the_bundled_model(graphs):
    rng = random.Random(5)
    prices = [make_list(rng, size, held_out=True) for size in (12, 40)]
    questions = [make_question(rng, prices[i % 2], KINDS[i % len(KINDS)]) for i in range(64)]
    chats = [chat(prices[i % 2], [], question.text) for i, question in enumerate(questions)]
    right = {}
    for quantization, kv in ((None, "auto"), ("fp8", "auto"), ("fp8", "fp8_e4m3")):
        with Engine(
            "shop", device="cuda", max_running_requests=16, kv_cache_tokens=1 << 15, quantization=quantization,
            kv_cache_dtype=kv, disable_cuda_graph=not graphs,
        ) as engine:  # fmt: skip
            layers = worker_of(engine).executor.runner.layers
            assert isinstance(layers, Fp8Layers) == (quantization is not None)
            for mode in ("none", "dual", "bicache"):
                outputs = engine.generate(chats, SamplingParams(max_new_tokens=32), cache_mode=mode)
                pairs = zip(outputs, questions, strict=True)
                right[quantization, kv, mode] = sum(out.text.strip() == q.answer for out, q in pairs)
                engine.flush_cache()
    for mode in ("none", "dual", "bicache"):
        for kv in ("auto", "fp8_e4m3"):
            assert right["fp8", kv, mode] >= right[None, "auto", mode] - 2, right
