"""What `text` loses when a prefix's shallow layers come from another request, as serving with prefix reuse does it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .network import Network, finish, project, rope_tables


@dataclass(frozen=True, slots=True)
class Capture:
    """A prefix as a donor's forward left it: keys and values of each layer, hidden states as they enter each."""

    keys: list[Tensor]
    values: list[Tensor]
    hidden: list[Tensor]


def _layer(
    network: Network, index: int, x: Tensor, start: int, prefix: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Layer `index` on x [batch, n, hidden] at positions from `start` on, behind a prefix's keys and values."""
    shape = network.shape
    norm1, qkv, out, norm2, gate_up, down = network.layer_weights(index)
    cos, sin = (table[start:] for table in rope_tables(start + x.shape[1], shape, x.device))
    q, k, v = project(x, norm1, qkv, cos, sin, shape)
    keys, values = (k, v) if prefix is None else (torch.cat((prefix[0], k), 2), torch.cat((prefix[1], v), 2))
    repeats = shape.heads // shape.kv_heads
    keys, values = keys.repeat_interleave(repeats, 1), values.repeat_interleave(repeats, 1)
    attended = F.scaled_dot_product_attention(q, keys, values)
    return finish(x, attended, out, norm2, gate_up, down, shape.eps), k, v


@torch.inference_mode()
def capture(network: Network, tokens: Tensor, prefix: int) -> tuple[Tensor, Capture]:
    """A full forward over tokens [batch, n]: last hidden states, and its first `prefix` tokens as a capture."""
    x, kept = network.embed(tokens), Capture([], [], [])
    for index in range(network.shape.layers):
        kept.hidden.append(x[:, :prefix])
        x, k, v = _layer(network, index, x, 0)
        kept.keys.append(k[:, :, :prefix])
        kept.values.append(v[:, :, :prefix])
    return x, kept


@torch.inference_mode()
def resumed(
    network: Network, tokens: Tensor, prefix: int, donor: Capture, depths: list[int]
) -> Iterator[tuple[int, Tensor]]:
    """(depth, last hidden states [batch, n - prefix, hidden]) of tokens behind the prefix, for each depth.

    Below the depth the prefix's keys and values are the donor's; from there on the prefix is computed again, beginning
    with the donor's hidden states.
    """
    layers = network.shape.layers
    x = network.embed(tokens[:, prefix:])
    for index in range(layers + 1):
        if index in depths:
            y = x
            if index < layers:
                y = torch.cat((donor.hidden[index], x), 1)
                for above in range(index, layers):
                    y = _layer(network, above, y, 0)[0]
                y = y[:, prefix:]
            yield index, y
        if index < layers:
            x = _layer(network, index, x, prefix, (donor.keys[index], donor.values[index]))[0]
