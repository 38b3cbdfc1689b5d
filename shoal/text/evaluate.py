"""What a trained `text` is worth: a bound on its NLL, look-up, and short answers about documents.

`python -m shoal.text.evaluate --base ... --weights ... --data ... --out ...` writes `evaluation.json` and `samples.md`.
All documents are held out; the look-up task uses no name, thing or value of the training rows.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from . import delta
from .asks import ASSISTANT, USER
from .corpus import END, held_out
from .network import MASK, Network

LOOKUP_NAMES = "Alice Robert Maria Thomas Helen Victor Laura Henry Clara Oscar Emma Frank".split()
LOOKUP_WORDS = (
    "harbor silver garden winter bridge copper forest marble candle thunder planet ribbon castle falcon mirror orange "
    "pepper rocket saddle temple velvet window anchor basket"
).split()
FACTS = 6
_CANVAS = 64
END_OF_TURN = 2
QUESTIONS = (
    "What is this text about? Answer in one sentence.",
    "What is the main point of the text?",
    "Summarize the text above in two sentences.",
    "What can a reader learn from this text?",
)

Forward = Callable[[Tensor], Tensor]
"""Tokens [batch, length] -> last hidden states [batch, length, hidden]."""


def token_nll(network: Network, hidden: Tensor, targets: Tensor) -> Tensor:
    """NLL [n] of targets [n] under hidden states [n, hidden]; a mask is never a prediction."""
    logits = network.logits(hidden).float()
    logits[:, MASK] = -math.inf
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def masked_nll(network: Network, tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean NLL [batch] of the masked tokens of each row; every row has some."""
    hidden = network(torch.where(mask, MASK, tokens))
    rows, places = mask.nonzero(as_tuple=True)
    nll = token_nll(network, hidden[rows, places - 1], tokens[rows, places])
    total = torch.zeros(len(tokens), device=nll.device).index_add_(0, rows, nll)
    return total / mask.sum(1)


@torch.inference_mode()
def bound(network: Network, documents: Tensor, prefix: int, rates: int = 16, batch: int = 16) -> Tensor:
    """Upper bound [n] on the NLL, in nats a token, of each document's tokens from `prefix` on, given those before.

    The mean over `rates` stratified mask rates of the masked tokens' NLL: the discrete diffusion bound.
    """
    total = torch.zeros(len(documents), device=documents.device)
    suffix = documents.shape[1] - prefix
    for number in range(rates):
        generator = torch.Generator().manual_seed(7 + number)
        count = max(1, round((number + 0.5) / rates * suffix))
        order = torch.rand(len(documents), suffix, generator=generator).argsort(1)[:, :count]
        mask = torch.zeros(documents.shape, dtype=torch.bool)
        mask[:, prefix:].scatter_(1, order, True)
        mask = mask.to(documents.device)
        for begin in range(0, len(documents), batch):
            rows = slice(begin, begin + batch)
            total[rows] += masked_nll(network, documents[rows], mask[rows])
    return total / rates


@torch.inference_mode()
def nll_at_rate(network: Network, documents: Tensor, rate: float, batch: int = 16) -> Tensor:
    """Mean NLL [n] of tokens masked anywhere at a rate."""
    mask = torch.rand(documents.shape, generator=torch.Generator().manual_seed(3)) < rate
    mask[:, 0] = False
    mask[:, 1] |= ~mask.any(1)
    mask = mask.to(documents.device)
    parts = [
        masked_nll(network, documents[i : i + batch], mask[i : i + batch]) for i in range(0, len(documents), batch)
    ]
    return torch.cat(parts)


@torch.inference_mode()
def causal_nll(network: Network, documents: Tensor, prefix: int, batch: int = 16) -> Tensor:
    """Mean NLL [n] under the causal model of each document's tokens from `prefix` on."""
    parts = []
    for begin in range(0, len(documents), batch):
        tokens = documents[begin : begin + batch]
        hidden = network(tokens, causal=True)[:, prefix - 1 : -1]
        targets = tokens[:, prefix:]
        parts.append(token_nll(network, hidden.flatten(0, 1), targets.flatten()).view(targets.shape).mean(1))
    return torch.cat(parts)


def lookup_rows(documents: np.ndarray, tokenizer: Tokenizer, total: int, ratio: float) -> dict[str, Tensor]:
    """One look-up question a document: six facts strewn over `ratio` x `total` tokens, one asked for at the end.

    `tokens` [n, total] with one mask, `answers` [n], and `other` [n], the answer to the donor's question in a test of
    reuse; `donors` [n, total] have the same prefix and ask for `other` behind another document's text.
    """

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    words = [word for word in LOOKUP_WORDS if len(ids(" " + word)) == 1]
    prefix = round(ratio * total)
    out: dict[str, list[Any]] = {"tokens": [], "donors": [], "answers": [], "other": []}
    for number, document in enumerate(documents.tolist()):
        random = np.random.RandomState(7 * number + 1)
        names, values = random.permutation(LOOKUP_NAMES)[:FACTS], random.permutation(words)[:FACTS]
        asked, other = random.permutation(FACTS)[:2]
        facts = [ids(f" The password of {name} is {value}.") for name, value in zip(names, values, strict=True)]
        room = prefix - sum(map(len, facts))
        cuts = [0, *sorted(random.randint(0, room + 1, FACTS).tolist())]
        row: list[int] = []
        for fact, begin, end in zip(facts, cuts, cuts[1:], strict=False):
            row += document[begin:end] + fact
        row += document[cuts[-1] : room]
        for key, source, question in (
            ("tokens", document, asked),
            ("donors", documents[(number + len(documents) // 2) % len(documents)].tolist(), other),
        ):
            text = [*ids(f" Remember: the password of {names[question]} is"), MASK, *ids(".")]
            size = total - prefix
            out[key].append(row + (source[room : room + max(0, size - len(text))] + text)[-size:])
        out["answers"].append(ids(f" {values[asked]}")[0])
        out["other"].append(ids(f" {values[other]}")[0])
    return {key: torch.tensor(value) for key, value in out.items()}


@torch.inference_mode()
def lookup(network: Network, rows: dict[str, Tensor], causal: bool = False, batch: int = 32) -> dict[str, float]:
    """Accuracy of look-up, and the NLL of the answers."""
    device = network.mask.device
    right, nll = [], []
    for begin in range(0, len(rows["tokens"]), batch):
        tokens = rows["tokens"][begin : begin + batch].to(device)
        answers = rows["answers"][begin : begin + batch].to(device)
        places = (tokens == MASK).int().argmax(1)
        hidden = network(tokens, causal)[torch.arange(len(tokens), device=device), places - 1]
        logits = network.logits(hidden).float()
        logits[:, MASK] = -math.inf
        right.append((logits.argmax(1) == answers).float())
        nll.append(token_nll(network, hidden, answers))
    return {"accuracy": torch.cat(right).mean().item(), "nll": torch.cat(nll).mean().item()}


@torch.inference_mode()
def decode(
    network: Network, prompts: Tensor, canvas: int, block: int = 32, threshold: float = 0.9
) -> tuple[Tensor, Tensor]:
    """Greedy block decoding behind prompts [n, length]: answers [n, canvas], and the passes that each took [n].

    A pass commits every token of the block whose probability reaches the threshold, and the likeliest in any case.
    """
    count, length = prompts.shape
    tokens = torch.cat((prompts, torch.full((count, canvas), MASK, device=prompts.device)), 1)
    passes = torch.zeros(count, dtype=torch.int64, device=prompts.device)
    for begin in range(length, length + canvas, block):
        rows = tokens[:, begin : begin + block]
        while bool((open_ := (rows == MASK)).any()):
            hidden = network(tokens)[:, begin - 1 : begin + rows.shape[1] - 1]
            logits = network.logits(hidden).float()
            logits[..., MASK] = -math.inf
            sure, best = logits.softmax(-1).max(-1)
            sure = torch.where(open_, sure, -1.0)
            commit = (sure >= threshold) | (sure == sure.amax(1, keepdim=True)) & open_
            rows.copy_(torch.where(commit, best, rows))
            passes += open_.any(1)
    return tokens[:, length:], passes


def sample_answers(
    network: Network, documents: np.ndarray, names: list[str], tokenizer: Tokenizer, count: int = 20, length: int = 448
) -> tuple[str, float]:
    """Markdown with `count` answers to questions about held-out documents, and the mean of tokens a pass."""
    prompts, asked = [], []
    for number in range(min(count, len(documents))):
        question = QUESTIONS[number % len(QUESTIONS)]
        behind = tokenizer.encode(f"\n\n{question}{ASSISTANT}", add_special_tokens=False).ids
        head = tokenizer.encode(USER, add_special_tokens=False).ids
        prompts.append([*head, *documents[number][: length - len(head) - len(behind)].tolist(), *behind])
        asked.append(question)
    answers, passes = decode(network, torch.tensor(prompts, device=network.mask.device), _CANVAS)
    parts = []
    for prompt, question, ids, name in zip(prompts, asked, answers.tolist(), names, strict=False):
        stops = [i for i, token in enumerate(ids) if token in (END, END_OF_TURN)]
        answer = tokenizer.decode(ids[: stops[0]] if stops else ids)
        text = " ".join(tokenizer.decode(prompt[3:120]).split())
        parts.append(f"## {name}\n\n> {text} ...\n\n{question}\n\n**{' '.join(answer.split())}**\n")
    return "\n".join(parts), (_CANVAS / passes.double()).mean().item()


def evaluate(
    network: Network, base: Network, held: Path, tokenizer: Tokenizer, count: int = 256
) -> tuple[dict[str, Any], str]:
    """All measurements of a network and its causal base, with 95 % intervals where there is one a document."""
    documents, names = held_out(held, 1741, count)
    device = network.mask.device
    tokens = torch.from_numpy(documents[:, :1024]).to(device)
    brown = torch.tensor([name.startswith("brown") for name in names], device=device)

    def summary(values: Tensor) -> dict[str, float]:
        values = values.double()
        out = {"mean": values.mean(), "ci95": 1.96 * values.std() / len(values) ** 0.5,
               "brown": values[brown].mean(), "documentation": values[~brown].mean()}  # fmt: skip
        return {key: round(value.item(), 4) for key, value in out.items()}

    result: dict[str, Any] = {"documents": len(documents), "bound": summary(bound(network, tokens, 768))}
    for rate in (0.15, 0.5, 0.85):
        result[f"nll at {rate}"] = summary(nll_at_rate(network, tokens, rate))
    result["base nll"] = summary(causal_nll(base, tokens, 768))
    for ratio in (0.3, 0.5, 0.7, 0.9):
        rows = lookup_rows(documents, tokenizer, 512, ratio)
        result[f"look-up {ratio}"] = lookup(network, rows)
        result[f"base look-up {ratio}"] = lookup(base, rows, causal=True)
    samples, result["tokens a pass"] = sample_answers(network, documents, names, tokenizer)
    return result, samples


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="folder of the causal base")
    parser.add_argument("--weights", type=Path, help="what training wrote; without it the base itself, as a DLM")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds held.npz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=256)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    dtype = torch.bfloat16 if options.device.startswith("cuda") else torch.float32
    network, base = (Network.load_base(options.base) for _ in range(2))
    if options.weights:
        delta.apply(options.weights, network)
    tokenizer = Tokenizer.from_file(str(options.base / "tokenizer.json"))
    result, samples = evaluate(
        network.to(options.device, dtype), base.to(options.device, dtype), options.data / "held.npz", tokenizer,
        options.documents,
    )  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / "samples.md").write_text(samples)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
