"""A model's chat template: renders messages to text that marks which characters come from the messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

from ..errors import InvalidRequestError, ModelLoadError, ShoalError, shorten
from .control_tokens import ControlTokens
from .conversation import Conversation
from .parts import NO_MARKS, Marks, strings, unused_character

ROLES = ("system", "user", "assistant", "developer", "tool", "function", "observation", "ipython")
"""Usual roles. Any other role must not be part of a special token's name."""
_KINDS = ("role", "type")
_NAMES = frozenset({"arguments", "description", "function", "id", "index", "name", "parameters", "type"})
"""Field names that templates ask for, also in nested objects."""
_FUNCTION, _RESULT = "shoal_probe", "shoal result"
_PROBE_CALL = {"type": "function", "function": {"name": _FUNCTION, "arguments": {}}}
_PROBE_TOOL = {
    "type": "function",
    "function": {"name": _FUNCTION, "description": "x", "parameters": {"type": "object", "properties": {}}},
}


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
    stand-ins; if that yields other control tokens, all of them do. Tools and the template's variables are data too.

    Args:
        name: the file and field that the template was read from.
        apply: a conversation to text; the messages are those of `plain_messages`.
        tokens: control tokens of the tokenizer.
        knows_developer: whether the template has a role `developer`; otherwise such a message is a system message.
    """

    def __init__(
        self, name: str, apply: Callable[[Conversation], str], tokens: ControlTokens, knows_developer: bool = False
    ):
        self.name = name
        self._apply = apply
        self._tokens = tokens
        self._knows_developer = knows_developer

    def text(self, messages: Sequence[Mapping[str, Any]], header: bool) -> str:
        """Messages as plain text, with an answer's header behind them on request. Raises as `render`."""
        return self._text(Conversation(messages=messages, add_generation_prompt=header))

    def render(self, chat: Conversation) -> Rendered:
        """The conversation with marks; its messages are those of `plain_messages`.

        Raises ModelLoadError for a broken template, InvalidRequestError for messages that it can't render (both name
        the template), for what it would leave out, and for a role that is part of a special token's name.
        """
        if not self._knows_developer:
            chat = replace(chat, messages=[_as_system(message) for message in chat.messages])
        self._check(chat)
        end = ""
        if chat.continue_final_message:
            end = unused_character([*strings(chat.messages), *strings(chat.tools), *strings(chat.template_kwargs)])
            *before, last = chat.messages
            last = {**last, "content": f"{last['content']}{end}"}
            chat = replace(chat, messages=[*before, last], add_generation_prompt=False)
        text, marks = self._marked(chat)
        if end:
            text = self._up_to(text, end)
        elif not chat.add_generation_prompt:
            text = text.removesuffix(self._bare_header)
        return Rendered(text + chat.prefill, marks)

    def _text(self, chat: Conversation) -> str:
        from jinja2 import TemplateError, TemplateSyntaxError

        try:
            return self._apply(chat)
        except ShoalError:
            raise
        except TemplateSyntaxError as error:
            message = f"{self.name} can't be parsed: line {error.lineno}: {error.message}"
            raise ModelLoadError(message, field="chat_template", value=self.name, limit="a Jinja template") from error
        # A template may raise anything.
        except Exception as error:
            refused = type(error) is TemplateError  # what raise_exception(...) in a template raises
            reason = str(error) if refused else f"{type(error).__name__}: {error}"
            words = "refuses the messages" if refused else "can't render the messages"
            raise InvalidRequestError(f"{self.name} {words}: {reason}", field="messages", value=self.name) from error

    def _marked(self, chat: Conversation) -> Rendered:
        plain = self._text(chat)
        data = [*strings(chat.messages), *strings(chat.tools), *strings(chat.template_kwargs)]
        characters = frozenset[str]().union(*(self._tokens.to_mark(text) for text in data))
        if not characters:
            return Rendered(plain, NO_MARKS)
        marks = Marks(characters, [plain, *data])
        strict = self._strict(chat, marks)
        if marks.restore(strict) == plain:
            return Rendered(strict, marks)
        narrow = self._text(_mapped(chat, lambda text, _: self._tokens.mark_spellings(text, marks)))
        agree = self._names(narrow) == self._names(strict)
        return Rendered(narrow if agree else strict, marks)

    def _names(self, text: str) -> list[int]:
        return [span.token for span in self._tokens.spans(text)]

    def _strict(self, chat: Conversation, marks: Marks) -> str:
        tokens = self._tokens

        def mark(text: str, is_kind: bool) -> str:
            return marks.mark(text, tokens.ends if is_kind else tokens.to_mark(text))

        try:
            return self._text(_mapped(chat, mark))
        except ShoalError as error:
            message = f"{self.name} does not render these messages when their text is kept apart from its own"
            raise InvalidRequestError(f"{message}: {error}", field="messages", value=self.name) from error

    def _up_to(self, text: str, end: str) -> str:
        """`text` before the only `end` in it."""
        before, found, after = text.partition(end)
        if not found or end in after:
            message = f"continue_final_message: {self.name} does not render the last message once as it is"
            raise InvalidRequestError(message, field="continue_final_message", value=True, limit="false")
        return before

    # What a template would leave out

    def _check(self, chat: Conversation) -> None:
        for index, message in enumerate(chat.messages):
            role, at = str(message["role"]).strip(), f"messages[{index}]"
            if role and role not in ROLES and self._tokens.inside(role):
                text = f"{at}.role is {shorten(role)}, which is part of the name of a special token"
                raise InvalidRequestError(text, field=f"{at}.role", value=role, limit=", ".join(ROLES))
            if role == "tool" and not self._renders_results:
                text = f"{at}.role is 'tool'; {self.name} leaves such messages out"
                raise InvalidRequestError(text, field=f"{at}.role", value=role, limit="system, user, assistant")
            if message.get("tool_calls") and not self._renders_calls:
                text = f"{at}.tool_calls: {self.name} leaves them out"
                raise InvalidRequestError(text, field=f"{at}.tool_calls", limit="null")
        if chat.tools and not self._renders_tools:
            text = f"tools: {self.name} takes none, so the model would not see them"
            raise InvalidRequestError(text, field="tools", limit="null")

    @cached_property
    def _renders_tools(self) -> bool:
        return _FUNCTION in self._probe([], [_PROBE_TOOL])

    @cached_property
    def _renders_calls(self) -> bool:
        return _FUNCTION in self._probe([{"role": "assistant", "content": "", "tool_calls": [_PROBE_CALL]}])

    @cached_property
    def _renders_results(self) -> bool:
        call = {"role": "assistant", "content": "", "tool_calls": [{"id": "call_1", **_PROBE_CALL}]}
        result = {"role": "tool", "content": _RESULT, "tool_call_id": "call_1", "name": _FUNCTION}
        return _RESULT in self._probe([call, result])

    def _probe(self, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """A conversation as text. One that the template refuses counts as rendered: its own error says why."""
        asked = [{"role": "user", "content": "shoal asks"}, *messages]
        try:
            return self._text(Conversation(messages=asked, tools=tools))
        except ShoalError:
            return f"{_FUNCTION} {_RESULT}"

    @cached_property
    def _bare_header(self) -> str:
        """The answer's header of a template that renders it whatever one asks, as LLaDA's does; otherwise ''."""
        user = [{"role": "user", "content": "shoal asks"}]
        try:
            if self.text(user, False) == self.text(user, True):
                return self.text([], False)
        except ShoalError:
            pass
        return ""


def _as_system(message: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**message, "role": "system"} if message["role"] == "developer" else message


def _mapped(chat: Conversation, change: Callable[[str, bool], str]) -> Conversation:
    """The conversation with `change` applied to all strings of messages, tools and variables except field names."""
    return replace(
        chat,
        messages=_changed(chat.messages, change),
        tools=_changed(chat.tools, change),
        template_kwargs=_changed(chat.template_kwargs, change),
    )


def _changed(value: Any, change: Callable[[str, bool], str], is_kind: bool = False, top: bool = True) -> Any:
    """A copy of a value with `change` applied to every string except field names; `change` is told which are roles,
    types and names of other fields.
    """
    if isinstance(value, str):
        return change(value, is_kind)
    if isinstance(value, Mapping):
        return {
            key if top or key in _NAMES else change(key, True): _changed(inner, change, key in _KINDS, False)
            for key, inner in value.items()
        }
    if isinstance(value, Sequence):
        return [_changed(inner, change, is_kind, top) for inner in value]
    return value
