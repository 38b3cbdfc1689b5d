"""Muon: momentum whose update is orthogonalised, for the hidden matrices of `shop`.

Source: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024). An update matrix is replaced
by an approximation of U V^T of its singular value decomposition, by five quintic Newton-Schulz iterations. Matrices of
one shape are stacked so that a step is a few batched products.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonalise(updates: Tensor, iterations: int = 5) -> Tensor:
    """Approximate U V^T of each matrix in updates [count, rows, columns], in bf16."""
    x = updates.bfloat16()
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    out: Tensor = x if wide else x.mT
    return out


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay; every parameter is a matrix."""

    def __init__(
        self, parameters: Iterable[Tensor], lr: float | Tensor = 0.02, momentum: float = 0.95, weight_decay: float = 0.1
    ):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the parameters from their gradients."""
        for group in self.param_groups:
            rate = group["lr"]  # a number, or a 0-dim tensor so that a CUDA graph can replay the step at another rate
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                grads = [p.grad for p in parameters if p.grad is not None]
                for parameter in parameters:
                    if "momentum" not in self.state[parameter]:
                        self.state[parameter]["momentum"] = torch.zeros_like(parameter)
                buffers = [self.state[p]["momentum"] for p in parameters]
                torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
                nesterov = torch._foreach_lerp(grads, buffers, group["momentum"])
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                updates = orthogonalise(torch.stack(nesterov)).to(parameters[0].dtype) * (-rate * scale)
                torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
                torch._foreach_add_(parameters, updates.unbind())
