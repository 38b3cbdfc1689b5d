"""Batches of a training step: plain text, rows that ask, and conversations, packed without padding.

What a step sees depends on the seed and its number alone, so that a run that was stopped and resumed sees what one that
was not sees.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import Dataset

from .asks import FILL_WEIGHT, Asker, Documents, Row
from .corpus import END
from .masks import canvas_mask, text_mask
from .network import MASK

LENGTHS = (512, 1024)
TOKENS_PER_STEP = 65_536
TARGETS_SHARE = 0.26
"""Positions that a step predicts, of its tokens; a batch with more masks than that loses some at random."""

LONG_ANSWER = 160
"""Longer answers than this are masked as text is: a canvas of their length would tell nothing."""

MIX = {"text": 0.59, "chat": 0.15, "lookup": 0.12, "quote": 0.05, "gap": 0.05, "classify": 0.04}
"""Share of the rows of each kind."""
KINDS = tuple(MIX)


class Batch(NamedTuple):
    """Tokens [rows, length] with masks in them; flat indices, targets, weights and kinds [n] of what to predict.

    `where` points at the hidden state that speaks of a target: the one before it.
    """

    tokens: Tensor
    where: Tensor
    targets: Tensor
    weight: Tensor
    kind: Tensor


@dataclass(frozen=True, slots=True)
class Chats:
    """Conversations [n, length], their answers beginning at `begin` [n]; END fills what an answer leaves of a row."""

    tokens: np.ndarray
    begin: np.ndarray

    @classmethod
    def load(cls, files: list[Path]) -> Chats:
        """Join files that `chats.py` wrote; none give no conversation."""
        stored = [np.load(file) for file in files]
        if not stored:
            return cls(np.zeros((0, LENGTHS[0]), np.uint16), np.zeros(0, np.int64))
        tokens, begin = (np.concatenate([part[name] for part in stored]) for name in ("tokens", "begin"))
        return cls(tokens, begin)

    def row(self, random: np.random.Generator, length: int) -> Row:
        """Conversations one after the other to `length`, a multiple of theirs; the answers' canvases are masked."""
        size = self.tokens.shape[1]
        parts = []
        for _ in range(length // size):
            i = int(random.integers(len(self.tokens)))
            tokens = self.tokens[i].astype(np.int64)
            mask, weight = np.zeros(size, bool), np.zeros(size)
            begin = int(self.begin[i])
            if size - begin > LONG_ANSWER:
                mask, weight[:] = text_mask(random, size, random.random())
            else:
                mask[begin:], weight[begin:] = canvas_mask(random, size - begin)
            fill = begin + int(np.argmax(np.append(tokens[begin:], END) == END))
            weight[fill + 1 :] = FILL_WEIGHT
            parts.append(Row(tokens, mask, weight))
        return Row(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in ("tokens", "masked", "weight"))
        )


class Steps(Dataset[Batch]):
    """The batch of each step, by number.

    Args:
        data: folder with what `corpus.py` and `chats.py` wrote.
        tokenizer_file: the base's `tokenizer.json`.
        steps: how many there are.
    """

    def __init__(self, data: Path, tokenizer_file: Path, seed: int, steps: int, tokens_per_step: int = TOKENS_PER_STEP):
        self.seed, self.steps, self.tokens_per_step = seed, steps, tokens_per_step
        rows = np.load(data / "rows.npy", mmap_mode="r")
        labels = json.loads((data / "labels.json").read_text())
        self.asker = Asker(Documents(rows, labels, Tokenizer.from_file(str(tokenizer_file))))
        self.chats = Chats.load(sorted(data.glob("chats*.npz")))
        mix = {kind: share for kind, share in MIX.items() if kind != "chat" or len(self.chats.tokens)}
        self._kinds, self._shares = list(mix), np.array(list(mix.values())) / sum(mix.values())

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        random = np.random.default_rng((self.seed, step))
        length = LENGTHS[step % len(LENGTHS)]
        count = self.tokens_per_step // length
        kinds = random.choice(len(self._kinds), count, p=self._shares)
        rates = random.permutation((np.arange(count) + random.random()) / count)
        rows = [self._row(random, self._kinds[k], length, r) for k, r in zip(kinds, rates, strict=True)]
        numbers = np.array([KINDS.index(self._kinds[k]) for k in kinds])
        return pack(random, rows, numbers, int(self.tokens_per_step * TARGETS_SHARE))

    def _row(self, random: np.random.Generator, kind: str, length: int, rate: float) -> Row:
        if kind == "text":
            mask, weight = text_mask(random, length, rate)
            return Row(np.array(self.asker.documents.piece(random, length)), mask, np.full(length, weight))
        if kind == "chat":
            return self.chats.row(random, length)
        return self.asker.row(random, kind, length)


def pack(random: np.random.Generator, rows: list[Row], kinds: np.ndarray, targets: int) -> Batch:
    """Rows of one length and their kinds as a batch with exactly `targets` targets, some of weight 0 at need."""
    tokens, mask, weight = (np.stack([getattr(row, name) for row in rows]) for name in ("tokens", "masked", "weight"))
    length = tokens.shape[1]
    found = np.nonzero(mask.reshape(-1))[0]
    if len(found) > targets:
        found = np.sort(random.choice(found, targets, replace=False))
    spare = targets - len(found)
    index = np.append(found, np.ones(spare, np.int64))
    flat = tokens.reshape(-1)
    weights = np.append(weight.reshape(-1)[found], np.zeros(spare))
    return Batch(
        torch.from_numpy(np.where(mask, MASK, tokens)), torch.from_numpy(index - 1), torch.from_numpy(flat[index]),
        torch.from_numpy(weights.astype(np.float32)), torch.from_numpy(kinds[index // length]),
    )  # fmt: skip
