"""A model folder's tokenizer, with its chat template and its control tokens."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

from ..errors import InvalidRequestError, ModelLoadError, ShoalError, shorten
from .bound import CHARACTERS_PER_TOKEN, check_may_fit
from .chat_markers import PLAIN, ChatMarkers, chat_markers
from .chat_template import ChatTemplate
from .control_tokens import ControlTokens
from .conversation import Conversation, Message, plain_messages
from .parts import TextPart
from .sandbox import RENDER_S, Sandbox

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
    """Text to token ids and back. Get one with `Tokenizer.load`.

    Args:
        backend: of transformers.
        template_name: of its chat template in errors.
        sandbox: renders templates of clients; None: one of its own.
    """

    def __init__(self, backend: Any, template_name: str = "the chat template", sandbox: Sandbox | None = None):
        self._backend = backend
        self._template_name = template_name
        self._tokens = ControlTokens(backend)
        self._max_tokens: int | None = None
        self._markers: ChatMarkers | ShoalError | None = None
        self._chat_template: ChatTemplate | None = None
        self._sandbox = sandbox or Sandbox()
        self._given = {"messages", *backend.special_tokens_map, *signature(backend.apply_chat_template).parameters}

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Load from a model folder. Never runs code of the folder, and downloads nothing.

        A folder whose tokenizer class is custom code (Dream's) is read by the standard class for its files:
        `tokenizer.json`, or `vocab.json` + `merges.txt` (Qwen2's byte-level BPE).

        Raises: ModelLoadError with field `tokenizer`.
        """
        folder = Path(folder)
        check_tokenizer_files(folder)
        try:
            return cls(_load_backend(folder), _template_name(folder))
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
    def control_ids(self) -> frozenset[int]:
        """Ids that only markup may produce."""
        return frozenset(self._tokens.ids)

    @property
    def has_chat_template(self) -> bool:
        """Whether `apply_chat_template` can be called."""
        return bool(self._backend.chat_template)

    def protect(self, ids: Iterable[int]) -> None:
        """Treat `ids` (a model's mask and EOS) as control tokens, whatever the tokenizer's files say."""
        if not self._tokens.ids.issuperset(ids):
            self._tokens, self._chat_template = ControlTokens(self._backend, ids), None

    def prepare(self) -> None:
        """Build now what the first text with a special token as data would wait for: with a vocabulary of 150,000
        tokens that takes a second.
        """
        self._tokens.prepare()

    def limit(self, max_tokens: int) -> None:
        """From now on refuse texts that can't fit `max_tokens` without tokenizing all of them.

        Encoding raises InvalidRequestError for them; texts that are slightly too long pass.
        """
        self._max_tokens = max_tokens

    def _check(self, text: str) -> None:
        if self._max_tokens is None or len(text) <= CHARACTERS_PER_TOKEN * self._max_tokens:
            return
        added = self._backend.added_tokens_decoder.values()
        spaces_count = not any(token.lstrip or token.rstrip for token in added)
        check_may_fit(text, lambda t: self._backend.encode(t, add_special_tokens=False), self._max_tokens, spaces_count)

    def encode(self, text: str, add_special_tokens: bool = True, split_special_tokens: bool = False) -> list[int]:
        """Token ids of `text`. Special tokens written in it are recognised, unless `split_special_tokens` makes them
        ordinary text; BOS and EOS are added only where the tokenizer's own files say so, and never without
        `add_special_tokens` (text inside a prompt)."""
        return self.encode_parts([TextPart(text, split_special_tokens)], add_special_tokens)

    def encode_parts(self, parts: Sequence[TextPart], add_special_tokens: bool = True) -> list[int]:
        """Token ids of parts as one text; parts that are data produce no special token."""
        self._check("".join(part.text for part in parts))
        return self._tokens.encode_parts(parts, add_special_tokens)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids, by default without special tokens; spaces are left as the tokens have them."""
        text: str = self._backend.decode(
            list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return text

    @property
    def fast_backend(self) -> Any:
        """The tokenizers.Tokenizer inside; None if this tokenizer has none."""
        return getattr(self._backend, "backend_tokenizer", None)

    def save_decoder(self, path: str | Path) -> bool:
        """Write the file that `TokenDecoder` needs to decode without transformers; False if this tokenizer can't."""
        backend = self.fast_backend
        if backend is None:
            return False
        Path(path).write_text(backend.to_str(), encoding="utf-8")
        return True

    def apply_chat_template(self, chat: Conversation | Sequence[Message]) -> list[int]:
        """Token ids of a conversation, or of messages alone, as the model expects it.

        Special tokens come only from the template; one that is spelled in a message is ordinary text.

        Raises: ModelLoadError when the folder has no chat template, or a broken one; InvalidRequestError for messages
        that are none or that it does not render.
        """
        if not isinstance(chat, Conversation):
            chat = Conversation(messages=chat)
        template = self._template() if chat.template is None else self._own_template(chat.template)
        text, marks = template.render(replace(chat, messages=plain_messages(chat.messages)))
        self._check(marks.restore(text))
        return self._tokens.encode_marked(text, marks, add_special_tokens=False)

    def chat_markers(self) -> ChatMarkers:
        """The template's text around each message of a conversation.

        Raises: ModelLoadError, naming the template, for one whose turns can't be told apart.
        """
        if not self.has_chat_template:
            return PLAIN
        if self._markers is None:
            try:
                self._markers = chat_markers(self._template().text, self._template_name)
            except ShoalError as error:
                self._markers = error
        if isinstance(self._markers, ShoalError):
            raise self._markers
        return self._markers

    def end_ids(self) -> tuple[int, ...]:
        """The tokenizer's EOS, and the control token with which the chat template ends an assistant's turn."""
        ids = [self._backend.eos_token_id]
        if self.has_chat_template:
            with suppress(ShoalError):  # turns that can't be told apart have no end that is known
                ids.append(self._tokens.first(self.chat_markers().assistant[1]))
        return tuple(token for token in ids if token is not None)

    def special_id(self, text: str) -> int | None:
        """The control token that `text` spells from its first to its last character; None for other text."""
        token = self._tokens.first(text)
        return token if token is not None and self._tokens.spelling(token) == text else None

    def _template(self) -> ChatTemplate:
        if not self.has_chat_template:
            raise ModelLoadError(
                "this model's tokenizer has no chat template: pass plain text",
                field="chat_template",
                value=None,
                limit="a chat template in tokenizer_config.json or chat_template.jinja",
            )
        if self._chat_template is None:
            developer = "developer" in str(self._backend.chat_template)
            self._chat_template = ChatTemplate(self._template_name, self._apply, self._tokens, developer)
        return self._chat_template

    def _own_template(self, source: str) -> ChatTemplate:
        """A template that came with a conversation; all its renderings share one time limit."""
        deadline = time.monotonic() + RENDER_S

        def apply(chat: Conversation) -> str:
            self._check_variables(chat)
            return self._sandbox.render(source, {
                **self._backend.special_tokens_map, **chat.template_kwargs, "messages": chat.messages,
                "tools": list(chat.tools) or None, "add_generation_prompt": chat.add_generation_prompt,
            }, deadline)  # fmt: skip

        return ChatTemplate("chat_template", apply, self._tokens, "developer" in source)

    def _check_variables(self, chat: Conversation) -> None:
        for name in chat.template_kwargs:
            if name in self._given or not name.isidentifier():
                message = f"chat_template_kwargs has {shorten(name)}, which is no variable of the template's own"
                raise InvalidRequestError(message, field="chat_template_kwargs", value=name)

    def _apply(self, chat: Conversation) -> str:
        self._check_variables(chat)
        # A batch of one conversation: transformers refuses an empty one on its own.
        (text,) = self._backend.apply_chat_template(
            [[dict(message) for message in chat.messages]], tools=[dict(tool) for tool in chat.tools] or None,
            tokenize=False, add_generation_prompt=chat.add_generation_prompt, **chat.template_kwargs,
        )  # fmt: skip
        return str(text)


def _template_name(folder: Path) -> str:
    """The file and field of a model folder's chat template, in words."""
    file = "chat_template.jinja"
    if (folder / file).is_file():
        return f"the chat template ({file})"
    return "the chat template (chat_template in tokenizer_config.json)"


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
    """Silence warnings about model types that transformers has no class for, and about old keys in config.json."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            yield
    finally:
        logging.set_verbosity(verbosity)
