"""A body of Anthropic's /v1/messages as a chat: messages, functions and the choice among them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .api_error import ApiError, bad_request
from .conversation import needed_text
from .schemas import CountBody
from .tool_use import Choice, ToolUse, tool_use
from .wording import shown

_MODES = {"auto": "auto", "any": "required", "none": "none", "tool": "named"}


def message_chat(body: CountBody) -> list[dict[str, Any]]:
    """Messages in the form of chats. Raises ApiError (400), naming the block, for one that can't be had."""
    messages: list[dict[str, Any]] = []
    if body.system:
        messages.append({"role": "system", "content": _text(body.system, "system")})
    for index, message in enumerate(body.messages):
        at = f"messages[{index}]"
        if message.role not in ("user", "assistant"):
            raise bad_request(f"{at}.role", f"{at}.role is {shown(message.role)}; it must be user or assistant")
        if isinstance(message.content, str):
            messages.append({"role": message.role, "content": message.content})
        elif message.role == "user":
            messages += _of_user(message.content, f"{at}.content")
        else:
            messages.append(_of_assistant(message.content, f"{at}.content"))
    return messages


def continues(body: CountBody) -> bool:
    """Whether the answer continues the last message, which is the assistant's."""
    return body.messages[-1].role == "assistant"


def message_tools(body: CountBody) -> ToolUse:
    """The functions of a body. Raises ApiError (400) for tools of other kinds and for a choice that can't be kept."""
    functions = []
    for index, tool in enumerate(body.tools or ()):
        at = f"tools[{index}]"
        if tool.get("type") not in (None, "custom"):
            message = f'{at}.type is {shown(tool["type"])}; the server calls no tools itself: it must be "custom"'
            raise ApiError(400, message, param=f"{at}.type", code="unsupported_parameter")
        schema = tool.get("input_schema")
        if not isinstance(schema, Mapping):
            raise bad_request(f"{at}.input_schema", f"{at}.input_schema is {shown(schema)}; it must be an object")
        functions.append({**tool, "parameters": schema})
    given = body.tool_choice or {"type": "auto"}
    mode = _MODES.get(str(given.get("type")))
    name = given.get("name")
    if mode is None or (mode == "named" and not isinstance(name, str)):
        message = f"tool_choice is {shown(given)}; its type must be auto, any, none, or tool with a name"
        raise bad_request("tool_choice", message)
    choice = Choice(mode, name if mode == "named" else None, given)
    parallel = False if given.get("disable_parallel_tool_use") else None
    return tool_use(functions, choice, parallel, inner="", parameters="input_schema")


def _text(content: Any, at: str) -> str:
    """The text of a content that may only have text blocks."""
    if isinstance(content, str):
        return content
    return "".join(_block_text(block, f"{at}[{index}]") for index, block in enumerate(content))


def _block_text(block: Mapping[str, Any], at: str) -> str:
    if block.get("type") != "text":
        message = f"{at}.type is {shown(block.get('type'))}; the models here take text only"
        raise ApiError(400, message, param=f"{at}.type", code="unsupported_parameter")
    return needed_text(block, "text", at)


def _of_user(blocks: list[dict[str, Any]], at: str) -> list[dict[str, Any]]:
    """A user's blocks as messages: results of calls, and the texts between them."""
    messages: list[dict[str, Any]] = []
    for index, block in enumerate(blocks):
        here = f"{at}[{index}]"
        if block.get("type") == "tool_result":
            content = block.get("content")
            if content is not None and not isinstance(content, str | list):
                raise bad_request(f"{here}.content", f"{here}.content is {shown(content)}; it must be text or blocks")
            text = _text(content or "", f"{here}.content")
            messages.append({"role": "tool", "tool_call_id": needed_text(block, "tool_use_id", here), "content": text})
            continue
        text = _block_text(block, here)
        if messages and messages[-1]["role"] == "user":
            messages[-1]["content"] += text
        else:
            messages.append({"role": "user", "content": text})
    return messages or [{"role": "user", "content": ""}]


def _of_assistant(blocks: list[dict[str, Any]], at: str) -> dict[str, Any]:
    text, calls = "", []
    for index, block in enumerate(blocks):
        here = f"{at}[{index}]"
        if block.get("type") == "tool_use":
            given = block.get("input")
            if not isinstance(given, Mapping):
                raise bad_request(f"{here}.input", f"{here}.input is {shown(given)}; it must be an object")
            function = {"name": needed_text(block, "name", here), "arguments": given}
            calls.append({"id": needed_text(block, "id", here), "type": "function", "function": function})
        else:
            text += _block_text(block, here)
    return {"role": "assistant", "content": text, **({"tool_calls": calls} if calls else {})}
