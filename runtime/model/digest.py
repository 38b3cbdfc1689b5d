"""One hash for the model in a folder; a depth profile names the model by it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from .lora import CONFIG_FILE, WEIGHTS_FILE
from .registry import load_config
from .safetensors_folder import SafetensorsFolder

_FULL_BYTES = 1_000_000_000
_SAMPLE_BYTES = 4096
_CHUNK_BYTES = 4 * 1024 * 1024


def model_digest(folder: str | Path, mask_token_id: int | None = None, lora: str | Path | None = None) -> str:
    """SHA-256 (hex) of a model folder's configuration and weights, and of an adapter merged into them.

    It covers `ModelConfig.config_digest`, and for every tensor in name order its name, dtype, shape and content.
    Below 1 GB of weights all bytes count; from there on the first, middle and last 4 KiB of each tensor.
    It ignores the distribution of tensors over shards, file metadata, tokenizer and generation settings.

    Raises: ModelLoadError as `load_config` and `SafetensorsFolder` do.
    """
    digest = hashlib.sha256(load_config(folder, mask_token_id).config_digest.encode())
    _add_weights(digest, SafetensorsFolder(folder))
    if lora is not None:
        digest.update(b"\nlora\n" + (Path(lora) / CONFIG_FILE).read_bytes())
        _add_weights(digest, SafetensorsFolder(lora, WEIGHTS_FILE))
    return digest.hexdigest()


def _add_weights(digest: hashlib._Hash, weights: SafetensorsFolder) -> None:
    sampled = weights.num_bytes >= _FULL_BYTES
    for name in sorted(weights.entries):
        entry = weights.entries[name]
        digest.update(f"\n{name} {entry.dtype} {list(entry.shape)} {entry.size}\n".encode())
        if sampled:
            spans = [(start, _SAMPLE_BYTES) for start in (0, entry.size // 2, max(0, entry.size - _SAMPLE_BYTES))]
        else:
            spans = [(start, _CHUNK_BYTES) for start in range(0, entry.size, _CHUNK_BYTES)]
        for start, count in spans:
            digest.update(weights.read_bytes(entry, start, count))
