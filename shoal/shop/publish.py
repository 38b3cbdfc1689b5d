"""Write a trained `shop` network as an ordinary Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from . import vocabulary
from .network import TrainingNetwork

MAX_SHARD_BYTES = 15_000_000


def publish(network: TrainingNetwork, folder: Path, training: dict[str, Any]) -> None:
    """Write config, bf16 weights in shards of at most 15 MB, tokenizer, generation config and `training.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_weights({n: p.detach().to("cpu", torch.bfloat16) for n, p in network.named_parameters()}, folder)
    write_json(folder / "config.json", network.config)
    write_json(
        folder / "generation_config.json",
        {"eos_token_id": 0, "pad_token_id": 0, "mask_token_id": 1, "max_new_tokens": 32, "block_length": 8},
    )
    write_json(folder / "training.json", training)
    vocabulary.write_tokenizer(folder)


def write_weights(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    """Write tensors as `model-0000i-of-0000n.safetensors` and their index; earlier shards are removed."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > MAX_SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor.contiguous()
        size += tensor.nbytes
    for old in folder.glob("model-*.safetensors"):
        old.unlink()
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, {"format": "pt"})
        where |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write indented JSON with a newline at the end."""
    path.write_text(json.dumps(content, indent=2) + "\n")
