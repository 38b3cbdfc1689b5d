"""From the messages of a body to the conversation that the chat template renders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InvalidRequestError
from ..text.conversation import Conversation, plain_messages
from .api_error import bad_request
from .batch import check_unicode
from .field_table import FIELDS, KWARGS, MESSAGE
from .fields import SERVED, check_fields
from .schemas import ChatMessage, ChatRendering, Routing, Templating
from .tool_use import ToolUse
from .wording import in_client_words, shown

MAX_DEPTH = 64
"""Most objects and lists around a value of messages, tools or the template's variables."""
_NAMED = 6
ROLES = ("system", "developer", "user", "assistant", "tool")
"""Of messages, as in OpenAI's API."""


def conversation(body: ChatRendering, messages: Sequence[ChatMessage], use: ToolUse) -> Conversation:
    """The conversation of a body with OpenAI's messages. Raises ApiError (400) in the client's words."""
    if body.continue_final_message and body.add_generation_prompt:
        words = "continue_final_message and add_generation_prompt are both true; an answer does one of them"
        raise bad_request("continue_final_message", words)
    if not messages:
        raise bad_request("messages", "messages is []; it must have at least one message")
    given = []
    for index, message in enumerate(messages):
        at, fields = f"messages[{index}]", message.fields()
        _check_role(message.role, f"{at}.role", body.chat_template)
        check_fields(MESSAGE, fields, f"{at}.")
        given.append({name: fields[name] for name in SERVED[MESSAGE] if name in fields})
    header = body.add_generation_prompt is not False
    return rendered(body, checked_messages(given), use, header, bool(body.continue_final_message))


def _check_role(role: str, at: str, template: str | None) -> None:
    """Raise ApiError (400) for a role that is neither OpenAI's nor named in the request's own template.

    Many templates render any role, and a model was trained on a few.
    """
    if role not in ROLES and (template is None or not any(f"{q}{role}{q}" in template for q in "'\"")):
        raise bad_request(at, f"{at} is {shown(role)}; it must be one of {', '.join(ROLES)}")


def checked_messages(messages: Sequence[dict[str, Any]], name: str = "messages") -> list[dict[str, Any]]:
    """Messages for the chat template. Raises ApiError (400), naming the part of the message that is wrong."""
    try:
        plain = plain_messages(messages, name)
    except InvalidRequestError as error:
        text, field = in_client_words(error, {})
        raise bad_request(field or name, text) from error
    check_data(name, plain)
    return plain


def needed_text(part: Mapping[str, Any], key: str, at: str) -> str:
    """The text that a part of a message, which stands at `at`, must have. Raises ApiError (400)."""
    value = part.get(key)
    if not isinstance(value, str):
        raise bad_request(f"{at}.{key}", f"{at}.{key} is {shown(value)}; it must be text")
    return value


def check_data(field: str, value: Any) -> None:
    """Raise ApiError (400) for data that a template can't be given: nested too deeply, or no valid Unicode."""
    left = [(field, value, 0)]
    while left:
        at, one, depth = left.pop()
        if depth > MAX_DEPTH:
            raise bad_request(field, f"{field} is nested more than {MAX_DEPTH} deep")
        if isinstance(one, str):
            check_unicode(at, one)
        elif isinstance(one, Mapping):
            for key, part in one.items():
                check_unicode(at, key)
                left.append((f"{at}.{key}" if depth < _NAMED else at, part, depth + 1))
        elif isinstance(one, list | tuple):
            left += [(f"{at}[{i}]" if depth < _NAMED else at, part, depth + 1) for i, part in enumerate(one)]


def rendered(
    body: Templating, messages: list[dict[str, Any]], use: ToolUse, header: bool = True, continue_final: bool = False
) -> Conversation:
    """The conversation of messages that are checked. Raises ApiError (400)."""
    if continue_final and (use.forced is not None or messages[-1].get("tool_calls")):
        message = "the last message is to be continued; it can neither have calls nor begin a call (tool_choice)"
        raise bad_request("messages", message)
    check_fields(KWARGS, body.chat_template_kwargs or {}, "chat_template_kwargs.")
    variables = {
        name: value
        for name, value in (body.chat_template_kwargs or {}).items()
        if value is not None and (name not in FIELDS or FIELDS[name].any_value)
    }
    check_data("chat_template_kwargs", variables)
    check_data("tools", use.given)
    check_unicode("chat_template", body.chat_template)
    return Conversation(
        messages=messages, tools=use.tools, template=body.chat_template, template_kwargs=variables, prefill=use.prefill,
        add_generation_prompt=header, continue_final_message=continue_final,
    )  # fmt: skip


def check_ordinary(body: Routing) -> None:
    """Raise ApiError (400) if contents of messages shall give special tokens."""
    if body.split_special_tokens is False:
        words = "split_special_tokens is false; contents of messages are always taken as ordinary text"
        raise bad_request("split_special_tokens", words)
