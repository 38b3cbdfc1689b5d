"""Messages between scheduler and worker.

Numbers, tuples and NumPy arrays: passed as they are in one process, encoded between two. What each request has one of
in every step is a msgspec.Struct: made and encoded many times faster than a frozen dataclass. Only processes need
msgspec.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..grammar.grammar import Grammar
from .sampling_params import SamplingParams

try:
    from msgspec import Struct
except ImportError:
    from .plain_struct import Struct  # type: ignore[assignment]

Pages = npt.NDArray[np.int32]
NO_TOKENS: npt.NDArray[np.int64] = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddRequest:
    """Create the canvas of a request: its prompt, then `canvas_length` masks.

    `page_table` is int32 [bands, pages], for the positions that exist; the worker keeps it until `Release`, and `Grow`
    lengthens it.
    `block_length` says which block is which: `steps_of_block` gives each its forwards. `committed` are the tokens of
    the first canvas positions when these are no masks any more (a preempted request that starts again).
    `canvas` is a template, int64 [canvas_length]: a token where it is fixed, -1 for a mask. Fixed tokens are never
    masks; `committed` is empty then. `stop_ids` are the tokens behind which nothing need be decoded: none with a
    template, whose canvas is decoded to its end. `end_ids` end the model's texts, whatever ends this one. `grammar`:
    what the text must satisfy. With `marks` its results are MarkedResults.
    """

    rid: str
    prompt: npt.NDArray[np.int64]
    canvas_length: int
    sampling: SamplingParams
    seed: int
    block_length: int
    page_table: Pages
    committed: npt.NDArray[np.int64] = field(default_factory=lambda: NO_TOKENS)
    canvas: npt.NDArray[np.int64] | None = None
    stop_ids: frozenset[int] = frozenset()
    end_ids: frozenset[int] = frozenset()
    marks: bool = False
    grammar: Grammar | None = None

    def steps_of_block(self, start: int) -> int | None:
        """Quota of forwards for the block that begins at `start` of the whole sequence; None: there is none."""
        index, blocks = (start - len(self.prompt)) // self.block_length, -(-self.canvas_length // self.block_length)
        return self.sampling.steps_of_block(index, blocks)


@dataclass(frozen=True, slots=True)
class Grow:
    """Lengthen a request's page table: `pages`, int32 [bands, n], come behind its first `held` columns."""

    rid: str
    held: int
    pages: Pages


@dataclass(slots=True)
class AuditReport:
    """Comparison of a first forward that reused a prefix with an uncached pass over the same tokens.

    Attributes:
        errors: fp32 [bands reused, pages reused], |cached - fresh| / |fresh| over a page, the largest of the band's
            layers and of keys and values.
        cosines: fp32 [bands reused], mean cosine over the tokens, the smallest of the band's layers, keys and values.
        compared, agreed: tokens that the first forward committed (greedily), and those that the pass predicts too.
        divergences: fp32 [masks], KL(p || q) in nats at every open mask of the current block, p being the uncached
            pass's distribution and q the forward's (`divergence` in runtime/worker/drift.py). None: not compared.
    """

    errors: npt.NDArray[np.float32]
    cosines: npt.NDArray[np.float32]
    compared: int = 0
    agreed: int = 0
    divergences: npt.NDArray[np.float32] | None = None


class ForwardItem(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One request's part of a forward.

    Tokens [start, stop) run through all layers. With depth > 0, tokens [join, start) enter at layer `depth`, resumed
    from boundary pages `resume` (int32 [(start - join) / page_size]): a prefix refresh. With depth 0, join == start.

    The tokens attend to positions [0, keys). The step may commit masks of the block [block_start, block_stop) (empty:
    none). `captures` (depth, first position, page ids) asks for the hidden states that enter layer `depth`, of whole
    pages of tokens from that position on, to be written to boundary pages. `copies` (int32 [2, n]) asks for KV pages to
    be copied when all layers are done: page copies[0, i] to page copies[1, i].

    `targets` (int64 [n, 2]: position of the whole sequence, token) asks for the log-probability of each token at its
    position, as `StepResult.scores`; such an item has no block: nothing is committed.

    `audit` asks for an uncached pass beside a first forward that reuses [0, start): it compares the first `audit`
    layers. With `audit_tokens` it runs the other layers too and compares predictions and tokens.
    """

    rid: str
    start: int
    stop: int
    keys: int
    block_start: int
    block_stop: int
    join: int
    depth: int = 0
    resume: Pages | None = None
    captures: tuple[tuple[int, int, Pages], ...] = ()
    copies: Pages | None = None
    targets: npt.NDArray[np.int64] | None = None
    audit: int = 0
    audit_tokens: bool = True

    @property
    def compares_predictions(self) -> bool:
        """Whether its audit needs the forward's own logits."""
        return self.audit > 0 and self.audit_tokens

    @property
    def is_block_alone(self) -> bool:
        """Whether the block and at most the position before it run, as in a block step of mode `dual`."""
        return self.stop == self.block_stop and self.start >= self.block_start - 1

    def token_layers(self, num_layers: int) -> int:
        """Token-layers that a forward computes for it: a prefix that joins at its depth runs through the rest alone."""
        return (self.stop - self.start) * num_layers + (self.start - self.join) * (num_layers - self.depth)

    def audited(self, layers: int, tokens: bool) -> ForwardItem:
        """The same with an audit of its first `layers` layers, and of its tokens too."""
        return ForwardItem(
            self.rid, self.start, self.stop, self.keys, self.block_start, self.block_stop, self.join, self.depth,
            self.resume, self.captures, self.copies, self.targets, layers, tokens,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Forward:
    """Run `items` together, up to `max_steps` times; each step leaves out the items that are done.

    With `then`, `items` run once, followed at once by the block steps `then` of the same requests, at most max_steps -
    1 times. Without it only block steps (no resume, captures or copies) may have max_steps > 1.
    """

    items: tuple[ForwardItem, ...]
    max_steps: int = 1
    then: tuple[ForwardItem, ...] = ()

    def parts(self) -> tuple[tuple[tuple[ForwardItem, ...], int], ...]:
        """(items, most steps) of each part, in the order in which they run."""
        if self.then:
            return (self.items, 1), (self.then, self.max_steps - 1)
        return ((self.items, self.max_steps),)


@dataclass(frozen=True, slots=True)
class Release:
    """Forget requests: they finished or were aborted."""

    rids: tuple[str, ...]


class Logprob(NamedTuple):
    """What the model gave a token in the forward that committed it; natural logarithms, the mask token impossible.

    Attributes:
        step: the forward, counted from 1.
        logprob: of the token.
        top: (token, log-probability) of the most probable tokens, best first, as many as were asked for.
    """

    step: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class StepResult(Struct, array_like=True, forbid_unknown_fields=True):
    """Result of a `Forward` for one request: committed positions (of the whole sequence) and tokens, in order.

    `nfe` counts its forward passes, `token_layers` the token-layers they computed. `scores`: natural log-probabilities
    (fp32 softmax over the vocabulary without the mask token) of the item's targets, in their order. `error`: the
    worker's failure in words; no other field is valid then. `audit`: the audit's report, if the item asked for one.
    `entropy`: the largest entropy, in nats, of a committed token, if the request has `refresh_entropy`.
    `logprobs`: of the tokens, in their order, if the request asked for them; their steps count the result's forwards.
    """

    rid: str
    positions: list[int] = []  # noqa: RUF012 (a Struct copies it)
    tokens: list[int] = []  # noqa: RUF012 (a Struct copies it)
    nfe: int = 0
    token_layers: int = 0
    scores: list[float] = []  # noqa: RUF012 (a Struct copies it)
    error: str | None = None
    audit: AuditReport | None = None
    entropy: float = 0.0
    logprobs: list[Logprob] = []  # noqa: RUF012 (a Struct copies it)


@dataclass(slots=True)
class Marks:
    """Of each commit of a StepResult: its confidence (None: unknown), and the forward pass of this result, from 1."""

    confidences: list[float | None] = field(default_factory=list)
    passes: list[int] = field(default_factory=list)


class MarkedResult(StepResult):
    """The result of a request whose denoising is watched."""

    marks: Marks | None = None
