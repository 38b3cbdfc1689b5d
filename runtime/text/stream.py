"""Turns the committed contiguous tokens of one request into text that only ever grows, and finds stop strings."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from .running import UNFINISHED, Decodes, RunningText, pieces


class TextStream:
    """Text of one request so far.

    `update` returns text that is safe to show: no half of a multi-byte character, and no possible beginning of a stop
    string. Each text it returns is a prefix of all later ones, and the final one is the tokenizer's text of all tokens.
    (For a tokenizer that changes earlier text both can't hold: then the final text counts.)

    The stop string that is complete first ends the text; of several at once, the longest. The result does not depend on
    how many tokens arrive at a time.

    Attributes:
        text: what `update` returned last.
        matched_stop: the stop string that ended the text.
        stop_tokens: number of tokens up to the one that completed it.
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
        """Whether it never produces text."""
        return self._tokenizer is None

    def update(self, token_ids: Sequence[int], final: bool) -> str:
        """Text of `token_ids`: all tokens so far, beginning with those of the last call; `final` releases text that was
        held back.
        """
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
        """Earlier tokens may have changed: the next `update` decodes all of them."""
        if self._running is not None:
            self._running.restart()

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens; '' without a tokenizer."""
        return "" if self._tokenizer is None else self._tokenizer.decode(token_ids)

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """Each token's own text, special tokens included; "" without a tokenizer."""
        return pieces(self._tokenizer, token_ids)

    def spell(self, token: int) -> str:
        """Text of one token alone, special tokens as they are spelled; '' without a tokenizer."""
        return "" if self._tokenizer is None else self._tokenizer.decode([token], skip_special_tokens=False)

    def _ends(self, full: str, searched: int, token_ids: Sequence[int]) -> bool:
        """Whether a stop string ends the text `full`; its first `searched` characters hold none."""
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
        """Length of the longest suffix of `text` that begins a stop string."""
        longest = min(self._longest - 1, len(text))
        for length in range(longest, 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0
