"""Refuses a text that can't fit the model from a part of it, without tokenizing the rest."""

from __future__ import annotations

from collections.abc import Callable, Sized

from ..errors import InvalidRequestError

CHARACTERS_PER_TOKEN = 8
"""Characters per allowed token up to which a text is tokenized without this check."""
_PIECE = 16384
_TOKENS_PER_CUT = 4
_MARGIN = 2


def check_may_fit(text: str, encode: Callable[[str], Sized], max_tokens: int, spaces_count: bool = True) -> None:
    """Raise InvalidRequestError (field `prompts`) for a long text that has more than `max_tokens` tokens.

    Pieces of the text are encoded until they have twice as many tokens. A cut between two pieces changes the tokens
    next to it, so each piece counts 4 fewer; the factor of two covers tokenizers in which a cut reaches further. A text
    that fits is never refused; a text that passes may still be too long.

    Args:
        text: the whole text.
        encode: gives the tokens of a text.
        max_tokens: most tokens, prompt and canvas, that a request may have.
        spaces_count: False for a tokenizer whose special tokens absorb the white space beside them.
    """
    if len(text) <= CHARACTERS_PER_TOKEN * max_tokens:
        return
    least = 0
    for start in range(0, len(text), _PIECE):
        piece = text[start : start + _PIECE]
        if spaces_count or not piece.isspace():
            least += max(0, len(encode(piece)) - _TOKENS_PER_CUT)
        if least > _MARGIN * max_tokens:
            message = (
                f"the text has {len(text)} characters, of which the first {start + len(piece)} have about "
                f"{least} tokens; prompt and canvas may have {max_tokens} tokens in all"
            )
            raise InvalidRequestError(message, field="prompts", value=len(text), limit=max_tokens)
