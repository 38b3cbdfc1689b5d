"""A layer's experts (torch reference): each token goes through the few that its router finds most probable."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import kernel
from .swiglu import swiglu


@kernel("experts_triton.expert_mlp_triton")
def expert_mlp(residual: Tensor, x: Tensor, router: Tensor, gate_up: Tensor, down: Tensor, top_k: int) -> Tensor:
    """residual + sum over the `top_k` most probable experts e of p_e * down_e(swiglu(gate_up_e x)), in place.

    p = softmax(router x) in fp32, used as it is: the chosen probabilities do not add up to one. Products of experts are
    rounded to the dtype of x; their weighted sum is in fp32, in the order of the experts' numbers. Of equally probable
    experts the lower number is taken.

    Args:
        residual: [T, hidden], overwritten and returned.
        x: [T, hidden], normalised, of the same dtype.
        router: fp32 [experts, hidden].
        gate_up: [experts, 2 * width, hidden], gate first; down: [experts, hidden, width]. Contiguous.
    """
    probabilities = (x.float() @ router.t()).softmax(-1)
    order = probabilities.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in order.unique().tolist():
        own = torch.nonzero((order == expert).any(-1))[:, 0]
        y = swiglu.reference(x[own] @ gate_up[expert].t()) @ down[expert].t()
        total[own] += y.float() * probabilities[own, expert, None]
    residual += total.to(residual.dtype)
    return residual
