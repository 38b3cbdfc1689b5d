"""Token ids to text, without transformers and torch, for the detokenizer and the scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as Backend

from ..errors import ModelLoadError
from .running import Decodes


class TokenDecoder:
    """A Tokenizer's `decode`, read from the file of its `save_decoder`."""

    def __init__(self, path: str | Path):
        """Raises ModelLoadError for a file that `save_decoder` did not write."""
        try:
            self._backend = Backend.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            message = f"{str(path)!r} can't be loaded: {error}"
            raise ModelLoadError(message, field="tokenizer", value=str(path)) from error

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids; spaces are left as the tokens have them."""
        return self._backend.decode(ids, skip_special_tokens=skip_special_tokens)


def load_decoder(path: Path, folder: str, load_format: str) -> Decodes | None:
    """The decoder saved at `path`; without one the folder's own tokenizer; None with dummy weights."""
    if load_format != "auto":
        return None
    if path.exists():
        return TokenDecoder(path)
    from .tokenizer import Tokenizer

    return Tokenizer.load(folder)
