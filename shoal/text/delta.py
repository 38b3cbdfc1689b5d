"""What training changed, small: int4 differences from the base (56 MB), or int4 factors of low rank (under 20 MB).

Codes are 4 bits in groups of 64 along the last dimension with one fp16 scale each: value = (code - 8) * scale, where
the number of the largest magnitude has code 0. Norms and the mask's vector are stored whole in fp16.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .network import MATRICES, Network

GROUP = 64
RANK = 144
"""Rank of the small form: with 4.25 bits a number, 19.5 MB for the 135M base."""
VECTORS = ("mask", "final_norm", "norm1", "norm2")


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., n] as codes uint8 [..., n / 2], two to a byte, and scales fp16 [..., n / 64]."""
    groups = x.float().unflatten(-1, (-1, GROUP))
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scale = (largest / -8).half()
    step = torch.where(scale == 0, 1, scale).float()
    codes = (groups / step).round().clamp(-8, 7).add(8).to(torch.uint8).flatten(-2)
    scale = scale[..., 0]
    return codes[..., 0::2] | (codes[..., 1::2] << 4), scale


def dequantize(packed: Tensor, scale: Tensor) -> Tensor:
    """What `quantize` stands for, fp32 [..., n]."""
    codes = torch.stack((packed & 15, packed >> 4), -1).flatten(-2).float() - 8
    groups: Tensor = codes.unflatten(-1, (-1, GROUP)) * scale.float()[..., None]
    return groups.flatten(-2)


def rounded(x: Tensor) -> Tensor:
    """The value that x will have after `quantize` and `dequantize`; gradients pass as if it were x."""
    return x + (dequantize(*quantize(x.detach())) - x).detach()


def vectors(network: Network) -> dict[str, Tensor]:
    """Norms and the mask's vector."""
    return {name: getattr(network, name) if name in ("mask", "final_norm") else network.stacks[name]
            for name in VECTORS}  # fmt: skip


def write_delta(file: Path, network: Network, base: Network) -> None:
    """Write the difference of two networks as int4."""
    tensors = {name: value.detach().half().cpu().contiguous() for name, value in vectors(network).items()}
    for kind in MATRICES:
        difference = network.stacks[kind].detach().float() - base.stacks[kind].detach().float().to(network.mask.device)
        tensors[f"{kind}.codes"], tensors[f"{kind}.scale"] = (part.cpu() for part in quantize(difference))
    save_file(tensors, file, {"form": "delta"})


def write_low_rank(file: Path, network: Network, factors: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Write factors (up [layers, rank, out], down [layers, rank, in]) of each kind of matrix as int4."""
    tensors = {name: value.detach().half().cpu().contiguous() for name, value in vectors(network).items()}
    for kind, pair in factors.items():
        for name, factor in zip(("up", "down"), pair, strict=True):
            tensors[f"{kind}.{name}.codes"], tensors[f"{kind}.{name}.scale"] = (p.cpu() for p in quantize(factor))
    save_file(tensors, file, {"form": "low rank"})


@torch.no_grad()
def apply(file: Path, network: Network) -> None:
    """Turn a network that holds the base into the one that a file of either form describes, in place."""
    with safe_open(file, "pt") as opened:
        form = opened.metadata()["form"]
        stored = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    for name, value in vectors(network).items():
        value.copy_(stored[name])
    for kind in MATRICES:
        stack = network.stacks[kind]
        if form == "delta":
            stack += dequantize(stored[f"{kind}.codes"], stored[f"{kind}.scale"]).to(stack.device)
        else:
            up, down = (
                dequantize(stored[f"{kind}.{part}.codes"], stored[f"{kind}.{part}.scale"]).to(stack.device)
                for part in ("up", "down")
            )
            stack += up.transpose(1, 2) @ down


def factorize(difference: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(up [layers, rank, out], down [layers, rank, in]) of the best approximation of [layers, out, in] of that rank."""
    left, values, right = torch.svd_lowrank(difference.float(), q=min(rank + 32, *difference.shape[1:]), niter=4)
    root = values[:, :rank].sqrt()
    up = (left[..., :rank] * root[:, None]).transpose(1, 2).contiguous()
    down = (right[..., :rank] * root[:, None]).transpose(1, 2).contiguous()
    return up, down
