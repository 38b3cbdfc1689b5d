"""Publishing: shards, their index, and weights that come back as they were."""

from __future__ import annotations

import json

import torch
from safetensors import safe_open

from shoal.runtime.model.registry import load_config
from shoal.shop import publish
from shoal.shop.network import SHOP_CONFIG, Network

from .tiny import TINY


def read(folder) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    tensors, where = {}, {}
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                assert name not in tensors
                tensors[name], where[name] = file.get_tensor(name), shard.name
    return tensors, where


def test_shop_is_published_in_shards_below_16_mb(tmp_path):
    network = Network(SHOP_CONFIG)
    publish.publish(network, tmp_path, {"seed": 7})
    sizes = [shard.stat().st_size for shard in tmp_path.glob("*.safetensors")]
    assert len(sizes) == 2
    assert max(sizes) <= 16_000_000
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 27_000_000
    tensors, where = read(tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == where
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    state = network.state_dict()
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[name], state[name].bfloat16()) for name in state)
    assert json.loads((tmp_path / "config.json").read_text()) == SHOP_CONFIG
    assert json.loads((tmp_path / "training.json").read_text()) == {"seed": 7}
    assert load_config(tmp_path).num_layers == 16


def test_shards_of_an_earlier_publication_go(tmp_path, monkeypatch):
    network = Network(TINY)
    monkeypatch.setattr(publish, "MAX_SHARD_BYTES", 8_000)
    publish.publish(network, tmp_path, {})
    many = {shard.name for shard in tmp_path.glob("*.safetensors")}
    assert len(many) > 3
    assert all((tmp_path / name).stat().st_size > 1000 for name in many)  # none is empty
    monkeypatch.setattr(publish, "MAX_SHARD_BYTES", 15_000_000)
    publish.publish(network, tmp_path, {})
    assert [shard.name for shard in tmp_path.glob("*.safetensors")] == ["model-00001-of-00001.safetensors"]
    tensors, _ = read(tmp_path)
    assert all(torch.equal(tensors[name], p.bfloat16()) for name, p in network.state_dict().items())
