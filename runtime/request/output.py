"""Outputs of a request: any number while it runs, one terminal output at its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from ..errors import ShoalError
from .snapshot import CanvasSnapshot

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds: waiting for admission, until the first text (None: there was none), and in all."""

    queue: float
    first_text: float | None
    total: float


@dataclass(frozen=True, slots=True)
class Hole:
    """One hole of a canvas template: a run of masks between fixed tokens.

    Attributes:
        start, stop: its positions in the canvas.
        token_ids: its committed tokens from its start to the first gap, EOS or stop token.
        text: their text, without special tokens.
    """

    start: int
    stop: int
    token_ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """What the model gave a committed token; see `SamplingParams.logprobs`.

    Attributes:
        token: its id; `text` is its text alone, special tokens as they are spelled.
        logprob: natural log-probability.
        step: the forward of the request that committed it, counted from 1 (as `nfe` counts).
        top: (token, log-probability) of the most probable tokens of that forward, best first; `top_texts` their texts.
    """

    token: int
    logprob: float
    step: int
    top: tuple[tuple[int, float], ...] = ()
    text: str = ""
    top_texts: tuple[str, ...] = ()

    def spelled(self, spell: Callable[[int], str]) -> TokenLogprob:
        """The same with texts; `spell` gives the text of a token."""
        return replace(self, text=spell(self.token), top_texts=tuple(spell(token) for token, _ in self.top))


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """State of a request: while streaming, what is committed so far; at the end, everything.

    Attributes:
        rid: the request's id.
        text: committed contiguous text, without special tokens and without the stop string.
        token_ids: its tokens, without the EOS or stop token that ended it, or as far as the stop string goes. With a
            canvas template: fixed tokens and those of the holes, each hole without what follows its first EOS.
        finish_reason: None while running; `stop`, `length` (canvas full), `abort` or `error`.
        matched_stop: the token id or string that stopped it.
        error: what went wrong, with finish_reason `error`; also with `abort` when a time-out did it.
        prompt_tokens, completion_tokens: lengths of prompt and token_ids.
        cached_tokens: prompt tokens whose shallow KVs came from another request (s).
        depth: layers they were reused in (d).
        canvas_tokens: masks committed, also behind the end of the text.
        nfe: forward passes that the request took part in.
        reused_token_layers: s x d, which the first forward did not compute.
        computed_token_layers: token-layers that were computed for it in all.
        prefix_refreshes: forwards that recomputed the whole prompt or its layers above d.
        preemptions: how often requests of higher priority preempted it.
        holes: of a canvas template, in order.
        scores: of a scoring request: natural log-probabilities of its targets, in their order.
        logprobs: of `token_ids`, in their order, if asked for; None for a fixed token of a canvas template.
        snapshot: with stream mode `denoise`: the whole canvas.
    """

    rid: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    matched_stop: int | str | None
    error: ShoalError | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    depth: int
    canvas_tokens: int
    nfe: int
    reused_token_layers: int
    computed_token_layers: int
    prefix_refreshes: int
    timings: Timings
    preemptions: int = 0
    holes: tuple[Hole, ...] = ()
    scores: tuple[float, ...] = ()
    logprobs: tuple[TokenLogprob | None, ...] = ()
    snapshot: CanvasSnapshot | None = None

    @property
    def finished(self) -> bool:
        """Whether this is the terminal output."""
        return self.finish_reason is not None
