"""The second model's training network: the serving side's float64 oracle, shifted logits, reuse, and its size."""

from __future__ import annotations

import json

import torch

from shoal.runtime.model.dream import DREAM
from shoal.runtime.model.registry import load_config
from shoal.runtime.model.weight_names import tensor_shapes
from shoal.shop.dream_network import SHOP_DREAM_CONFIG, DreamNetwork
from shoal.shop.publish import publish
from shoal.shop.recipe import RECIPES

from ..runtime.model.oracle import oracle_logits
from .tiny import TINY_DREAM


def network() -> DreamNetwork:
    torch.manual_seed(3)
    net = DreamNetwork(TINY_DREAM)
    for name, parameter in net.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    return net


def test_logits_are_those_of_the_serving_oracle_one_position_later():
    net, ids = network(), torch.randint(0, 256, (2, 40))
    expected = torch.stack([oracle_logits(TINY_DREAM, net.state_dict(), row, torch.arange(40)) for row in ids])
    torch.testing.assert_close(net(ids)[:, 1:].double(), expected[:, :-1], rtol=0, atol=1e-5)
    assert (expected[:, 1:] - expected[:, :-1]).abs().max() > 0.01


def test_reuse_takes_the_layers_below_the_depth_from_the_row_before():
    net = network()
    ids = torch.randint(0, 256, (2, 30))
    ids[1, :12] = ids[0, :12]
    full = torch.zeros(2, 30, dtype=torch.long)
    none = full.clone()
    full[1, :12] = 2
    assert torch.equal(net(ids, None, none), net(ids))
    assert torch.equal(net(ids, None, full)[0], net(ids)[0])
    assert (net(ids, None, full)[1] - net(ids)[1]).abs().max() > 1e-4


def test_a_published_model_is_a_dream_checkpoint(tmp_path):
    publish(network(), tmp_path, {})
    config = load_config(tmp_path)
    assert (config.architecture, config.shift_logits, config.qkv_bias) == ("dream", True, True)
    assert config.num_heads == 2 * config.num_kv_heads
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensor_shapes(config, DREAM.weight_names).keys()


def test_size_of_shop_dream():
    with torch.device("meta"):
        net = RECIPES["shop-dream"].network(SHOP_DREAM_CONFIG)
    assert sum(p.numel() for p in net.parameters()) == 10_170_624
