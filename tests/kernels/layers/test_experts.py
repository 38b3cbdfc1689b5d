"""The kernels' reference of experts is the model's MLP of experts."""

from __future__ import annotations

import torch

from shoal.kernels.layers.experts import expert_mlp
from shoal.runtime.model.linear import Linear
from shoal.runtime.model.mlp import DenseMlp, ExpertMlp


def test_the_reference_is_the_models_mlp() -> None:
    generator = torch.Generator().manual_seed(0)
    gate_up, down, router, x, residual = (
        torch.randn(shape, generator=generator) for shape in ((6, 20, 16), (6, 16, 10), (6, 16), (9, 16), (9, 16))
    )
    experts = [DenseMlp(Linear(gate_up[e].t()), Linear(down[e].t())) for e in range(6)]
    mlp = ExpertMlp(Linear(router.t()), experts, 2, (gate_up, down))
    expected = mlp(x, residual)
    found = expert_mlp(residual, x, router, gate_up, down, 2)
    assert found is residual
    torch.testing.assert_close(found, expected)
