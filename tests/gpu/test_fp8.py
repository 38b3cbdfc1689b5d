"""fp8 on a GPU: products against their emulation, and answers of the bundled model."""

import random

import pytest
import torch

from shoal import Engine
from shoal.kernels.layers.fp8 import quantized
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


@pytest.mark.parametrize("graphs", [True, False])
def test_answers_of_the_bundled_model(graphs):
    rng = random.Random(5)
    prices = [make_list(rng, size, held_out=True) for size in (12, 40)]
    questions = [make_question(rng, prices[i % 2], KINDS[i % len(KINDS)]) for i in range(64)]
    chats = [chat(prices[i % 2], [], question.text) for i, question in enumerate(questions)]
    right = {}
    for quantization in (None, "fp8"):
        with Engine(
            "shop", device="cuda", max_running_requests=16, kv_cache_tokens=1 << 15, quantization=quantization,
            disable_cuda_graph=not graphs,
        ) as engine:  # fmt: skip
            layers = worker_of(engine).executor.runner.layers
            assert isinstance(layers, Fp8Layers) == (quantization is not None)
            for mode in ("none", "dual", "bicache"):
                outputs = engine.generate(chats, SamplingParams(max_new_tokens=32), cache_mode=mode)
                pairs = zip(outputs, questions, strict=True)
                right[quantization, mode] = sum(out.text.strip() == q.answer for out, q in pairs)
                engine.flush_cache()
    for mode in ("none", "dual", "bicache"):
        assert right["fp8", mode] >= right[None, mode] - 2, right
