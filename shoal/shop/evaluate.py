"""Exact-match accuracy of a `shop` network by dense block-wise decoding, used while training.

The engine is measured by the demo and the benchmarks; this file needs the training network alone.
"""

from __future__ import annotations

import random
from collections import defaultdict

import torch

from . import vocabulary
from .network import TrainingNetwork
from .task import KINDS, chat, make_list, make_question

MASK_ID, EOS_ID = 1, 0


def held_out_prompts(count: int, seed: int, turns: bool = True) -> list[tuple[str, list[int], str]]:
    """(kind, prompt ids, answer) of `count` questions about held-out lists of 8 to 70 items, kinds in turn.

    Kinds are `price`, `price/json`, ... With `turns` a quarter of the questions follow one or two earlier turns.
    """
    rng = random.Random(f"held-out-{seed}")
    out = []
    for index in range(count):
        prices = make_list(rng, rng.randint(8, 70), held_out=True)
        kind, as_json = KINDS[index % len(KINDS)], (index // len(KINDS)) % 3 == 2
        earlier = rng.choice((1, 2)) if turns and index % 8 >= 6 else 0
        history = [make_question(rng, prices) for _ in range(earlier)]
        question = make_question(rng, prices, kind, as_json)
        messages = chat(prices, [(q.text, q.answer) for q in history], question.text)
        out.append((kind + "/json" * as_json, vocabulary.encode(render(messages)), question.answer))
    return out


def render(messages: list[dict[str, str]]) -> str:
    """The chat template, for prompts that end with the assistant's header."""
    text = ""
    for message in messages:
        end = "<|eos|>" if message["role"] == "assistant" else "<|end|>"
        text += f"<|{message['role']}|>{message['content']}{end}"
    return text + "<|assistant|>"


@torch.no_grad()
def decode(
    network: TrainingNetwork,
    prompts: list[list[int]],
    *,
    canvas: int = 32,
    block: int = 16,
    threshold: float = 0.9,
    reuse: list[int] | None = None,
    depth: int = 0,
) -> list[list[int]]:
    """Fill a canvas behind each prompt, block by block: commit what is at least `threshold` sure, at least one.

    With `reuse` (a prefix length a row) every second row takes its prefix's layers below `depth` from the row before,
    whose canvas stays masked; that row's output means nothing then.
    """
    device = network.device
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    width = max(map(len, prompts)) + canvas
    ids = torch.full((len(prompts), width), MASK_ID, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    ids = ids.to(device)
    at = torch.arange(width, device=device)[None]
    valid = at < (lengths[:, None] + canvas)
    taken = None
    if reuse is not None:
        taken = (at < torch.tensor(reuse, device=device)[:, None]).long() * depth
        taken[0::2] = 0
    for start in range(0, canvas, block):
        window = (at >= lengths[:, None] + start) & (at < lengths[:, None] + min(start + block, canvas))
        for _ in range(block):
            open_ = (ids == MASK_ID) & window
            if taken is not None:
                open_[0::2] = False
            if not open_.any():
                break
            logits = network(ids, valid[:, None, None, :], taken).float()
            logits[..., MASK_ID] = -torch.inf
            confidence, best = logits.softmax(-1).max(-1)
            confidence = confidence.masked_fill(~open_, -1.0)
            commit = open_ & ((confidence >= threshold) | (confidence == confidence.max(1, keepdim=True).values))
            ids = torch.where(commit, best, ids)
    return [ids[row, n : n + canvas].tolist() for row, n in enumerate(lengths.tolist())]


def accuracy(network: TrainingNetwork, count: int, seed: int, batch: int = 128, **options: float) -> dict[str, float]:
    """Exact-match accuracy on held-out lists by kind of question, and under `all`."""
    prompts = sorted(held_out_prompts(count, seed), key=lambda p: len(p[1]))
    right: dict[str, list[bool]] = defaultdict(list)
    for begin in range(0, count, batch):
        part = prompts[begin : begin + batch]
        outputs: list[list[int]] = decode(network, [p[1] for p in part], **options)  # type: ignore[arg-type]
        for (kind, _, answer), tokens in zip(part, outputs, strict=True):
            right[kind].append(vocabulary.decode(tokens) == answer)
            right["all"].append(right[kind][-1])
    return {kind: sum(values) / len(values) for kind, values in sorted(right.items())}


def reuse_accuracy(network: TrainingNetwork, count: int, seed: int, depth: int, batch: int = 64) -> dict[str, float]:
    """As `accuracy`, but with the list's layers below `depth` taken from another question's first forward."""
    rng = random.Random(f"held-out-reuse-{seed}")
    right: dict[str, list[bool]] = defaultdict(list)
    for _ in range(0, count, batch):
        prompts, answers, prefixes = [], [], []
        size = rng.randint(8, 70)
        for index in range(batch):
            prices = make_list(rng, min(70, size + rng.randint(0, 4)), held_out=True)
            prefix = vocabulary.encode(f"<|system|>{prices.text}<|end|>")
            for kind in (None, KINDS[index % len(KINDS)]):
                question = make_question(rng, prices, kind)
                prompts.append(prefix + vocabulary.encode(f"<|user|>{question.text}<|end|><|assistant|>"))
                answers.append(question)
                prefixes.append(len(prefix))
        outputs = decode(network, prompts, reuse=prefixes, depth=depth)
        for question, tokens in list(zip(answers, outputs, strict=True))[1::2]:
            right[question.kind].append(vocabulary.decode(tokens) == question.answer)
            right["all"].append(right[question.kind][-1])
    return {kind: round(sum(values) / len(values), 4) for kind, values in sorted(right.items())}


@torch.no_grad()
def probes(network: TrainingNetwork) -> dict[str, float]:
    """Share of masked price digits that the network gets right in one pass: a recital, and look-ups in short lists.

    Chance is about 0.1 a digit. The recital is right before look-ups are; both show learning long before answers do.
    """
    out: dict[str, float] = {}
    device = network.device
    for name, size, recite in (("recital-6", 6, True), ("look-up-4", 4, False), ("look-up-16", 16, False)):
        rng = random.Random(f"probe-{name}")
        clean: list[list[int]] = []
        masked: list[list[int]] = []
        while len(clean) < 64:
            prices = make_list(rng, size, held_out=True)
            item = rng.choice(prices.items)
            turn = "List all things." if recite else f"How much is the {item.name}?"
            head = vocabulary.encode(f"<|system|>{prices.text}<|end|><|user|>{turn}<|end|><|assistant|>")
            tail = vocabulary.encode(f"\n {item.name} {item.price}" if recite else str(item.price))
            hidden = [1 if i >= len(tail) - 2 else token for i, token in enumerate(tail)]
            clean.append(head + tail + [0])
            masked.append(head + hidden + [0])
        target, ids = torch.tensor(clean, device=device), torch.tensor(masked, device=device)
        right = network(ids).argmax(-1) == target
        out[name] = round(right[ids == MASK_ID].float().mean().item(), 3)
    return out
