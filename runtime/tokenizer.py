"""A model folder's tokenizer and chat template."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .chat_markers import PLAIN, ChatMarkers, chat_markers
from .errors import ModelLoadError

Message = Mapping[str, Any]
"""One chat message: `role` and `content`, as in OpenAI's API."""

_VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")


def check_tokenizer_files(folder: Path) -> None:
    """Raise ModelLoadError, with field `tokenizer`, when a model folder has no tokenizer; reads and imports nothing."""
    if not any((folder / name).is_file() for name in _VOCABULARY_FILES):
        raise ModelLoadError(
            f"no tokenizer in {str(folder)!r}: expected one of {', '.join(_VOCABULARY_FILES)}",
            field="tokenizer",
            value=str(folder),
            limit=" or ".join(_VOCABULARY_FILES),
        )


class Tokenizer:
    """Text to token ids and back. Get one with `Tokenizer.load`."""

    def __init__(self, backend: Any):
        self._backend = backend

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Load from a model folder; code that the folder may hold is never run, and nothing is downloaded.

        A folder whose tokenizer class is custom code (Dream's) is read as the ordinary one its files are for:
        `tokenizer.json`, or `vocab.json` + `merges.txt` (Qwen2's byte-level BPE).

        Raises: ModelLoadError with field `tokenizer`.
        """
        folder = Path(folder)
        check_tokenizer_files(folder)
        try:
            return cls(_load_backend(folder))
        # transformers and tokenizers raise anything, down to bare Exception, for a broken file.
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise ModelLoadError(
                f"the tokenizer in {str(folder)!r} can't be loaded: {type(error).__name__}: {reason}",
                field="tokenizer",
                value=str(folder),
                limit="files that transformers can load without remote code",
            ) from error

    @property
    def vocab_size(self) -> int:
        """Tokens that the tokenizer knows, special ones included; the model's table may be larger."""
        return len(self._backend)

    @property
    def has_chat_template(self) -> bool:
        """Whether `apply_chat_template` can be called."""
        return bool(self._backend.chat_template)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`. Special tokens written in it are recognised; BOS and EOS are added only where the
        tokenizer's own files say so, and never without `add_special_tokens` (text inside a prompt)."""
        return list(self._backend.encode(text, add_special_tokens=add_special_tokens))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids, by default without special tokens; spaces are left as the tokens have them."""
        return self._backend.decode(
            list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )

    def save_decoder(self, path: str | Path) -> bool:
        """Write what `TokenDecoder` needs to do `decode` alone, without transformers; False where that can't be."""
        backend = getattr(self._backend, "backend_tokenizer", None)
        if backend is None:
            return False
        Path(path).write_text(backend.to_str(), encoding="utf-8")
        return True

    def apply_chat_template(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        """Token ids of a conversation as the model expects it, by default up to where the answer begins.

        Raises: ModelLoadError when the folder has no chat template.
        """
        return self._tokenize(self._render(messages, add_generation_prompt))

    def render_prefix(self, messages: Sequence[Message]) -> list[int]:
        """Token ids that every conversation beginning with `messages` begins with: no assistant header behind.

        LLaDA's template appends that header whatever one asks, so it is stripped here.
        """
        text = self._render(messages, add_generation_prompt=False)
        if text == self._render(messages, add_generation_prompt=True):
            text = text.removesuffix(self._bare_header())
        ids = self._tokenize(text)
        for role in ("user", "assistant"):
            try:
                continued = self._render([*messages, {"role": role, "content": "."}], add_generation_prompt=False)
            except Exception:  # a template may refuse this order of roles, in Jinja's or its own words
                continue
            ids = ids[: _common_length(ids, self._tokenize(continued))]
        return ids

    def chat_markers(self) -> ChatMarkers:
        """What stands around each message of a conversation."""
        if not self.has_chat_template:
            return PLAIN
        return chat_markers(
            lambda messages, header: self._backend.apply_chat_template(
                [list(messages)], tokenize=False, add_generation_prompt=header
            )[0]
        )

    def _bare_header(self) -> str:
        """What the template renders without any message, '' if it can't."""
        try:
            # A batch of one conversation: transformers refuses an empty one on its own.
            return self._backend.apply_chat_template([[]], tokenize=False, add_generation_prompt=False)[0]
        except Exception:  # a template may insist on a first message
            return ""

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        if not self.has_chat_template:
            raise ModelLoadError(
                "this model's tokenizer has no chat template: pass plain text",
                field="chat_template",
                value=None,
                limit="a chat template in tokenizer_config.json or chat_template.jinja",
            )
        return self._backend.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=add_generation_prompt
        )

    def _tokenize(self, rendered: str) -> list[int]:
        """The template writes all special tokens itself, so none are added."""
        return list(self._backend.encode(rendered, add_special_tokens=False))


def _common_length(left: Sequence[int], right: Sequence[int]) -> int:
    """How many items two sequences have in common at their start."""
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


def _load_backend(folder: Path) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

    with _quiet_transformers():
        try:
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except Exception:
            if (folder / "tokenizer.json").is_file():
                return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
            if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
                return Qwen2Tokenizer.from_pretrained(folder, local_files_only=True)
            raise


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """It warns of every model type that it has no class for, which here is all, and of old keys in config.json."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            yield
    finally:
        logging.set_verbosity(verbosity)
