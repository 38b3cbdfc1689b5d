"""The MLP of a layer: SwiGLU, or experts that are SwiGLUs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...kernels.layers.swiglu import swiglu
from .linear import Linear

if TYPE_CHECKING:
    from .ranks import Ranks


@dataclass(slots=True)
class DenseMlp:
    """down(silu(gate x) * up x). `gate_up` stacks gate and up."""

    gate_up: Linear
    down: Linear

    @property
    def inputs(self) -> list[Linear]:
        """Products that the normalised hidden states go into."""
        return [self.gate_up]

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        """x [T, hidden], normalised -> a new [T, hidden], with `residual` [T, hidden] added."""
        return self.down(swiglu(self.gate_up(x)), residual)


@dataclass(slots=True)
class ExpertMlp:
    """sum over the `top_k` most probable experts e of p_e * expert_e(x); p = softmax(router x) in fp32.

    The probabilities of the chosen experts do not add up to one: they are used as they are. `router` is in fp32.
    `stacked` holds the weights that the experts' products are views of, for kernels that take all of them: gate_up
    [experts, 2 * width, hidden] and down [experts, hidden, width]. None on a CPU.
    With `ranks`, the experts are this rank's slices, whose outputs are added up over the ranks.
    """

    router: Linear
    experts: list[DenseMlp]
    top_k: int
    stacked: tuple[Tensor, Tensor] | None = None
    ranks: Ranks | None = None

    @property
    def inputs(self) -> list[Linear]:
        """Products that the normalised hidden states go into."""
        return [self.router, *(expert.gate_up for expert in self.experts)]

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        """x [T, hidden], normalised -> a new [T, hidden], with `residual` [T, hidden] added.

        Tokens are sorted by expert: one product for each expert that is touched. A token adds its experts up in the
        order of their numbers, in fp32, so its result does not depend on the other tokens where products do not.
        """
        probabilities = self.router(x.float()).softmax(-1)
        weights, chosen = probabilities.topk(self.top_k, dim=-1)
        order = chosen.flatten().argsort(stable=True)
        counts = chosen.flatten().bincount(minlength=len(self.experts)).tolist()
        rows, weights = order // self.top_k, weights.flatten()[order, None]
        total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        start = 0
        for expert, count in zip(self.experts, counts, strict=True):
            if count:
                own = rows[start : start + count]
                y = expert.down(swiglu(expert.gate_up(x.index_select(0, own))))
                total.index_add_(0, own, y.float() * weights[start : start + count])
                start += count
        if self.ranks is not None:
            total = self.ranks.add_up(total)
        return residual + total.to(residual.dtype)


Mlp = DenseMlp | ExpertMlp
