"""A chat as a prompt: messages, the functions that the model may call, and how the template renders them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import InvalidRequestError, shorten

Message = Mapping[str, Any]
"""One chat message: `role` and `content`, as in OpenAI's API."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A chat, and what its template is told beside the messages.

    Attributes:
        messages: as in OpenAI's API; see `plain_messages`.
        tools: functions that the model may call, `{"type": "function", "function": {...}}` each. Only for templates
            that render them.
        template: Jinja source that takes the place of the model's own template; it runs in a process of its own, with
            limits on time and memory. None: the model's own.
        template_kwargs: variables of the template.
        add_generation_prompt: end with the header of an answer.
        continue_final_message: end in the last message, so that the answer continues it.
        prefill: text behind the header with which the answer begins. It is the template's, not data.
    """

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] = ()
    template: str | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    prefill: str = ""


def plain_messages(messages: Sequence[Any], name: str = "messages") -> list[dict[str, Any]]:
    """Messages as templates take them: every content is text, arguments of tool calls are objects.

    Text parts of a content are joined. An assistant's message with `tool_calls` may leave its content out.
    Raises InvalidRequestError for any other message; its field is the path from `name`.
    """
    return [_plain_message(message, f"{name}[{index}]") for index, message in enumerate(messages)]


def _plain_message(message: Any, at: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise _wrong(at, message, "an object with a role and a content")
    plain = {key: value for key, value in message.items() if value is not None}
    if not isinstance(plain.get("role"), str):
        raise _wrong(f"{at}.role", message.get("role"), "text", "role" not in message)
    calls = plain.get("tool_calls")
    if calls:
        if plain["role"] != "assistant":
            raise _wrong(f"{at}.tool_calls", calls, 'null, since role is not "assistant"')
        plain["tool_calls"] = _plain_calls(calls, f"{at}.tool_calls")
    else:
        plain.pop("tool_calls", None)
    if calls and "content" not in plain:
        plain["content"] = ""
    else:
        plain["content"] = _text(plain.get("content"), f"{at}.content", "content" not in message)
    return plain


def _text(content: Any, at: str, missing: bool) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise _wrong(at, content, "text", missing)
    texts = []
    for index, part in enumerate(content):
        if not isinstance(part, Mapping):
            raise _wrong(f"{at}[{index}]", part, 'a part {"type": "text", "text": ...}')
        if part.get("type") != "text":
            raise _wrong(f"{at}[{index}].type", part.get("type"), '"text": the models here take text only')
        if not isinstance(part.get("text"), str):
            raise _wrong(f"{at}[{index}].text", part.get("text"), "text", "text" not in part)
        texts.append(part["text"])
    return "".join(texts)


def _plain_calls(calls: Any, at: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list | tuple):
        raise _wrong(at, calls, "a list of calls")
    plain = []
    for index, call in enumerate(calls):
        here = f"{at}[{index}]"
        if not isinstance(call, Mapping) or call.get("type", "function") != "function":
            raise _wrong(here, call, 'a call {"type": "function", "function": {"name": ..., "arguments": ...}}')
        function = call.get("function")
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise _wrong(f"{here}.function", function, "an object with a name and arguments")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except (ValueError, RecursionError):
                arguments = None
        if not isinstance(arguments, Mapping):
            raise _wrong(f"{here}.function.arguments", function.get("arguments"), "an object, or JSON of one")
        kept = {key: call[key] for key in ("id", "index") if call.get(key) is not None}
        plain.append({**kept, "type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return plain


def _wrong(field: str, value: Any, limit: str, missing: bool = False) -> InvalidRequestError:
    shown = "missing" if missing else shorten(value)
    return InvalidRequestError(f"{field} is {shown}; it must be {limit}", field=field, value=value, limit=limit)
