"""What an optimizer moves: all weights of a network, or factors of low rank. Both keep fp32 masters of what is computed
with.

The network computes with one flat buffer in `dtype`, and gradients arrive in a second one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .delta import RANK, VECTORS, factorize, rounded, vectors
from .network import MATRICES, Network


class FlatWeights:
    """The trained parameters of a network as views of one buffer, their gradients as views of another."""

    def __init__(self, network: Network, dtype: torch.dtype):
        named = {**vectors(network), **{kind: network.stacks[kind] for kind in MATRICES}}
        self.names = (*VECTORS, *MATRICES)
        parameters = [named[name] for name in self.names]
        self.master = torch.cat([p.detach().float().reshape(-1) for p in parameters])
        self.weight = self.master.to(dtype)
        self.gradient = torch.zeros_like(self.weight)
        self._shapes = [p.shape for p in parameters]
        for parameter, weight, gradient in zip(
            parameters, self.views(self.weight), self.views(self.gradient), strict=True
        ):
            assert isinstance(parameter, nn.Parameter)
            parameter.data, parameter.grad = weight, gradient
        network.embedding.data = network.embedding.data.to(dtype)

    def views(self, flat: Tensor) -> list[Tensor]:
        """A buffer as one tensor for each of `names`."""
        sizes = [shape.numel() for shape in self._shapes]
        return [part.view(shape) for part, shape in zip(flat.split(sizes), self._shapes, strict=True)]

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """As `views`, by name."""
        return dict(zip(self.names, self.views(flat), strict=True))


class FullMaster:
    """Every weight is trained."""

    def __init__(self, flat: FlatWeights):
        self.flat = flat
        self.parameters = {"weights": nn.Parameter(flat.master, requires_grad=False)}

    def pull(self) -> None:
        """Take the gradients of the step that was computed."""
        self.parameters["weights"].grad = self.flat.gradient.float()

    def push(self) -> None:
        """Compute with the parameters as they are now."""
        self.flat.weight.copy_(self.parameters["weights"])


class LowRankMaster:
    """The difference from the base has rank `rank`, and its factors are seen as the int4 numbers they will be.

    Args:
        flat: holds the network to start from.
        base: the causal base's matrices.
    """

    def __init__(self, flat: FlatWeights, base: dict[str, Tensor], rank: int = RANK):
        self.flat = flat
        self.base = base
        now = flat.named(flat.master)
        parameters: dict[str, Tensor] = {name: now[name].clone() for name in VECTORS}
        for kind in MATRICES:
            parameters[f"{kind}.up"], parameters[f"{kind}.down"] = factorize(now[kind] - base[kind], rank)
        self.parameters = {name: nn.Parameter(p, requires_grad=False) for name, p in parameters.items()}

    def factors(self, kind: str) -> tuple[Tensor, Tensor]:
        """(up [layers, rank, out], down [layers, rank, in])."""
        return self.parameters[f"{kind}.up"], self.parameters[f"{kind}.down"]

    def pull(self) -> None:
        """Take the gradients of the step that was computed."""
        gradients = self.flat.named(self.flat.gradient)
        for name in VECTORS:
            self.parameters[name].grad = gradients[name].float()
        for kind in MATRICES:
            gradient = gradients[kind]
            up, down = (rounded(factor).to(gradient.dtype) for factor in self.factors(kind))
            self.parameters[f"{kind}.up"].grad = (down @ gradient.transpose(1, 2)).float()
            self.parameters[f"{kind}.down"].grad = (up @ gradient).float()

    def push(self) -> None:
        """Compute with the parameters as they are now."""
        weights = self.flat.named(self.flat.weight)
        for name in VECTORS:
            weights[name].copy_(self.parameters[name])
        for kind in MATRICES:
            up, down = map(rounded, self.factors(kind))
            weights[kind].copy_(torch.baddbmm(self.base[kind], up.transpose(1, 2), down))
