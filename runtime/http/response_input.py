"""The `input` of /v1/responses as messages of a chat."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .api_error import ApiError, bad_request
from .conversation import needed_text
from .wording import shown

_PARTS = ("input_text", "output_text", "text")
_ROLES = ("user", "assistant", "system", "developer")


def response_messages(instructions: str | None, given: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages in the form of chats: the instructions first, calls joined to the assistant's message before them.

    Raises ApiError (400), naming the item, for an item that can't be had.
    """
    messages: list[dict[str, Any]] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    for index, item in enumerate(given):
        at = f"input[{index}]"
        match item.get("type", "message"):
            case "message":
                messages.append(_message(item, at))
            case "function_call":
                _add_call(messages, item, at)
            case "function_call_output":
                call = needed_text(item, "call_id", at)
                messages.append({"role": "tool", "tool_call_id": call, "content": _content(item, "output", at)})
            case "item_reference":
                raise bad_request(f"{at}.type", f'{at}.type is "item_reference"; this server keeps no items: send it')
            case kind:
                words = "it must be message, function_call or function_call_output"
                raise bad_request(f"{at}.type", f"{at}.type is {shown(kind)}; {words}")
    return messages


def _message(item: Mapping[str, Any], at: str) -> dict[str, Any]:
    role = item.get("role")
    if role not in _ROLES:
        raise bad_request(f"{at}.role", f"{at}.role is {shown(role)}; it must be one of {', '.join(_ROLES)}")
    return {"role": role, "content": _content(item, "content", at)}


def _content(item: Mapping[str, Any], key: str, at: str) -> str:
    content, at = item.get(key), f"{at}.{key}"
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad_request(at, f"{at} is {shown(content)}; it must be text or a list of parts")
    texts = []
    for index, part in enumerate(content):
        here = f"{at}[{index}]"
        kind = part.get("type") if isinstance(part, Mapping) else part
        if not isinstance(part, Mapping) or kind not in _PARTS:
            message = f"{here}.type is {shown(kind)}; the models here take text only: send input_text"
            raise bad_request(f"{here}.type", message)
        if not isinstance(part.get("text"), str):
            raise bad_request(f"{here}.text", f"{here}.text is {shown(part.get('text'))}; it must be text")
        texts.append(part["text"])
    return "".join(texts)


def _add_call(messages: list[dict[str, Any]], item: Mapping[str, Any], at: str) -> None:
    names = {key: needed_text(item, key, at) for key in ("call_id", "name", "arguments")}
    try:
        is_object = isinstance(json.loads(names["arguments"] or "{}"), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        message = f"{at}.arguments is {shown(names['arguments'])}; it must be JSON of an object"
        raise bad_request(f"{at}.arguments", message)
    function = {"name": names["name"], "arguments": names["arguments"]}
    call = {"id": names["call_id"], "type": "function", "function": function}
    if messages and messages[-1]["role"] == "assistant":
        messages[-1].setdefault("tool_calls", []).append(call)
    else:
        messages.append({"role": "assistant", "content": "", "tool_calls": [call]})


def response_functions(tools: list[dict[str, Any]] | None) -> list[Mapping[str, Any]]:
    """The functions among a body's tools. Raises ApiError (400) for tools that a server would call itself."""
    for index, tool in enumerate(tools or ()):
        if tool.get("type") != "function":
            at = f"tools[{index}].type"
            message = f'{at} is {shown(tool.get("type"))}; the server calls no tools itself: it must be "function"'
            raise ApiError(400, message, param=at, code="unsupported_parameter")
    return list(tools or ())


def take_format(text: Mapping[str, Any] | None) -> tuple[dict[str, Any], str]:
    """The sampling field that `text.format` stands for (none: free text), and its name. Raises ApiError (400)."""
    form = (text or {}).get("format")
    _check_text_config(text)
    if not isinstance(form, Mapping) or form.get("type") == "text":
        return {}, ""
    if form["type"] == "json_object":
        return {"json_schema": {"type": "object"}}, "text.format"
    schema = form.get("schema")
    if not isinstance(schema, Mapping | bool):
        message = f"text.format.schema is {shown(schema)}; it must be a JSON schema"
        raise ApiError(400, message, param="text.format.schema")
    return {"json_schema": schema}, "text.format.schema"


def _check_text_config(text: Mapping[str, Any] | None) -> None:
    for name, value in (text or {}).items():
        kind = value.get("type") if isinstance(value, Mapping) else value
        if value is None or (name == "verbosity" and value == "medium"):
            continue
        if name == "format" and isinstance(value, Mapping) and kind in ("text", "json_object", "json_schema"):
            continue
        shape = f"text.{name}.type is {shown(kind)}" if isinstance(value, Mapping) else f"text.{name} is {shown(value)}"
        message = f"{shape}, which is not supported here; leave it out or send null"
        raise ApiError(400, message, param=f"text.{name}", code="unsupported_parameter")
