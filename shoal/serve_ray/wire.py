"""What travels from a replica to a gateway: outputs as pieces, so that a long answer is sent once and not each time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..runtime.request.output import RequestOutput, TokenLogprob


@dataclass(frozen=True, slots=True)
class ReplicaLost:
    """The replica can't go on with a request, and perhaps another one can.

    Attributes:
        reason: in words.
        again_s: seconds after which another attempt will not meet the same replica.
    """

    reason: str
    again_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Piece:
    """An output whose text, tokens and log-probabilities begin behind what the one before it had in common.

    The starts count characters and entries of the output before.
    """

    output: RequestOutput
    text_start: int
    token_start: int
    logprob_start: int


class Pieces:
    """Makes pieces of one request's outputs, which are cumulative."""

    def __init__(self) -> None:
        self._text = ""
        self._tokens: tuple[int, ...] = ()
        self._logprobs: tuple[TokenLogprob | None, ...] = ()

    def of(self, output: RequestOutput) -> Piece:
        """The piece of the next output."""
        starts = [
            _common(before, now)
            for before, now in (
                (self._text, output.text), (self._tokens, output.token_ids), (self._logprobs, output.logprobs),
            )
        ]  # fmt: skip
        self._text, self._tokens, self._logprobs = output.text, output.token_ids, output.logprobs
        text, token, logprob = starts
        short = replace(
            output, text=output.text[text:], token_ids=output.token_ids[token:], logprobs=output.logprobs[logprob:]
        )
        return Piece(short, text, token, logprob)


class Whole:
    """The inverse of `Pieces`."""

    def __init__(self) -> None:
        self._text = ""
        self._tokens: tuple[int, ...] = ()
        self._logprobs: tuple[TokenLogprob | None, ...] = ()

    def of(self, piece: Piece) -> RequestOutput:
        """The output of the next piece."""
        output = piece.output
        self._text = self._text[: piece.text_start] + output.text
        self._tokens = self._tokens[: piece.token_start] + output.token_ids
        self._logprobs = self._logprobs[: piece.logprob_start] + output.logprobs
        return replace(output, text=self._text, token_ids=self._tokens, logprobs=self._logprobs)


def _common(before: Sequence[object], now: Sequence[object]) -> int:
    """Length of what comes before, if `now` begins with it; else 0."""
    return len(before) if now[: len(before)] == before else 0
