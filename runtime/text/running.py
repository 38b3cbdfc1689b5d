"""The text of a token sequence that grows at its end; decodes only the new tokens and a short context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

UNFINISHED = "\ufffd"
"""A decoder's output for bytes that are not, or not yet, a character."""
_LONGEST_CONTEXT = 16


class Decodes(Protocol):
    """The part of a tokenizer that RunningText needs."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids."""
        ...


class RunningText:
    """The text of all tokens so far, computed from the last few of them.

    A few settled tokens, the context, are decoded together with the new ones; the text behind the context's own text is
    new. So a decoder may treat a first token or neighbours specially (a leading blank, half a character). Tokens are
    settled once their text ends in a whole character. If a decoder changes its text for the context (byte fallback,
    after invalid bytes), all tokens are decoded from then on.

    Args:
        tokenizer: decodes.

    Attributes:
        settled: length of the text that later tokens don't change.
    """

    def __init__(self, tokenizer: Decodes):
        self._tokenizer = tokenizer
        self._whole = False
        self.restart()

    def restart(self) -> None:
        """Forget everything: the next `extend` decodes all of its tokens."""
        self._context: list[int] = []
        self._context_text = ""
        self._text = ""
        self._read = 0

    @property
    def settled(self) -> int:
        """See the class."""
        return len(self._text)

    def extend(self, token_ids: Sequence[int]) -> str:
        """Text of `token_ids`, which begin with those of the call before; it may end in an unfinished character."""
        if self._whole:
            return self._tokenizer.decode(token_ids)
        new = list(token_ids[self._read :])
        if not new:
            return self._text
        together = self._tokenizer.decode(self._context + new)
        if not together.startswith(self._context_text):
            self.restart()
            self._whole = True
            return self._tokenizer.decode(token_ids)
        text = self._text + together[len(self._context_text) :]
        if together and not together.endswith(UNFINISHED):
            if len(together) > len(self._context_text):
                self._settle(new, together)
            self._text, self._read = text, len(token_ids)
        return text

    def _settle(self, new: list[int], together: str) -> None:
        """Tokens with text join the context; when it gets long, only they remain in it."""
        self._context += new
        self._context_text = together
        if len(self._context) > _LONGEST_CONTEXT:
            alone = self._tokenizer.decode(new)
            if alone and not alone.endswith(UNFINISHED):
                self._context, self._context_text = new, alone


def pieces(tokenizer: Decodes | None, token_ids: Sequence[int]) -> list[str]:
    """Each token's own text, special tokens included; "" without a tokenizer."""
    if tokenizer is None:
        return [""] * len(token_ids)
    return [tokenizer.decode([token], skip_special_tokens=False) for token in token_ids]
