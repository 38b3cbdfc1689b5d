"""What an engine should answer, in dense float64 PyTorch and plain Python, one request at a time.

`Dense` is the model, `Session` one request's keys and values, `Cache` what requests leave for each other (page by page
in a dict instead of a tree), `answer` the decoding loop of every cache mode. Shares no code with shoal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Table = Sequence[Sequence[float]]
_LLADA = {
    "norm1": "attn_norm", "q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "attn_out", "norm2": "ff_norm",
    "gate": "ff_proj", "up": "up_proj", "down": "ff_out",
}  # fmt: skip
_DREAM = {
    "norm1": "input_layernorm", "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
    "o": "self_attn.o_proj", "norm2": "post_attention_layernorm", "gate": "mlp.gate_proj", "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}  # fmt: skip


class Dense:
    """The model's layers over dense tensors in float64."""

    def __init__(self, config: dict[str, Any], state: dict[str, Tensor]):
        self.llada = config["model_type"] == "llada"
        self.state = {name: tensor.double() for name, tensor in state.items()}
        self.heads = config["n_heads"] if self.llada else config["num_attention_heads"]
        self.kv_heads = config["n_kv_heads"] if self.llada else config["num_key_value_heads"]
        self.num_layers = config["n_layers"] if self.llada else config["num_hidden_layers"]
        self.eps, self.theta = config["rms_norm_eps"], config["rope_theta"]
        self.mask, self.eos = config["mask_token_id"], config["eos_token_id"]
        self.vocabulary = config["vocab_size"]
        self.shift = 0 if self.llada else 1

    def embed(self, ids: Sequence[int]) -> Tensor:
        return self.state["model.transformer.wte.weight" if self.llada else "model.embed_tokens.weight"][list(ids)]

    def part(self, layer: int, role: str, x: Tensor) -> Tensor:
        stem = (
            f"model.transformer.blocks.{layer}.{_LLADA[role]}" if self.llada else f"model.layers.{layer}.{_DREAM[role]}"
        )
        weight = self.state[f"{stem}.weight"]
        if role.startswith("norm"):
            return self.norm(x, weight)
        y = x @ weight.T
        return y + self.state[f"{stem}.bias"] if f"{stem}.bias" in self.state else y

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return x / torch.sqrt((x * x).mean(1, keepdim=True) + self.eps) * weight

    def split(self, x: Tensor, heads: int, first: int | None = None) -> Tensor:
        """[T, heads, D]; turned by RoPE for positions from `first` on."""
        x = x.view(len(x), heads, -1)
        if first is None:
            return x
        half = x.shape[2] // 2
        speed = self.theta ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = (torch.arange(len(x), dtype=torch.float64) + first)[:, None, None] * speed
        turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([turned.real, turned.imag], 2)

    def qkv(self, layer: int, x: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
        y = self.part(layer, "norm1", x)
        q = self.split(self.part(layer, "q", y), self.heads, first)
        k = self.split(self.part(layer, "k", y), self.kv_heads, first)
        return q, k, self.split(self.part(layer, "v", y), self.kv_heads)

    def rest(self, layer: int, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[2])
        x = x + self.part(layer, "o", torch.einsum("hqk,khd->qhd", scores.softmax(2), v).flatten(1))
        y = self.part(layer, "norm2", x)
        gate = self.part(layer, "gate", y)
        return x + self.part(layer, "down", gate / (1 + torch.exp(-gate)) * self.part(layer, "up", y))

    def probabilities(self, x: Tensor) -> Tensor:
        x = self.norm(x, self.state["model.transformer.ln_f.weight" if self.llada else "model.norm.weight"])
        logits = x @ self.state["model.transformer.ff_out.weight" if self.llada else "lm_head.weight"].T
        logits = logits[:, : self.vocabulary].clone()
        logits[:, self.mask] = -math.inf
        return logits.softmax(1)


class Session:
    """One request's keys and values [T, kv_heads, D] in every layer, as fresh or stale as its forwards left them."""

    def __init__(self, model: Dense, length: int):
        self.model = model
        hidden = model.embed([0]).shape[1]
        shape = (length, model.kv_heads, hidden // model.heads)
        self.k = [torch.full(shape, math.nan, dtype=torch.float64) for _ in range(model.num_layers)]
        self.v = [torch.full(shape, math.nan, dtype=torch.float64) for _ in range(model.num_layers)]
        self.token_layers = 0
        self.states: list[Tensor] = []
        self.low = 0

    def forward(
        self, tokens: Sequence[int], start: int, stop: int, keys: int, depth: int = 0, resume: Tensor | None = None
    ) -> Tensor:
        """Run [start, stop) through all layers, from layer `depth` on with the tokens before, out of `resume`.

        Returns the last hidden states from position `self.low` on; `self.states[l]` are those that entered layer l.
        """
        x, low = self.model.embed(tokens[start:stop]), start
        self.states = []
        for layer in range(self.model.num_layers):
            if resume is not None and layer == depth:
                x, low = torch.cat([resume, x]), start - len(resume)
            self.states.append(x)
            q, k, v = self.model.qkv(layer, x, low)
            self.k[layer][low:stop], self.v[layer][low:stop] = k, v
            self.token_layers += stop - low
            x = self.model.rest(layer, x, q, self.k[layer][:keys], self.v[layer][:keys])
        self.low = low
        assert not x.isnan().any()
        return x


@dataclass
class Page:
    """A page of a cached prefix: keys and values of its layers below `depth`, states that enter the depths it has."""

    depth: int
    ratio: float
    kv: list[tuple[Tensor, Tensor]]
    states: dict[int, Tensor]


@dataclass
class Cache:
    """Prefixes by their tokens, page by page.

    `table` is the depth profile with depths in whole bands; `refresh_interval` None: one prefix refresh a request.
    The last `margin` tokens of what is there are not reused.
    """

    page_size: int
    num_layers: int
    table: Table
    refresh_interval: int | None = None
    margin: int = 0
    pages: dict[tuple[int, ...], Page] = field(default_factory=dict)

    @property
    def levels(self) -> list[int]:
        depths = {int(depth) for _, depth in self.table}
        return sorted(depths | {0, self.num_layers})

    def safe_depth(self, ratio: float) -> int:
        return max([int(depth) for low, depth in self.table if low <= ratio], default=0)

    def match(self, prompt: Sequence[int], total: int, limit: int) -> tuple[int, int]:
        """The cut and depth that save most; of equal ones the longer cut."""
        cached = 0
        while cached < len(prompt) and tuple(prompt[: cached + self.page_size]) in self.pages:
            cached += self.page_size
        limit = min(limit, cached - self.margin)
        best = (0, 0)
        path = self.num_layers
        for cut in range(self.page_size, limit + 1, self.page_size):
            page = self.pages[tuple(prompt[:cut])]
            path = min(path, page.depth)
            depth = min(path, self.safe_depth(cut / total))
            if depth and cut * depth >= best[0] * best[1]:
                best = (cut, depth)
        return best

    def load(self, session: Session, prompt: Sequence[int], cut: int, depth: int) -> Tensor | None:
        """Put the keys and values of a cut into a session; the states to resume from."""
        pages = [self.pages[tuple(prompt[: at + self.page_size])] for at in range(0, cut, self.page_size)]
        for number, page in enumerate(pages):
            span = slice(number * self.page_size, (number + 1) * self.page_size)
            for layer in range(depth):
                session.k[layer][span], session.v[layer][span] = page.kv[layer]
        return torch.cat([page.states[depth] for page in pages]) if depth < self.num_layers else None

    def capture(self, tokens: Sequence[int], depth: int, ratio: float, session: Session, states: dict[int, Tensor]):
        """Store what is not there, deepen what is there from a prefix ratio no larger than this one."""
        limit = depth
        for at in range(0, len(tokens) // self.page_size * self.page_size, self.page_size):
            span = slice(at, at + self.page_size)
            page = self.pages.setdefault(tuple(tokens[: span.stop]), Page(0, 0.0, [], {}))
            if page.depth < limit and ratio >= page.ratio:
                for layer in range(page.depth, limit):
                    page.kv.append((session.k[layer][span].clone(), session.v[layer][span].clone()))
                for level in self.levels:
                    if page.depth < level <= limit and level < self.num_layers:
                        page.states[level] = states[level][span].clone()
                page.depth, page.ratio = limit, ratio
            limit = min(limit, page.depth)


@dataclass
class Answer:
    """What the engine should report; `gap`: how close any decision was (a small one might go the other way in fp32)."""

    tokens: list[int]
    canvas: list[int | None]
    nfe: int
    token_layers: int
    cut: int
    depth: int
    prefix_refreshes: int
    stopped: bool
    gap: float


def answer(
    model: Dense, prompt: Sequence[int], max_new_tokens: int, block_length: int, mode: str, cache: Cache | None = None,
    *, strategy: str = "low_confidence", threshold: float | None = None, factor: float | None = None,
    steps: int | None = None, ignore_eos: bool = True, window: int | None = None, settled: bool = False,
    every: int | None = None,
) -> Answer:  # fmt: skip
    """Decode one request.

    `window`: masks that exist behind the block; None: all. `settled`: a block start leaves blocks that were full at the
    start before it as they are, but every so many (`every`) block starts.
    """
    prompt = list(prompt)
    length = len(prompt)
    whole_canvas = total = length + (max_new_tokens or block_length)
    tokens = prompt + [model.mask] * (total - length)
    open_at = set(range(length, length + max_new_tokens))
    session = Session(model, total)
    kept = starts = 0
    blocks = [(at, min(at + block_length, length + max_new_tokens))
              for at in range(length, length + max_new_tokens, block_length)] or [(length, length)]  # fmt: skip
    nfe, last_refresh, refreshes, gap = 0, 0, 0, math.inf
    cut = depth = frozen = own = 0
    resume: Tensor | None = None
    own_resume: Tensor | None = None
    whole = 0
    if window is not None:
        total = min(whole_canvas, blocks[0][1] + window)
    if mode in ("bicache", "lm"):
        assert cache is not None
        whole = (length - model.shift) // cache.page_size * cache.page_size
        cut, depth = cache.match(prompt, total, whole)
        if cut:
            resume = cache.load(session, prompt, cut, depth)
    frontier, stopped = length, False
    for number, (start, stop) in enumerate(blocks):
        step = 0
        if window is not None:
            total = min(whole_canvas, stop + window)
        while True:
            if nfe == 0:
                hidden = session.forward(tokens, cut, total, total, depth, resume)
                refreshes += 1
                frozen = cut
                if mode == "bicache" and cache is not None and whole and cache.safe_depth(whole / total):
                    own = cache.safe_depth(whole / total)
                    frozen = whole
                    deep = own if cache.refresh_interval is not None else max(int(d) for _, d in cache.table)
                    states = {}
                    for level in cache.levels:
                        if 0 < level <= deep and level < model.num_layers:
                            rows = session.states[level]
                            missing = rows.new_full((total - len(rows), rows.shape[1]), math.nan)
                            assert len(missing) in (0, cut)
                            states[level] = torch.cat([missing, rows])[:whole]
                    cache.capture(prompt[:whole], deep, whole / total, session, states)
                    if cache.refresh_interval == 1:  # nothing of its own is reused
                        frozen, own, own_resume = cut, depth, resume
                    elif cache.refresh_interval is not None and own < model.num_layers:
                        own_resume = states[own]
            elif step == 0 and mode != "none":
                due = cache is not None and cache.refresh_interval is not None
                due = due and nfe - last_refresh >= cache.refresh_interval  # type: ignore[union-attr,operator]
                if mode == "bicache" and due and own_resume is not None:
                    hidden = session.forward(tokens, frozen, total, total, own, own_resume)
                    refreshes, last_refresh = refreshes + 1, nfe
                else:
                    starts += 1
                    low = frozen
                    if settled and not due and starts != every:
                        low = max(frozen, min(kept, start - model.shift))
                    starts = 0 if low == frozen else starts
                    hidden = session.forward(tokens, low, total, total)
                    if not low:
                        refreshes, last_refresh = refreshes + 1, nfe
                if mode == "bicache" and due:
                    starts = 0
            elif mode == "none":
                hidden = session.forward(tokens, 0, total, total)
            elif mode == "prefix":
                hidden = session.forward(tokens, start - model.shift, total, total)
            else:
                hidden = session.forward(tokens, start - model.shift, stop, total)
            if step == 0:
                kept = start
            nfe += 1
            masks = sorted(position for position in open_at if start <= position < stop)
            if masks:
                rows = torch.tensor([position - model.shift - session.low for position in masks])
                p = model.probabilities(hidden[rows])
                quota = None
                if steps is not None:
                    quota = quotas(model, stop - start, steps // len(blocks))[step]
                chosen, close = commits(p, strategy, threshold, factor, quota)
                gap = min(gap, close)
                for index in chosen:
                    tokens[masks[index]] = int(p[index].argmax())
                    open_at.remove(masks[index])
            step += 1
            while frontier < length + max_new_tokens and frontier not in open_at:
                if not ignore_eos and tokens[frontier] == model.eos:
                    stopped = True
                    break
                frontier += 1
            if stopped or not any(start <= position < stop for position in open_at):
                break
        if stopped:
            break
        assert number < len(blocks)
    if mode == "lm" and cache is not None and frontier // cache.page_size * cache.page_size > frozen:
        session.forward(tokens, frozen, frontier, frontier)
        cache.capture(tokens[:frontier], model.num_layers, 1.0, session, {})
    canvas = [None if at in open_at else tokens[at] for at in range(length, length + max_new_tokens)]
    return Answer(tokens[length:frontier], canvas, nfe, session.token_layers, cut, depth, refreshes, stopped, gap)


def quotas(model: Dense, masks: int, steps: int) -> list[int]:
    """Masks that each forward of a block commits: LLaDA's are spread evenly; Dream's follow its times from 1 to 1e-3,
    and those that commit nothing are left out."""
    if model.llada:
        base, extra = divmod(masks, steps)
        return [max(1, base + (step < extra)) for step in range(steps)]
    times = torch.linspace(1, 1e-3, steps + 1)
    counts: list[int] = []
    for step in range(steps):
        left = masks - sum(counts)
        counts.append(int(left * (1 - times[step + 1] / times[step])) if step < steps - 1 else left)
    return [count for count in counts if count]


def commits(
    p: Tensor, strategy: str, threshold: float | None, factor: float | None, quota: int | None
) -> tuple[list[int], float]:
    """Which rows are committed, and how close the closest decision was."""
    top = p.topk(2, 1).values
    if strategy == "low_confidence":
        confidence = top[:, 0].tolist()
    elif strategy == "margin":
        confidence = (top[:, 0] - top[:, 1]).tolist()
    else:
        entropy = -torch.where(p > 0, p * p.log(), 0.0).sum(1)
        confidence = (1 - entropy / math.log(p.shape[1])).tolist()
    gap = float((top[:, 0] - top[:, 1]).min())
    order = sorted(range(len(confidence)), key=lambda i: (-confidence[i], i))
    ranked = [confidence[i] for i in order]
    if quota is not None:
        count = quota
    elif factor is not None:
        count = 0
        for n, value in enumerate(ranked, 1):
            limit = 1 - factor / (n + 1)
            gap = min(gap, abs(value - limit))
            if value < limit:
                break
            count = n
        count = max(1, count)
        count += count == len(ranked) - 1  # a mask is not left alone
    else:
        limit = 0.9 if threshold is None else threshold
        gap = min([gap, *(abs(value - limit) for value in ranked)])
        count = max(1, sum(value >= limit for value in ranked))
    if count < len(ranked):
        gap = min(gap, ranked[count - 1] - ranked[count])
    return sorted(order[:count]), gap
