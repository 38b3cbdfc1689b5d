"""Muon: what orthogonalise promises, and a step against its formula written out."""

from __future__ import annotations

import pytest
import torch

from shoal.shop.muon import Muon, orthogonalise


def matrix(rows: int, columns: int, seed: int, smallest: float = 0.05) -> torch.Tensor:
    """A matrix with singular values spread evenly from 1 down to `smallest`, in random directions."""
    generator = torch.Generator().manual_seed(seed)
    u, _, v = torch.linalg.svd(torch.randn(rows, columns, generator=generator), full_matrices=False)
    return u * torch.linspace(1.0, smallest, min(rows, columns)) @ v


@pytest.mark.parametrize("shape", [(32, 32), (16, 48), (48, 16), (1, 8)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 300.0])
def test_orthogonalise_brings_singular_values_near_one(shape, scale):
    rows, columns = shape
    updates = torch.stack([matrix(rows, columns, seed) * scale for seed in range(3)])
    out = orthogonalise(updates)
    assert out.dtype == torch.bfloat16
    assert out.shape == updates.shape
    values = torch.linalg.svdvals(out.float())
    assert values.min() > 0.6
    assert values.max() < 1.3
    for before, after in zip(updates, out.float(), strict=True):
        u, _, v = torch.linalg.svd(before, full_matrices=False)
        inner = (u.T @ after @ v.T).diagonal()
        assert (inner > 0.6).all()  # the same directions, not just any orthogonal matrix


def test_a_zero_update_stays_zero():
    assert not orthogonalise(torch.zeros(2, 4, 4)).any()


@pytest.mark.parametrize("rate", [0.1, torch.tensor(0.1)], ids=["number", "tensor"])
def test_steps_follow_the_formula(rate):
    """Momentum as a moving average, Nesterov look-ahead, orthogonalised; decay apart from it; tall matrices scaled."""
    torch.manual_seed(0)
    parameters = [torch.randn(8, 8), torch.randn(8, 8), torch.randn(32, 8), torch.randn(8, 32)]
    mine = [p.clone() for p in parameters]
    momentum = [torch.zeros_like(p) for p in parameters]
    optimizer = Muon(parameters, lr=rate, momentum=0.9, weight_decay=0.2)
    for _ in range(3):
        for index, parameter in enumerate(parameters):
            gradient = torch.randn_like(parameter)
            parameter.grad = gradient.clone()
            momentum[index] = 0.9 * momentum[index] + 0.1 * gradient
            nesterov = 0.1 * gradient + 0.9 * momentum[index]
            scale = max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5
            update = orthogonalise(nesterov[None])[0].float()
            mine[index] = mine[index] * (1 - 0.1 * 0.2) - 0.1 * scale * update
        optimizer.step()
    for parameter, expected in zip(parameters, mine, strict=True):
        torch.testing.assert_close(parameter, expected, rtol=0, atol=0.02)  # bf16 rounds a stack as it likes


def test_parameters_without_gradient_stay():
    parameters = [torch.ones(4, 4), torch.ones(4, 4)]
    parameters[0].grad = torch.eye(4)
    Muon(parameters, lr=0.1).step()
    assert not torch.equal(parameters[0], torch.ones(4, 4))
    assert torch.equal(parameters[1], torch.ones(4, 4))
