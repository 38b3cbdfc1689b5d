"""An experiment: above the safe depth, recompute only some of the prefix's tokens. What does that cost `text`?

    python -m benchmarks.text_selective --base out/text/base --weights out/text/full.safetensors --data out/text/data \
        --out benchmarks/results/text_selective.csv

Below `depth` every key and value of the prefix is another request's. From there on the chosen share of its tokens is
computed again, beginning with the donor's hidden states, and the others keep the donor's keys and values in all layers.
Share 0 is reuse in all layers, share 1 is what `bicache` does. The tokens are chosen once, by a probe:

* `attention`: those that the request's own tokens attend to most in a forward that reuses everything, in the layers
  from `depth` on, over all heads;
* `difference`: those whose keys and values in layer `depth` + 1 change most when layer `depth` is computed again;
* `random`.

One forward a question with all answers masked, as in benchmarks/text_reuse.py.
"""

from __future__ import annotations

import csv
import sys

import torch
from torch import Tensor
from torch.nn import functional as F

from shoal.text.network import Network, finish, project, rope_tables
from shoal.text.reuse import Capture, capture

from .text_reuse import TOTAL, Lab, Scores, Task, interval, make_parser

CHOOSERS = ("attention", "difference", "random")
FIELDS = (
    "task", "ratio", "depth", "chosen_by", "share", "rows", "nll_none", "dnll", "dnll_ci95", "accuracy_none",
    "accuracy", "accuracy_diff_ci95", "command", "commit", "hardware", "torch",
)  # fmt: skip


def selective(
    network: Network, tokens: Tensor, prefix: int, donor: Capture, depth: int, chosen: Tensor | None,
    attention: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Last hidden states [batch, n - prefix, hidden] behind the prefix.

    From layer `depth` on the prefix's tokens `chosen` [batch, k] (ascending) are computed too. `attention` [batch,
    prefix] fp32, if given, gains what the tokens behind the prefix attend to in layers from `depth` on.
    """
    x = network.embed(tokens[:, prefix:])
    shape = network.shape
    cos, sin = rope_tables(tokens.shape[1], shape, x.device)
    own = torch.arange(prefix, tokens.shape[1], device=x.device).expand(len(tokens), -1)
    places = own
    for index in range(shape.layers):
        if index == depth and chosen is not None and chosen.shape[1]:
            width = donor.hidden[index].shape[-1]
            x = torch.cat((donor.hidden[index].gather(1, chosen[..., None].expand(-1, -1, width)), x), 1)
            places = torch.cat((chosen, own), 1)
        norm1, qkv, out, norm2, gate_up, down = network.layer_weights(index)
        q, k, v = project(x, norm1, qkv, cos[places], sin[places], shape)
        keys, values = torch.cat((donor.keys[index], k), 2), torch.cat((donor.values[index], v), 2)
        if chosen is not None and places is not own:  # recomputed tokens take their own place among the prefix's
            again, rows = k.shape[2] - own.shape[1], chosen[:, None, :, None].expand(-1, k.shape[1], -1, k.shape[3])
            keys = torch.cat((donor.keys[index].scatter(2, rows, k[:, :, :again]), k[:, :, again:]), 2)
            values = torch.cat((donor.values[index].scatter(2, rows, v[:, :, :again]), v[:, :, again:]), 2)
        repeats = shape.heads // shape.kv_heads
        keys, values = keys.repeat_interleave(repeats, 1), values.repeat_interleave(repeats, 1)
        if attention is not None and index >= depth:
            weights = (q.float() @ keys.float().transpose(2, 3) / shape.head_dim**0.5).softmax(-1)
            attention += weights[..., :prefix].sum((1, 2))
        attended = F.scaled_dot_product_attention(q, keys, values)
        x = finish(x, attended, out, norm2, gate_up, down, shape.eps)
    return x[:, -own.shape[1] :]


def change(network: Network, tokens: Tensor, prefix: int, donor: Capture, depth: int) -> Tensor:
    """How far [batch, prefix] keys and values of layer `depth` + 1 move when layer `depth` is computed again."""
    moved = torch.zeros(len(tokens), prefix, device=tokens.device)
    if depth + 1 >= network.shape.layers:
        return moved
    shape, x = network.shape, network.embed(tokens[:, prefix:])
    cos, sin = rope_tables(tokens.shape[1], shape, x.device)
    for index in range(depth + 1):
        start = prefix
        keys, values = donor.keys[index], donor.values[index]
        if index == depth:
            x, start = torch.cat((donor.hidden[index], x), 1), 0
        norm1, qkv, out, norm2, gate_up, down = network.layer_weights(index)
        q, k, v = project(x, norm1, qkv, cos[start:], sin[start:], shape)
        keys, values = (k, v) if start == 0 else (torch.cat((keys, k), 2), torch.cat((values, v), 2))
        repeats = shape.heads // shape.kv_heads
        attended = F.scaled_dot_product_attention(
            q, keys.repeat_interleave(repeats, 1), values.repeat_interleave(repeats, 1)
        )
        x = finish(x, attended, out, norm2, gate_up, down, shape.eps)
    norm1, qkv, *_ = network.layer_weights(depth + 1)
    _, k, v = project(x[:, :prefix], norm1, qkv, cos[:prefix], sin[:prefix], shape)
    for new, old in ((k, donor.keys[depth + 1]), (v, donor.values[depth + 1])):
        moved += ((new - old).float().norm(dim=-1) / new.float().norm(dim=-1).clamp(min=1e-6)).mean(1)
    return moved


def choose(
    network: Network, task: Task, prefix: int, donor: Capture, depth: int, chosen_by: str, share: float
) -> Tensor:
    """Places [batch, k], ascending, of the prefix's tokens to compute again."""
    count = round(share * prefix)
    if chosen_by == "attention":
        scores = torch.zeros(len(task.tokens), prefix, device=task.tokens.device)
        selective(network, task.tokens, prefix, donor, depth, None, scores)
    elif chosen_by == "difference":
        scores = change(network, task.tokens, prefix, donor, depth)
    else:
        generator = torch.Generator().manual_seed(5)
        scores = torch.rand(len(task.tokens), prefix, generator=generator).to(task.tokens.device)
    return scores.topk(count, 1).indices.sort(1).values


@torch.inference_mode()
def measure(
    network: Network, task: Task, ratio: float, depths: list[int], shares: list[float], batch: int = 32
) -> list[dict[str, object]]:
    """A record for each depth, chooser and share."""
    device, prefix = network.mask.device, round(ratio * TOTAL)
    behind = task.counted.int().argmax(1) > prefix  # rows that are asked for something there
    whole = Task(*(part[behind].to(device) for part in (task.tokens, task.truth, task.counted, task.donors)))
    cells = [(depth, "", share) for depth in depths for share in (0.0, 1.0)]
    cells += [(depth, by, share) for depth in depths for by in CHOOSERS for share in shares]
    found: dict[tuple[int, str, float], list[tuple[Tensor, Tensor]]] = {cell: [] for cell in cells}
    none: list[tuple[Tensor, Tensor]] = []
    for begin in range(0, len(whole.tokens), batch):
        rows = slice(begin, begin + batch)
        part = Task(whole.tokens[rows], whole.truth[rows], whole.counted[rows], whole.donors[rows])
        hidden, _ = capture(network, part.tokens, prefix)
        exact = Scores(network, part, hidden[:, prefix:], prefix)
        none.append((exact.nll, exact.right))
        donor = capture(network, torch.cat((part.tokens[:, :prefix], part.donors[:, prefix:]), 1), prefix)[1]
        for depth, by, share in cells:
            chosen = None
            if by:
                chosen = choose(network, part, prefix, donor, depth, by, share)
            elif share:
                chosen = torch.arange(prefix, device=device).repeat(len(part.tokens), 1)
            scores = Scores(network, part, selective(network, part.tokens, prefix, donor, depth, chosen), prefix)
            found[depth, by, share].append((scores.nll, scores.right))
    nll_none, right_none = (torch.cat(parts) for parts in zip(*none, strict=True))
    records: list[dict[str, object]] = []
    for (depth, by, share), parts in found.items():
        nll, right = (torch.cat(values) for values in zip(*parts, strict=True))
        records.append({
            "ratio": ratio, "depth": depth, "chosen_by": by, "share": share, "rows": len(nll),
            "nll_none": nll_none.mean().item(), "dnll": (nll - nll_none).mean().item(),
            "dnll_ci95": interval(nll - nll_none), "accuracy_none": right_none.mean().item(),
            "accuracy": right.mean().item(), "accuracy_diff_ci95": interval(right - right_none),
        })  # fmt: skip
    return records


def main(arguments: list[str] | None = None) -> None:
    """Write the table; rows appear as they are measured."""
    parser = make_parser(__doc__, [0.5, 0.7, 0.9], ["look-up", "quote", "gap", "continuation"])
    parser.add_argument("--depths", type=int, nargs="+", default=[6, 12])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.4])
    words = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(words)
    if not options.weights.exists():
        print(f"no {options.weights}: docs/text.md says how to make it")
        return
    lab = Lab("text_selective", options, words)
    network = lab.network.to(options.device, torch.bfloat16 if options.device.startswith("cuda") else torch.float32)
    with options.out.open("w", newline="") as file:
        table = csv.DictWriter(file, FIELDS)
        table.writeheader()
        for name, ratio, task in lab.tasks():
            records = measure(network, task, ratio, options.depths, options.shares)
            lab.write(table, file, {"task": name, "ratio": ratio}, records)


if __name__ == "__main__":
    main()
