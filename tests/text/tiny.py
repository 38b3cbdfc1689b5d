"""A tokenizer, a causal base and documents small enough to train on in seconds."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from shoal.shop.publish import write_weights
from shoal.text.base import write_tokenizer
from shoal.text.corpus import prepare
from shoal.text.evaluate import LOOKUP_WORDS
from shoal.text.network import CHECKPOINT_NAMES, Shape

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<reserved_{i}>" for i in range(3, 16)), "<empty_output>"]
WORDS = "the red cat sat on a wide mat and looked at every green bird in that garden while some rain fell".split()  # noqa: SIM905


def sentence(rng: random.Random) -> str:
    """Ten words and a full stop."""
    return " ".join(rng.choices(WORDS, k=10)).capitalize() + "."


def make_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = " ".join([*WORDS, *LOOKUP_WORDS, "The password of Alice is", "Question: Answer: What is"] * 50)
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def config(vocab: int) -> dict[str, Any]:
    return {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 128,
        "vocab_size": vocab, "max_position_embeddings": 1024, "rope_theta": 10000.0, "rms_norm_eps": 1e-5,
        "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
    }  # fmt: skip


def state(values: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Random weights of a Llama checkpoint, large enough that every part matters."""
    torch.manual_seed(0)
    shape = Shape.of(values)
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    sizes = {
        "self_attn.q_proj": (q, shape.hidden), "self_attn.k_proj": (kv, shape.hidden),
        "self_attn.v_proj": (kv, shape.hidden), "self_attn.o_proj": (shape.hidden, q),
        "mlp.gate_proj": (shape.ffn, shape.hidden), "mlp.up_proj": (shape.ffn, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.ffn),
    }  # fmt: skip
    tensors = {
        "model.embed_tokens.weight": torch.randn(shape.vocab, shape.hidden) * 0.3,
        "model.norm.weight": 1 + 0.2 * torch.randn(shape.hidden),
    }
    for index in range(shape.layers):
        for names in CHECKPOINT_NAMES.values():
            for name in names:
                size = sizes.get(name, (shape.hidden,))
                value = torch.randn(size)
                value = 1 + 0.2 * value if len(size) == 1 else value / size[1] ** 0.5
                tensors[f"model.layers.{index}.{name}.weight"] = value
    return tensors


def write_base(folder: Path) -> Path:
    """A causal base, fp32, with its tokenizer."""
    folder.mkdir(parents=True)
    tokenizer = make_tokenizer()
    values = config(tokenizer.get_vocab_size())
    (folder / "config.json").write_text(json.dumps(values))
    write_weights(state(values), folder)
    write_tokenizer(tokenizer, folder)
    return folder


def write_data(folder: Path, base: Path) -> Path:
    """Documents of three packages and of Brown as `corpus.py` stores them."""
    rng = random.Random(0)
    folder.mkdir(parents=True)
    lines = []
    for label in ("perl-doc", "rust-doc", "git-doc", "brown"):
        for number in range(12):
            text = "\n\n".join(" ".join(sentence(rng) for _ in range(6)) for _ in range(30))
            lines.append(json.dumps([f"{label}:{number}", text]))
    (folder / "documents.jsonl").write_text("\n".join(lines))
    prepare(folder / "documents.jsonl", Tokenizer.from_file(str(base / "tokenizer.json")), folder)
    return folder
