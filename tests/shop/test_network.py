"""The training network: the serving side's float64 oracle, masks, and hidden states taken from the row before."""

from __future__ import annotations

import torch

from shoal.shop.network import SHOP_CONFIG, Network, rope_tables

from ..runtime.model.oracle import oracle_logits
from .tiny import TINY


def network() -> Network:
    torch.manual_seed(3)
    return Network(TINY)


def test_logits_are_those_of_the_serving_oracle():
    net, ids = network(), torch.randint(0, 256, (2, 40))
    expected = torch.stack([oracle_logits(TINY, net.state_dict(), row, torch.arange(40)) for row in ids])
    torch.testing.assert_close(net(ids).double(), expected, rtol=0, atol=1e-5)


def test_padding_behind_a_mask_changes_nothing():
    net, ids = network(), torch.randint(0, 256, (1, 30))
    padded = torch.cat((ids, torch.zeros(1, 10, dtype=torch.long)), dim=1)
    valid = (torch.arange(40) < 30)[None, None, None, :]
    torch.testing.assert_close(net(padded, valid)[:, :30], net(ids), rtol=0, atol=1e-5)


def test_reuse_takes_the_layers_below_the_depth_from_the_row_before():
    net = network()
    body, depth, prefix = net.model.transformer, 2, 12
    ids = torch.randint(0, 256, (2, 30))
    ids[1, :prefix] = ids[0, :prefix]
    reuse = torch.zeros(2, 30, dtype=torch.long)
    reuse[1, :prefix] = depth
    out = net(ids, None, reuse)

    cos, sin = rope_tables(30, 16, 10000.0, ids.device)
    states = [body.wte(ids[:1])]
    for block in body.blocks:
        states.append(block(states[-1], cos, sin))
    x = body.wte(ids[1:])
    for index, block in enumerate(body.blocks):
        if index <= depth:
            x = torch.cat((states[index][:, :prefix], x[:, prefix:]), dim=1)
        x = block(x, cos, sin)
    torch.testing.assert_close(out[1:], body.ff_out(body.ln_f(x)), rtol=0, atol=1e-5)
    torch.testing.assert_close(out[:1], net(ids[:1]), rtol=0, atol=1e-5)
    assert (out[1] - net(ids)[1]).abs().max() > 1e-4  # the reuse made a difference


def test_size_of_shop():
    with torch.device("meta"):
        assert sum(p.numel() for p in Network(SHOP_CONFIG).parameters()) == 12_984_576
