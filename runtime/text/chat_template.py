"""A model's chat template: renders messages to text that marks which characters come from the messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import InvalidRequestError, ModelLoadError, ShoalError, shorten
from .control_tokens import ControlTokens
from .parts import NO_MARKS, Marks, strings

Message = Mapping[str, Any]
"""One chat message: `role` and `content`, as in OpenAI's API."""

ROLES = ("system", "user", "assistant", "developer", "tool", "function", "observation", "ipython")
"""Usual roles. Any other role must not be part of a special token's name."""
_KINDS = ("role", "type")


class Rendered(NamedTuple):
    """A conversation as text; characters of messages that could become control tokens are marked."""

    text: str
    marks: Marks


class ChatTemplate:
    """Renders conversations.

    A template may do anything with its input: trim, slice, change case, write JSON, or test for substrings. So, where
    that matters, a conversation is rendered twice: as it is, and with stand-ins for all its characters that begin or
    end special tokens. If both renderings are the same text, the second shows where each of these characters came from.
    If they differ, the template tests for such characters. Then only those that spell a control token in a message get
    stand-ins; if that yields other control tokens, all of them do.

    Args:
        name: the file and field that the template was read from.
        apply: transformers' `apply_chat_template` of one conversation, to text.
        tokens: control tokens of the tokenizer.
    """

    def __init__(self, name: str, apply: Callable[[list[dict[str, Any]], bool], str], tokens: ControlTokens):
        self.name = name
        self._apply = apply
        self._tokens = tokens

    def text(self, messages: Sequence[Message], header: bool) -> str:
        """The conversation as plain text, with an answer's header behind it on request.

        Raises ModelLoadError for a broken template, InvalidRequestError for messages that it can't render; both name
        the template.
        """
        from jinja2 import TemplateError, TemplateSyntaxError

        try:
            return self._apply([dict(message) for message in messages], header)
        except TemplateSyntaxError as error:
            message = f"{self.name} can't be parsed: line {error.lineno}: {error.message}"
            raise ModelLoadError(message, field="chat_template", value=self.name, limit="a Jinja template") from error
        # A template may raise anything.
        except Exception as error:
            refused = type(error) is TemplateError  # what raise_exception(...) in a template raises
            reason = str(error) if refused else f"{type(error).__name__}: {error}"
            words = "refuses the messages" if refused else "can't render the messages"
            raise InvalidRequestError(f"{self.name} {words}: {reason}", field="messages", value=self.name) from error

    def render(self, messages: Sequence[Message], header: bool) -> Rendered:
        """The conversation with marks. Raises as `text`, and InvalidRequestError for an invalid message or a role that
        is part of a special token's name.
        """
        self._check(messages)
        plain = self.text(messages, header)
        data = list(strings(messages))
        characters = frozenset[str]().union(*(self._tokens.to_mark(text) for text in data))
        if not characters:
            return Rendered(plain, NO_MARKS)
        marks = Marks(characters, [plain, *data])
        strict = self._strict(messages, header, marks)
        if marks.restore(strict) == plain:
            return Rendered(strict, marks)
        narrow = self.text(_mapped(messages, lambda text, _: self._tokens.mark_spellings(text, marks)), header)
        agree = self._names(narrow) == self._names(strict)
        return Rendered(narrow if agree else strict, marks)

    def _names(self, text: str) -> list[int]:
        return [span.token for span in self._tokens.spans(text)]

    def _strict(self, messages: Sequence[Message], header: bool, marks: Marks) -> str:
        tokens = self._tokens

        def mark(text: str, is_kind: bool) -> str:
            return marks.mark(text, tokens.ends if is_kind else tokens.to_mark(text))

        try:
            return self.text(_mapped(messages, mark), header)
        except ShoalError as error:
            message = f"{self.name} does not render these messages when their text is kept apart from its own"
            raise InvalidRequestError(f"{message}: {error}", field="messages", value=self.name) from error

    def _check(self, messages: Sequence[Message]) -> None:
        for index, message in enumerate(messages):
            if not isinstance(message, Mapping):
                text = f"message {index} is {shorten(message)}; it must have a role and a content"
                raise InvalidRequestError(text, field="messages", value=message)
            role = str(message.get("role", "")).strip()
            if role and role not in ROLES and self._tokens.inside(role):
                text = f"role of message {index} is {shorten(role)}, which is part of the name of a special token"
                raise InvalidRequestError(text, field="messages", value=role, limit=", ".join(ROLES))


def _mapped(value: Any, change: Callable[[str, bool], str], is_kind: bool = False, top: bool = True) -> Any:
    """A copy of messages with `change` applied to every string except field names; `change` is told which are roles and
    types.
    """
    if isinstance(value, str):
        return change(value, is_kind)
    if isinstance(value, Mapping):
        return {
            key if top else change(key, True): _mapped(inner, change, key in _KINDS, False)
            for key, inner in value.items()
        }
    if isinstance(value, Sequence):
        return [_mapped(inner, change, is_kind, top) for inner in value]
    return value
