"""Write a trained `text` as a model folder: `python -m shoal.text.publish --base ... --weights ... --out ...`."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from torch import Tensor

from ..radix_cache.depth_profile import DepthProfile
from ..shop.publish import write_json, write_weights
from . import delta
from .network import CHECKPOINT_NAMES, MASK, Network

END_OF_TURN, END = 2, 0
MEASURED_LAYERS = 30
"""Layers of the network that docs/text.md measured; another gets no depth profile."""


def checkpoint(network: Network) -> dict[str, Tensor]:
    """The weights under the names of a Llama checkpoint; the mask's vector stands in the embedding's row MASK."""
    embedding = network.embedding.detach().clone()
    embedding[MASK] = network.mask.detach()
    shape = network.shape
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    sizes = {"qkv": [q, kv, kv], "gate_up": [shape.ffn, shape.ffn]}
    tensors = {"model.embed_tokens.weight": embedding}
    for index in range(shape.layers):
        for kind, names in CHECKPOINT_NAMES.items():
            stacked = network.stacks[kind][index].detach()
            parts = stacked.split(sizes[kind]) if kind in sizes else [stacked]
            for name, part in zip(names, parts, strict=True):
                tensors[f"model.layers.{index}.{name}.weight"] = part
    tensors["model.norm.weight"] = network.final_norm.detach()
    return tensors


def publish(network: Network, base: Path, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write configuration, weights, tokenizer, and how deep a prefix may be reused where that is known."""
    folder.mkdir(parents=True, exist_ok=True)
    write_weights({name: tensor.to("cpu", dtype) for name, tensor in checkpoint(network).items()}, folder)
    config = {
        **network.config,
        "model_type": "a2d-llama",
        "architectures": ["A2DLlamaLMHeadModel"],
        "shift_logits": True,
        "mask_token_id": MASK,
        "eos_token_id": END_OF_TURN,
        "pad_token_id": END,
    }
    write_json(folder / "config.json", config)
    settings = {"eos_token_id": [END_OF_TURN, END], "pad_token_id": END, "mask_token_id": MASK, "block_length": 32}
    write_json(folder / "generation_config.json", settings)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base / name, folder / name)
    if network.shape.layers == MEASURED_LAYERS:
        measured = "look-up, quotation, missing words and topics, benchmarks/results/text_reuse.csv"
        DepthProfile(num_layers=MEASURED_LAYERS, table=((0.3, 6),), source=measured).save(folder / "depth_profile.json")


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="folder of the causal base")
    parser.add_argument("--weights", type=Path, required=True, help="what training wrote")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    network = Network.load_base(options.base)
    delta.apply(options.weights, network)
    publish(network, options.base, options.out)


if __name__ == "__main__":
    main()
