"""Model folders with random weights in the published layout, and adapters for them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.model_shapes import write_shape
from shoal.runtime.model.hub import bundled_model_folder
from shoal.runtime.model.registry import family_named, load_config
from shoal.runtime.model.weight_names import tensor_shapes

SHARD_BYTES = 4 << 30
ADAPTER_RANK = 16


def write_checkpoint(shape: str, folder: Path, shard_bytes: int = SHARD_BYTES) -> Path:
    """Shards of bf16 weights, one file where all fit `shard_bytes`; norms of ones.

    The numbers are the same each time, and repeat every 8 million.
    """
    path = write_shape(shape, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):  # an engine that reads weights reads them too
        shutil.copy(bundled_model_folder() / name, path)
    config = load_config(path)
    block = (torch.randn(1 << 23, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    place: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}

    def flush() -> None:
        name = f"model-{len(set(place.values())) + 1:05d}.safetensors"
        save_file(shard, path / name, metadata={"format": "pt"})
        place.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, size in tensor_shapes(config, family_named(config.architecture).weight_names).items():
        count = int(torch.Size(size).numel())
        numbers = block.repeat(-(-count // len(block)))[:count] if len(size) > 1 else torch.ones(count).bfloat16()
        shard[name] = numbers.reshape(size).clone()  # a view would keep whole repetitions in memory
        if sum(tensor.nbytes for tensor in shard.values()) >= shard_bytes:
            flush()
    if not place:
        save_file(shard, path / "model.safetensors", metadata={"format": "pt"})
        return path
    if shard:
        flush()
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))
    return path


def write_adapter(model: Path, folder: Path) -> Path:
    """A LoRA adapter of rank 16 for every matrix of the model's layers, as PEFT writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = load_config(model)
    names = family_named(config.architecture).weight_names
    pairs = {}
    for name, size in tensor_shapes(config, names).items():
        if len(size) == 2 and name not in (names.embedding, names.head):
            module = f"base_model.model.{name.removesuffix('.weight')}"
            pairs[f"{module}.lora_A.weight"] = (torch.randn(ADAPTER_RANK, size[1]) * 0.01).bfloat16()
            pairs[f"{module}.lora_B.weight"] = (torch.randn(size[0], ADAPTER_RANK) * 0.01).bfloat16()
    save_file(pairs, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {"peft_type": "LORA", "r": ADAPTER_RANK, "lora_alpha": ADAPTER_RANK, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder
