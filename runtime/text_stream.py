"""Turns the committed contiguous tokens of one request into text that only ever grows, and finds stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Decodes(Protocol):
    """The part of a tokenizer that is needed here."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids."""
        ...


class TextStream:
    """Text of one request so far.

    `update` returns text that is safe to show: no half of a multi-byte character, and nothing that may turn out to be
    the beginning of a stop string. What it returned once stays a prefix of all that it returns later.

    Attributes:
        text: what `update` returned last.
        matched_stop: the stop string that ended the text.
        stop_tokens: how many tokens there are up to the one that completed it.
    """

    def __init__(self, tokenizer: Decodes | None, stop: Sequence[str] = ()):
        self._tokenizer = tokenizer
        self._stop = stop
        self.text = ""
        self.matched_stop: str | None = None
        self.stop_tokens = 0
        self._seen = 0

    @property
    def silent(self) -> bool:
        """Whether there is never any text."""
        return self._tokenizer is None

    def update(self, token_ids: Sequence[int], final: bool) -> str:
        """Text of `token_ids` (all tokens so far); `final` releases what was held back."""
        if self._tokenizer is None or self.matched_stop is not None:
            return self.text
        full = self._tokenizer.decode(token_ids)
        found = [(full.index(stop), stop) for stop in self._stop if stop in full]
        if found:
            at, self.matched_stop = min(found)
            self.text = full[:at]
            lengths = range(self._seen + 1, len(token_ids))
            complete = (n for n in lengths if self.matched_stop in self._tokenizer.decode(token_ids[:n]))
            self.stop_tokens = next(complete, len(token_ids))
            return self.text
        self._seen = len(token_ids)
        shown = full if final else full.rstrip("\ufffd")
        if not final and self._stop:
            shown = shown[: len(shown) - self._held_back(shown)]
        if final or shown.startswith(self.text):
            self.text = shown
        return self.text

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens; '' without a tokenizer."""
        return "" if self._tokenizer is None else self._tokenizer.decode(token_ids)

    def _held_back(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string begins with."""
        longest = min(max(map(len, self._stop)) - 1, len(text))
        for length in range(longest, 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0
