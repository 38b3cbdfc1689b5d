"""Requests whose logits the host reads, on a GPU against the CPU."""

from __future__ import annotations

import pytest
import torch

from ..runtime import tiny
from ..runtime.tiny import make_engine, write_model
from ..runtime.worker.test_cuda_read import assert_same, cases

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]


@pytest.fixture(scope="module", params=["llada", "dream"])
def folder(request, tmp_path_factory):
    """Heads of 16, the least that the kernels take."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiny.DREAM, "hidden_size", 64)
        return write_model(tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.parametrize("mode", ["none", "dual", "bicache"])
def test_answers_are_those_of_the_cpu(folder, mode):
    prompts, params = cases(mode)
    outputs = []
    for device in ("cpu", "cuda"):
        with make_engine(folder, device=device, dtype="float32", max_running_requests=8) as engine:
            outputs.append(engine.generate(prompts, params, cache_mode=mode))
    assert_same(outputs[1], outputs[0])
