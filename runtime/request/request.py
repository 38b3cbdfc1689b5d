"""One request inside the scheduler."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import ShoalError
from ..text.stream import TextStream
from .canvas import Canvas
from .denoising import Denoising
from .forward import AddRequest, StepResult
from .grant import Grant
from .output import FinishReason, Hole, RequestOutput, Timings, TokenLogprob
from .snapshot import CanvasSnapshot
from .spec import RequestSpec, Tokens
from .tally import Tally


@dataclass(slots=True, eq=False)
class Request:
    """State of a request from intake to its terminal output.

    Attributes:
        spec: what was asked.
        stream: makes text of its tokens and finds stop strings.
        canvas: its tokens, kept by `apply`.
        denoising: what snapshots of the canvas need; None: nobody watches it.
        grant: its memory; None: it waits, or has ended. The scheduler's planner makes it, `Memory.release` takes it.
        tally: counts and times.
        started: its first forward has run since it was admitted last.
        needs_refresh: its next forward starts a block.
        end: canvas positions of its text, once it has ended.
        scores: log-probabilities of a scoring request's targets.
    """

    spec: RequestSpec
    stream: TextStream
    canvas: Canvas = field(init=False)
    denoising: Denoising | None = field(init=False, default=None)
    grant: Grant | None = None
    tally: Tally = field(default_factory=Tally)
    started: bool = False
    needs_refresh: bool = True
    end: int | None = None
    finish_reason: FinishReason | None = None
    matched_stop: int | str | None = None
    error: ShoalError | None = None
    scores: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        self.canvas = Canvas(self.spec)
        if self.spec.stream_mode == "denoise":
            self.denoising = Denoising(self.canvas)

    @property
    def rid(self) -> str:
        """Its id."""
        return self.spec.rid

    @property
    def prompt(self) -> Tokens:
        """int64 [prompt tokens]."""
        return self.spec.prompt

    @property
    def priority(self) -> int:
        """Higher goes first and may preempt."""
        return self.spec.priority

    @property
    def total_tokens(self) -> int:
        """Prompt tokens and the positions of the whole canvas."""
        return self.spec.total_tokens

    @property
    def extent(self) -> int:
        """Prompt tokens and the canvas positions that exist now."""
        return len(self.spec.prompt) + self.canvas.extent

    def block_span(self) -> tuple[int, int]:
        """(start, stop) of the current block in positions of the whole sequence; empty without new tokens."""
        start, stop = self.canvas.span()
        before = len(self.spec.prompt)
        return before + start, before + stop

    def opening(self) -> AddRequest:
        """The message that makes its canvas at the worker; the request must be admitted."""
        spec, canvas, grant = self.spec, self.canvas, self.grant
        assert grant is not None, spec.rid
        return AddRequest(
            rid=spec.rid, prompt=spec.prompt, canvas_length=spec.canvas_length, sampling=spec.sampling,
            seed=spec.seed, block_length=spec.block_length, page_table=grant.page_table,
            committed=canvas.leading(), canvas=canvas.template(),
            stop_ids=frozenset() if spec.template is not None else spec.stop_ids, end_ids=spec.end_ids,
            marks=self.denoising is not None, grammar=spec.grammar,
        )  # fmt: skip

    def note(self, result: StepResult) -> None:
        """Keep the log-probabilities of a result's commits. Call it before they are applied and counted."""
        start = len(self.prompt)
        self.canvas.note([position - start for position in result.positions], result.logprobs, self.tally.nfe)

    def apply(self, positions: Sequence[int], tokens: Sequence[int]) -> None:
        """Apply commits (positions of the whole sequence), and check whether the request is at its end.

        If one differs from a token that was shown, none counts and `canvas.diverged` is set.
        """
        spec, canvas = self.spec, self.canvas
        if spec.targets is not None:
            self.end, self.finish_reason = 0, "length"
            return
        if not canvas.commit(positions, tokens, len(spec.prompt)):
            return
        before, stop = canvas.frontier, canvas.first_mask()
        if self.end is None and stop > before and spec.template is None:
            for at in range(before, stop):
                token = canvas.tokens[at]
                if token in spec.stop_ids:
                    self.end, self.finish_reason, self.matched_stop, stop = at, "stop", token, at
                    break
        canvas.frontier = stop
        if self.end is None and stop == len(canvas.tokens):
            self.end, self.finish_reason = stop, "length"
        if stop > before or self.end is not None:
            self._update_text()

    def _update_text(self) -> None:
        canvas, stream = self.canvas, self.stream
        if canvas.frontier < len(canvas.shown):
            return
        text = "" if stream.silent else stream.update(self.token_ids, final=self.end is not None)
        if stream.matched_stop is not None:
            self.end = canvas.frontier = stream.stop_tokens
            self.finish_reason, self.matched_stop = "stop", stream.matched_stop
        if self.tally.first_text_at is None and (text or canvas.frontier):
            self.tally.first_text_at = time.monotonic()

    def preempt(self) -> None:
        """Go back to the start of the current block, to be admitted again. Its memory must have been released."""
        self.canvas.preempt()
        self.started, self.needs_refresh = False, True
        self.tally.preemptions += 1

    def fail(self, error: ShoalError) -> None:
        """End the request with an error."""
        self.error, self.finish_reason = error, "error"

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Committed contiguous tokens (of holes, those before their stop tokens); never fewer than were shown."""
        return self.canvas.visible(self.spec.stop_ids)

    @property
    def num_text_tokens(self) -> int:
        """Length of `token_ids`."""
        return len(self.token_ids) if self.spec.template is not None else self.canvas.num_shown

    def tokens_from(self, start: int) -> tuple[int, Sequence[int]]:
        """(kept, tokens): how many of the first `start` visible tokens remain, and the visible tokens behind them."""
        return self.canvas.visible_from(start, self.spec.stop_ids)

    def logprobs(self, start: int = 0) -> list[TokenLogprob | None]:
        """Of the visible tokens from number `start` on, without texts; none if the request did not ask for them."""
        if self.spec.sampling.logprobs is None:
            return []
        canvas = self.canvas
        found = [(at, canvas.logprobs.get(at)) for at in canvas.visible_positions(self.spec.stop_ids)[start:]]
        return [one and TokenLogprob(canvas.tokens[at], one.logprob, one.step, one.top) for at, one in found]

    def hole_tokens(self) -> list[tuple[int, int, list[int]]]:
        """(start, stop, tokens) of each hole; none of a scoring request."""
        return [] if self.spec.targets is not None else self.canvas.hole_tokens(self.spec.stop_ids)

    def timings(self) -> Timings:
        """Seconds until now."""
        return self.tally.timings(self.spec.arrival)

    def output(self) -> RequestOutput:
        """The output as of now."""
        ids, tally = self.token_ids, self.tally
        return RequestOutput(
            rid=self.rid,
            text=self.stream.text,
            token_ids=ids,
            finish_reason=self.finish_reason,
            matched_stop=self.matched_stop,
            error=self.error,
            prompt_tokens=len(self.prompt),
            completion_tokens=len(ids),
            cached_tokens=tally.cached_tokens,
            depth=tally.depth,
            canvas_tokens=self.canvas.num_committed,
            nfe=tally.nfe,
            reused_token_layers=tally.cached_tokens * tally.depth,
            computed_token_layers=tally.computed_token_layers,
            prefix_refreshes=tally.prefix_refreshes,
            timings=self.timings(),
            preemptions=tally.preemptions,
            holes=tuple(Hole(a, b, tuple(ids), self.stream.decode(ids)) for a, b, ids in self.hole_tokens()),
            scores=self.scores,
            logprobs=tuple(one and one.spelled(self.stream.spell) for one in self.logprobs()),
            snapshot=self._snapshot(),
        )

    def _snapshot(self) -> CanvasSnapshot | None:
        if self.denoising is None:
            return None
        change = self.denoising.take(self.tally.nfe)
        self.denoising.view.apply(change, self.stream.pieces(change.tokens))
        return self.denoising.view.snapshot()
