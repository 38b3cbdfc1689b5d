"""Outputs of one request on their way to a caller that may be slower than the model."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from ..errors import ShoalError
from ..request.output import Hole, RequestOutput, Timings, TokenLogprob
from ..request.snapshot import CanvasChange, CanvasView
from .errors import unpack_error
from .messages import Denoised, Output, Outputs, no_output


class OutputStream:
    """Merges pieces and hands out the newest cumulative state. Bounded: a newer state replaces one that was not taken.

    Args:
        rid: the request's id for the caller.
    """

    def __init__(self, rid: str):
        self._rid = rid
        self._tokens: list[int] = []
        self._text = ""
        self._logprobs: list[TokenLogprob | None] = []
        self._latest: Output | None = None
        self._new = asyncio.Event()
        self._error: ShoalError | None = None
        self._refused = False
        self._view: CanvasView | None = None

    def put(self, output: Output) -> None:
        """Add a piece; pieces after the terminal one are ignored."""
        if self._refused or self._error is not None or (self._latest is not None and self._latest.finish_reason):
            return
        del self._tokens[output.token_start :]
        self._tokens += output.tokens
        del self._logprobs[output.token_start :]
        self._logprobs += output.logprobs
        self._text = self._text[: output.text_start] + (output.text or "")
        self._latest = output
        self._new.set()

    def show(self, change: CanvasChange) -> None:
        """Take a change of the canvas over; the next piece hands it out."""
        self._view = self._view or CanvasView()
        self._view.apply(change, change.texts)

    def refuse(self, error: ShoalError) -> None:
        """The request was not accepted: `next` raises."""
        self._error, self._refused = error, True
        self._new.set()

    def fail(self, error: ShoalError) -> None:
        """End with an error, unless it has already ended."""
        if self._error is None and (self._latest is None or self._latest.finish_reason is None):
            self._error = error
            self._new.set()

    async def next(self) -> RequestOutput:
        """Wait for a state that was not taken yet; return the newest."""
        await self._new.wait()
        self._new.clear()
        if self._refused:
            assert self._error is not None
            raise self._error
        if self._error is not None:
            return replace(self._state(), finish_reason="error", error=self._error)
        return self._state()

    def _state(self) -> RequestOutput:
        output = self._latest or _NOTHING
        return RequestOutput(
            rid=self._rid,
            text=self._text,
            token_ids=tuple(self._tokens),
            finish_reason=output.finish_reason,
            matched_stop=output.matched_stop,
            error=None if output.error is None else unpack_error(output.error),
            prompt_tokens=output.prompt_tokens,
            completion_tokens=len(self._tokens),
            cached_tokens=output.cached_tokens,
            depth=output.depth,
            canvas_tokens=output.canvas_tokens,
            nfe=output.nfe,
            reused_token_layers=output.cached_tokens * output.depth,
            computed_token_layers=output.computed_token_layers,
            prefix_refreshes=output.prefix_refreshes,
            timings=Timings(output.queue_s, output.first_text_s, output.total_s),
            preemptions=output.preemptions,
            holes=tuple(Hole(hole.start, hole.stop, tuple(hole.tokens), hole.text) for hole in output.holes),
            scores=tuple(output.scores),
            snapshot=None if self._view is None else self._view.snapshot(),
            logprobs=tuple(self._logprobs),
        )


def deliver(message: Denoised | Outputs, streams: Mapping[str, OutputStream]) -> None:
    """Hand what a message says of each request to its stream, if that still exists."""
    if isinstance(message, Denoised):
        for number, change in message.changes.items():
            if (stream := streams.get(number)) is not None:
                stream.show(change)
        return
    for output in message.outputs:
        if (stream := streams.get(output.rid)) is not None:
            stream.put(output)


_NOTHING = no_output("")
