"""Turns the committed contiguous tokens of one request into text that only ever grows, and finds stop strings."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from .running import UNFINISHED, Decodes, RunningText


class TextStream:
    """Text of one request so far.

    `update` returns text that is safe to show: no half of a multi-byte character, and nothing that may turn out to be
    the beginning of a stop string. What it returned once stays a prefix of all that it returns later; the end is what
    the tokenizer gives for all tokens. (Both can't be had of a tokenizer that takes text back: the end counts then.)

    The stop string that is complete first ends the text, of several at once the longest: whether tokens come one by
    one or many at a time makes no difference.

    Attributes:
        text: what `update` returned last.
        matched_stop: the stop string that ended the text.
        stop_tokens: how many tokens there are up to the one that completed it.
    """

    def __init__(self, tokenizer: Decodes | None, stop: Sequence[str] = ()):
        self._tokenizer = tokenizer
        self._running = None if tokenizer is None else RunningText(tokenizer)
        self._stop = stop
        self._longest = max(map(len, stop), default=0)
        self.text = ""
        self.matched_stop: str | None = None
        self.stop_tokens = 0
        self._seen = 0

    @property
    def silent(self) -> bool:
        """Whether there is never any text."""
        return self._tokenizer is None

    def update(self, token_ids: Sequence[int], final: bool) -> str:
        """Text of `token_ids`: all tokens so far, those of the call before first; `final` releases what was held
        back."""
        if self._tokenizer is None or self._running is None or self.matched_stop is not None:
            return self.text
        searched = self._running.settled
        full = self._tokenizer.decode(token_ids) if final else self._running.extend(token_ids).rstrip(UNFINISHED)
        if self._stop:
            if self._ends(full, searched, token_ids):
                return self.text
            if not final:
                full = full[: len(full) - self._held_back(full)]
        self._seen = len(token_ids)
        if final or full.startswith(self.text):
            self.text = full
        return self.text

    def restart(self) -> None:
        """The tokens of the call before may have changed: the next `update` decodes all of them."""
        if self._running is not None:
            self._running.restart()

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens; '' without a tokenizer."""
        return "" if self._tokenizer is None else self._tokenizer.decode(token_ids)

    def _ends(self, full: str, searched: int, token_ids: Sequence[int]) -> bool:
        """Whether a stop string ends the text `full`; none does so inside its first `searched` characters."""
        begin = max(0, searched - self._longest + 1)
        found = ((full.find(stop, begin), stop) for stop in self._stop)
        matches = [(at + len(stop), at, stop) for at, stop in found if at >= 0]
        if not matches:
            return False
        _, at, stop = min(matches)
        self.text, self.matched_stop = full[:at], stop
        decode, lengths = self.decode, range(self._seen + 1, len(token_ids))
        self.stop_tokens = self._seen + 1 + bisect_left(lengths, True, key=lambda n: stop in decode(token_ids[:n]))
        return True

    def _held_back(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string begins with."""
        longest = min(self._longest - 1, len(text))
        for length in range(longest, 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0
