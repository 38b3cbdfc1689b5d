"""RMSNorm of every query and key head by itself, as Qwen3 has it: y = x / sqrt(mean(x^2) + eps) * weight."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """Weights of the queries' norm and of the keys', each [head_dim] and contiguous, and the norms' eps."""

    q_weight: Tensor
    k_weight: Tensor
    eps: float

    def check(self, head_dim: int) -> None:
        """Raises ValueError unless both weights are [head_dim] and contiguous."""
        for name, weight in (("q_weight", self.q_weight), ("k_weight", self.k_weight)):
            if weight.shape != (head_dim,) or not weight.is_contiguous():
                raise ValueError(f"{name} is {tuple(weight.shape)}; it must be [{head_dim}], contiguous")

    def apply(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Normed q [tokens, heads, head_dim] and k [tokens, kv_heads, head_dim], in fp32."""
        return self._one(q, self.q_weight), self._one(k, self.k_weight)

    def _one(self, x: Tensor, weight: Tensor) -> Tensor:
        wide = x.float()
        return wide * wide.square().mean(-1, keepdim=True).add_(self.eps).rsqrt_() * weight.float()
