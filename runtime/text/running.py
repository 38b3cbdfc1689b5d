"""The text of a token sequence that grows at its end, without decoding all of it again every time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

UNFINISHED = "\ufffd"
"""What a decoder shows for bytes that are no character, or not yet."""
_LONGEST_CONTEXT = 16


class Decodes(Protocol):
    """The part of a tokenizer that is needed here."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids."""
        ...


class RunningText:
    """What `decode` gives for all tokens so far, from the last few of them.

    A few settled tokens, the context, are decoded together with the new ones: what comes behind the context's own text
    is new. So a decoder may treat the first token, or a token beside another, in its own way (a leading blank, half a
    character). Tokens are settled once there is text and it ends in a whole character. A decoder that takes back what
    it gave for the context (byte fallback, after bytes that turn out to be no text) is asked for everything from then
    on.

    Args:
        tokenizer: decodes.

    Attributes:
        settled: length of the text that no later token changes.
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
        """Tokens that gave text join the context; when it gets long they are all of it."""
        self._context += new
        self._context_text = together
        if len(self._context) > _LONGEST_CONTEXT:
            alone = self._tokenizer.decode(new)
            if alone and not alone.endswith(UNFINISHED):
                self._context, self._context_text = new, alone
