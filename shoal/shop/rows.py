"""Training rows for `shop`: conversations about a price list in which answers are masked.

Every row is exactly as long as asked for: a list, some turns, and a last answer whose canvas takes the rest of the
row, filled up with EOS. In a *dense* row every answer is masked with a ratio of its own; in a *serving* row only the
last canvas is, the way a block-wise decoder sees it: earlier blocks filled in, the current one in part, later ones not.

Two things make look-up appear early. Lists are short at first (`Stage`). And some dense rows hold a *recital*, a turn
in which items of the list stand again in another order with most of their digits masked: the name beside a masked
digit is visible there, so the network needs no more than to find that name in the list, the first part of look-up.

In the last part of the training (`REUSE_START`) rows come in pairs about one list. The first of a pair is a request's
first forward: a question and a canvas of masks. The second often takes the list's hidden states of the shallow layers
from the first, which makes the network keep what depends on the question out of them, as far as `Mix.reuse_depth`.

A mix may also have *plain* rows: a conversation cut off at the row's end, without a canvas, masked anywhere. They show
the network contexts in which nothing stands behind a list. A list's digits can't be predicted, so their weight is low
and they start late.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from . import vocabulary
from .task import MAX_ITEMS, Item, PriceList, Question, make_list, make_question

TOKENS_PER_STEP = 32768
LENGTHS = (128, 320, 640)
_ITEM_TOKENS = 5
_FILL_WEIGHT = 0.1  # loss weight of the EOS tokens that fill a canvas, after the first
PURE_STEPS = 1500
REUSE_START = 34_000
REUSE_DEPTH = 8
_REUSE_SHARE = 0.75
_PLAIN_WEIGHT = 0.05
SHORT_STEPS = 2000
_RECITAL = vocabulary.encode("<|user|>List all things.<|end|><|assistant|>")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the training data, arrays of one length.

    Clean tokens, masked tokens, a loss weight each, and the depth to which a position's hidden states come from the
    row before (see `Network.forward`).
    """

    clean: np.ndarray
    masked: np.ndarray
    weight: np.ndarray
    reuse: np.ndarray


@dataclass(frozen=True, slots=True)
class Mix:
    """What a model's training rows are drawn from, beside the stages.

    Attributes:
        name: part of the seed.
        reuse_start: step from which rows come in pairs; reuse_depth: layers that the second row of a pair may reuse.
        plain_start, plain_share: step from which, and share in which, single rows are plain ones.
    """

    name: str
    reuse_start: int
    reuse_depth: int
    plain_start: int = 0
    plain_share: float = 0.0


SHOP_MIX = Mix("shop", REUSE_START, REUSE_DEPTH)


@dataclass(frozen=True, slots=True)
class Stage:
    """What rows are drawn at a training step."""

    length_weights: tuple[float, float, float]
    max_items: int
    serving_share: float
    recital_share: float
    pure: bool = False  # nothing but recitals

    @classmethod
    def at(cls, step: int) -> Stage:
        """The stage of a step; short lists and many recitals first."""
        if step < PURE_STEPS:
            return cls((1.0, 0.0, 0.0), 4 + 8 * step // PURE_STEPS, 0.0, 1.0, pure=True)
        if step < PURE_STEPS + SHORT_STEPS:
            return cls((0.3, 0.7, 0.0), 6 + 10 * (step - PURE_STEPS) // SHORT_STEPS, 0.1, 0.5)
        progress = min(1.0, (step - PURE_STEPS - SHORT_STEPS) / 6000)
        return cls(
            (0.6 - 0.4 * progress, 0.3, 0.1 + 0.4 * progress),
            16 + int(54 * min(1.0, 2 * progress)),
            0.2 + 0.2 * progress,
            0.3 - 0.2 * progress,
        )


def make_row(rng: random.Random, length: int, stage: Stage) -> Row:
    """Draw a row of `length` tokens (at least 128) from lists of the training split."""
    if stage.pure:
        return _recital_row(rng, length, stage)
    if rng.random() < stage.serving_share:
        canvas, turns = _shape(rng, length)
        return _serving_row(rng, length, _list_for(rng, length, canvas, turns), canvas)
    most = min(stage.max_items, (length - 80) // _ITEM_TOKENS)
    return _dense_row(rng, length, make_list(rng, rng.randint(min(3, most), most)), stage.recital_share)


def make_plain_row(rng: random.Random, length: int, stage: Stage) -> Row:
    """Draw a row without a canvas, cut off at `length` tokens (in half of them inside the list), masked anywhere."""
    fits = (length - 4) // _ITEM_TOKENS
    if rng.random() < 0.5:
        prices = make_list(rng, min(MAX_ITEMS, fits + 2))
    else:
        prices = make_list(rng, rng.randint(3, max(3, min(stage.max_items, fits))))
    tokens = _prefix(prices)
    while len(tokens) < length:
        question = make_question(rng, prices)
        tokens += _turn(question) + _answer(question)
    clean = np.array(tokens[:length], np.int64)
    hidden = np.array([rng.random() for _ in range(length)]) < _ratio(rng)
    hidden[0] = False
    weight = np.where(hidden, np.float32(_PLAIN_WEIGHT), np.float32(0))
    return Row(clean, np.where(hidden, 1, clean), weight, np.zeros(length, np.int64))


def make_pair(rng: random.Random, length: int, stage: Stage, reuse_depth: int = REUSE_DEPTH) -> tuple[Row, Row]:
    """Draw two rows about one list: a first forward, and a row that may reuse its layers below `reuse_depth`."""
    canvas, turns = _shape(rng, length)
    prices = _list_for(rng, length, canvas, turns)
    first = _serving_row(rng, length, prices, canvas, all_masked=True)
    if rng.random() < 0.6:
        second = _serving_row(rng, length, prices, canvas)
    else:
        second = _dense_row(rng, length, prices, stage.recital_share)
    if rng.random() < _REUSE_SHARE:
        second.reuse[: len(_prefix(prices))] = reuse_depth
    return first, second


def _turn(question: Question) -> list[int]:
    return vocabulary.encode(f"<|user|>{question.text}<|end|><|assistant|>")


def _prefix(prices: PriceList) -> list[int]:
    return vocabulary.encode(f"<|system|>{prices.text}<|end|>")


def _answer(question: Question) -> list[int]:
    return vocabulary.encode(question.answer + "<|eos|>")


def _shape(rng: random.Random, length: int) -> tuple[int, int]:
    """Canvas and number of earlier turns of a serving row."""
    return rng.randint(16, 96), rng.choice((0, 0, 0, 1, 2, 3)) if length > LENGTHS[0] else 0


def _list_for(rng: random.Random, length: int, canvas: int, turns: int) -> PriceList:
    budget = length - canvas - 25 - 45 * turns - 4
    return make_list(rng, max(2, min(MAX_ITEMS, budget // _ITEM_TOKENS)))


def _dense_row(rng: random.Random, length: int, prices: PriceList, recital_share: float) -> Row:
    tokens = _prefix(prices)
    weight, masked = [0.0] * len(tokens), list(tokens)
    if rng.random() < recital_share:
        lines, hidden = _recital(rng, rng.sample(prices.items, rng.randint(2, min(8, len(prices.items)))))
        if len(tokens) + len(_RECITAL) + len(lines) + 50 < length:
            tokens += [*_RECITAL, *lines, 0]
            masked += [*_RECITAL, *hidden, 0]
            weight += [0.0] * len(_RECITAL) + [1.0] * len(lines) + [0.0]
    while True:
        question = make_question(rng, prices)
        asked, answer = _turn(question), _answer(question)
        room = length - len(tokens) - len(asked) - len(answer)
        if room < 0:
            break
        tokens += asked
        masked += asked
        weight += [0.0] * len(asked)
        if room < 60:  # too little for a turn of any kind: the rest is this answer's canvas
            answer += [0] * room
        tokens += answer
        masked += _mask_uniform(rng, answer)
        weight += _weights(answer)
    rest = length - len(tokens)
    return _row(tokens + [0] * rest, masked + [0] * rest, weight + [0.0] * rest)


def _recital(rng: random.Random, items: list[Item]) -> tuple[list[int], list[int]]:
    lines = vocabulary.encode("".join(f"\n {item.name} {item.price}" for item in items))
    ratio = rng.uniform(0.3, 1.0)
    return lines, [1 if i % _ITEM_TOKENS >= 3 and rng.random() < ratio else t for i, t in enumerate(lines)]


def _recital_row(rng: random.Random, length: int, stage: Stage) -> Row:
    prices = make_list(rng, rng.randint(3, stage.max_items))
    tokens = _prefix(prices) + _RECITAL
    count = (length - len(tokens)) // _ITEM_TOKENS
    items = [item for _ in range(count) for item in rng.sample(prices.items, len(prices.items))][:count]
    lines, hidden = _recital(rng, items)
    rest = [0] * (length - len(tokens) - len(lines))
    weight = [0.0] * len(tokens) + [1.0] * len(lines) + [0.0] * len(rest)
    return _row(tokens + lines + rest, tokens + hidden + rest, weight)


def _serving_row(rng: random.Random, length: int, prices: PriceList, canvas: int, *, all_masked: bool = False) -> Row:
    tokens = _prefix(prices)
    while True:
        question = make_question(rng, prices)
        asked, answer = _turn(question), _answer(question)
        room = length - len(tokens) - len(asked) - len(answer)
        if room < 0:  # does not fit: ask for one price, which always does
            question = make_question(rng, prices, "price", False)
            asked, answer = _turn(question), _answer(question)
            room = length - len(tokens) - len(asked) - len(answer)
        if room <= canvas + 30:
            break
        tokens += asked + answer
    answer += [0] * room
    tokens += asked
    mask = _mask_block if rng.random() < 0.6 else _mask_uniform
    weight = [0.0] * len(tokens) + _weights(answer)
    return _row(tokens + answer, tokens + ([1] * len(answer) if all_masked else mask(rng, answer)), weight)


def _row(tokens: list[int], masked: list[int], weight: list[float]) -> Row:
    clean, hidden = np.array(tokens, np.int64), np.array(masked, np.int64)
    loss_weight = np.where(hidden == 1, np.array(weight, np.float32), np.float32(0))
    return Row(clean, hidden, loss_weight, np.zeros(len(clean), np.int64))


def _weights(answer: list[int]) -> list[float]:
    end = answer.index(0) + 1
    return [1.0] * end + [_FILL_WEIGHT] * (len(answer) - end)


def _ratio(rng: random.Random) -> float:
    return 1.0 if rng.random() < 0.15 else 1.0 - rng.random()


def _mask_uniform(rng: random.Random, answer: list[int]) -> list[int]:
    ratio = _ratio(rng)
    return [1 if rng.random() < ratio else token for token in answer]


def _mask_block(rng: random.Random, answer: list[int]) -> list[int]:
    size = rng.choice((8, 16, 32))
    start = size * rng.randint(0, answer.index(0) // size)
    end = min(start + size, len(answer))
    return answer[:start] + _mask_uniform(rng, answer[start:end]) + [1] * (len(answer) - end)


Batch = tuple[torch.Tensor, ...]


class Steps(Dataset[Batch]):
    """Batches by training step: item `i` is a function of (mix, seed, i) alone, however many workers read."""

    def __init__(self, seed: int, steps: int, tokens_per_step: int = TOKENS_PER_STEP, mix: Mix = SHOP_MIX):
        self.seed, self.steps, self.tokens_per_step, self.mix = seed, steps, tokens_per_step, mix

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        """Clean ids, masked ids (int64), weights (fp32) and, in the last part, reuse (int64), each [rows, length]."""
        mix = self.mix
        rng = random.Random(f"{mix.name}-{self.seed}-{step}")
        stage = Stage.at(step)
        length = rng.choices(LENGTHS, stage.length_weights)[0]
        count = max(2, self.tokens_per_step // length)
        if step < mix.reuse_start:
            plain = mix.plain_share if step >= mix.plain_start else 0.0
            rows = [
                make_plain_row(rng, length, stage) if plain and rng.random() < plain else make_row(rng, length, stage)
                for _ in range(count)
            ]
        else:
            rows = [row for _ in range(count // 2) for row in make_pair(rng, length, stage, mix.reuse_depth)]
        names = ("clean", "masked", "weight") + (("reuse",) if step >= mix.reuse_start else ())
        return tuple(torch.from_numpy(np.stack([getattr(row, name) for row in rows])) for name in names)
