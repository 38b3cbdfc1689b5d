"""Sample conversations from the causal base, to train on: `python -m shoal.text.chats --base ... --data ... --out ...`.

Half are about a piece of a training document, half about anything. Answers are cut at the row's end, or at the base's
own end of turn, behind which the row is filled with END.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from . import prompts
from .asks import Asker, Documents
from .corpus import END
from .network import STACKS, Network, finish, project, rope_tables

LENGTH = 512
END_OF_TURN = 2
_PREFILL_TOKENS = 262_144


class Sampler:
    """Draws continuations from a causal network, many prompts at once.

    Args:
        network: on its device, in the dtype to compute in.
        temperature, top_k: of the distribution that tokens are drawn from.
    """

    def __init__(self, network: Network, temperature: float = 0.7, top_k: int = 40, seed: int = 0):
        self.network = network
        self.device = network.mask.device
        self.temperature, self.top_k = temperature, top_k
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.cos, self.sin = rope_tables(LENGTH + prompts.DOCUMENT_PROMPT, network.shape, self.device)
        self.layers = list(zip(*(network.stacks[kind].unbind(0) for kind in STACKS), strict=True))

    @torch.inference_mode()
    def sample(self, tokens: Tensor, padding: Tensor, new: int) -> Tensor:
        """Prompts [n, length], whose first `padding` [n] tokens are none, and what follows: [n, length + new]."""
        count, length = tokens.shape
        shape, dtype = self.network.shape, self.network.mask.dtype
        size = (count, shape.kv_heads, length + new, shape.head_dim)
        caches = [tuple(torch.empty(size, dtype=dtype, device=self.device) for _ in "kv") for _ in self.layers]
        out = torch.full((count, length + new), END, device=self.device)
        out[:, :length] = tokens
        last = torch.cat(
            [self._prefill(tokens, padding, caches, rows) for rows in _slices(count, max(1, _PREFILL_TOKENS // length))]
        )
        done = torch.zeros(count, dtype=torch.bool, device=self.device)
        places = torch.arange(length + new, device=self.device)
        seen = places >= padding[:, None]
        for at in range(length, length + new):
            drawn = torch.where(done, END, self._draw(last))
            out[:, at] = drawn
            done |= (drawn == END_OF_TURN) | (drawn == END)
            if at + 1 == length + new or (at % 16 == 0 and bool(done.all())):
                break
            last = self._step(drawn, at, padding, caches, seen[:, : at + 1])
        return out

    def _prefill(self, tokens: Tensor, padding: Tensor, caches: list[tuple[Tensor, ...]], rows: slice) -> Tensor:
        tokens, padding = tokens[rows], padding[rows]
        places = torch.arange(tokens.shape[1], device=self.device)
        # Padding sees itself, so that no row of the softmax is empty.
        real = places >= padding[:, None]
        mask = (places <= places[:, None]) & (real[:, None] | (places == places[:, None]))
        at = (places - padding[:, None]).clamp(min=0)
        cos, sin = self.cos[at], self.sin[at]
        x, shape = self.network.embed(tokens), self.network.shape
        for (norm1, qkv, out, norm2, gate_up, down), (keys, values) in zip(self.layers, caches, strict=True):
            q, k, v = project(x, norm1, qkv, cos, sin, shape)
            keys[rows, :, : k.shape[2]], values[rows, :, : k.shape[2]] = k, v
            repeats = shape.heads // shape.kv_heads
            k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None])
            x = finish(x, attended, out, norm2, gate_up, down, shape.eps)
        return x[:, -1]

    def _step(
        self, drawn: Tensor, at: int, padding: Tensor, caches: list[tuple[Tensor, ...]], seen: Tensor
    ) -> Tensor:  # fmt: skip
        cos, sin = self.cos[at - padding][:, None], self.sin[at - padding][:, None]
        x, shape = self.network.embed(drawn[:, None]), self.network.shape
        for (norm1, qkv, out, norm2, gate_up, down), (keys, values) in zip(self.layers, caches, strict=True):
            q, k, v = project(x, norm1, qkv, cos, sin, shape)
            keys[:, :, at], values[:, :, at] = k[:, :, 0], v[:, :, 0]
            # The queries that share a key head stand where a sequence of queries would: no key is copied.
            q = q.unflatten(1, (shape.kv_heads, -1)).flatten(2, 3)
            attended = F.scaled_dot_product_attention(
                q, keys[:, :, : at + 1], values[:, :, : at + 1], attn_mask=seen[:, None, None]
            )
            attended = attended.flatten(1, 2)[:, :, None]
            x = finish(x, attended, out, norm2, gate_up, down, shape.eps)
        return x[:, 0]

    def _draw(self, hidden: Tensor) -> Tensor:
        values, tokens = self.network.logits(hidden).topk(self.top_k)
        shares = (values.float() / self.temperature).softmax(-1)
        return tokens.gather(1, torch.multinomial(shares, 1, generator=self.generator))[:, 0]


def make_chats(sampler: Sampler, asker: Asker, seed: int, count: int, document: bool) -> tuple[np.ndarray, np.ndarray]:
    """`count` conversations [count, LENGTH] and where their answers begin [count]."""
    random = np.random.default_rng((seed, document))
    make = prompts.about_document if document else prompts.about_anything
    asked = [make(random, asker) for _ in range(count)]
    longest = prompts.DOCUMENT_PROMPT if document else prompts.FREE_PROMPT
    shortest = min(map(len, asked))
    padding = torch.tensor([longest - len(ids) for ids in asked])
    tokens = torch.tensor([[END] * (longest - len(ids)) + ids for ids in asked])
    out = sampler.sample(tokens.to(sampler.device), padding.to(sampler.device), LENGTH - shortest).cpu()
    rows = [row[skip : skip + LENGTH] for row, skip in zip(out, padding.tolist(), strict=True)]
    return torch.stack(rows).numpy().astype(np.uint16), np.array([len(ids) for ids in asked])


def _slices(count: int, size: int) -> list[slice]:
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="folder of the causal base")
    parser.add_argument("--data", type=Path, required=True, help="folder with the documents' tokens; chats go there")
    parser.add_argument("--count", type=int, default=32_768)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--time-limit", type=float, default=None, help="begin no further batch after so many seconds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    begin = time.monotonic()
    tokenizer = Tokenizer.from_file(str(options.base / "tokenizer.json"))
    labels = json.loads((options.data / "labels.json").read_text())
    asker = Asker(Documents(np.load(options.data / "rows.npy", mmap_mode="r"), labels, tokenizer))
    dtype = torch.bfloat16 if options.device.startswith("cuda") else torch.float32
    sampler = Sampler(Network.load_base(options.base).to(options.device, dtype), seed=options.seed)
    for number, rows in enumerate(_slices(options.count, options.batch)):
        tokens, starts = make_chats(sampler, asker, options.seed + number, rows.stop - rows.start, number % 2 == 0)
        np.savez(options.data / f"chats{number:03d}.npz", tokens=tokens, begin=starts)
        seconds = time.monotonic() - begin
        print(json.dumps({"chats": rows.stop, "seconds": round(seconds, 1)}), flush=True)
        if options.time_limit and seconds > options.time_limit:
            break


if __name__ == "__main__":
    main()
