"""Which functions an answer may call: the `tools` and `tool_choice` of a body, checked."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..request.output import RequestOutput
from ..request.parameter_checks import MAX_STOP_STRINGS
from ..text.tool_calls import BEGINNING, CLOSE, Answer, beginning_of_call, read_answer
from .api_error import ApiError, bad_request
from .structure import take_structure
from .wording import shown

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
MAX_TOOLS = 128
_NOT_SHOWN = ("strict", "type", "input_schema", "cache_control", "eager_input_streaming")
"""Of a function: what the chat template does not get. All else it does, so that nothing is ignored."""


class Choice(NamedTuple):
    """`mode` is none, auto, required or named (then there is a `name`); `given` is what the client sent."""

    mode: str
    name: str | None
    given: Any


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The functions of one request, and how its answers are read.

    Attributes:
        tools: those that the chat template renders, in OpenAI's form; none where no call may come.
        names: of functions that may be called.
        forced: the function that each answer calls.
        required: each answer is a call of one of several functions.
        schema: JSON schema that an answer's text is held to; the client's name for it is `schema_name`.
        single: an answer ends with its first call.
        given: the functions, also those that no answer may call.
        strict: names of functions whose arguments the client wants held to their schemas.
        choice: what the client chose, in OpenAI's words for Responses.
    """

    tools: tuple[dict[str, Any], ...] = ()
    names: frozenset[str] = frozenset()
    forced: str | None = None
    required: bool = False
    schema: dict[str, Any] | None = None
    schema_name: str = ""
    single: bool = False
    given: tuple[dict[str, Any], ...] = ()
    strict: frozenset[str] = frozenset()
    choice: str | dict[str, str] = "auto"

    @property
    def prefill(self) -> str:
        """Text with which answers begin; it is part of the prompt."""
        if self.forced is not None:
            return beginning_of_call(self.forced)
        return BEGINNING if self.required else ""

    def constrain(self, values: dict[str, Any]) -> None:
        """Add the schema of calls to sampling fields. Raises ApiError (400) if they say what the text must be, too."""
        if self.schema is None:
            return
        _, other = take_structure(values)
        if other:
            words = f"an answer can't be a call (tool_choice is {shown(self.choice)}) and what {other} asks for"
            raise bad_request("tool_choice", f"tool_choice and {other} are given: {words}")
        values["json_schema"] = self.schema

    def with_stop(self, stop: str | Sequence[str] | None, name: str = "stop") -> str | list[str] | None:
        """The stop strings of a body, and the end of a call where only one is wanted. Raises ApiError (400)."""
        if not self.single or self.schema is not None:  # what is held to a schema ends by itself
            return stop if stop is None or isinstance(stop, str) else list(stop)
        stops = [stop] if isinstance(stop, str) else list(stop or ())
        if len(stops) >= MAX_STOP_STRINGS:
            words = f"{name} has {len(stops)} entries; beside a single tool call it must have at most"
            raise bad_request(name, f"{words} {MAX_STOP_STRINGS - 1}")
        return [*stops, CLOSE]

    def read(self, output: RequestOutput) -> Answer:
        """Text and calls of an answer so far."""
        if not self.names:
            return Answer(output.text, ())
        ended = CLOSE if self.single and self.forced is None and output.matched_stop == CLOSE else ""
        begun = BEGINNING if self.required else ""
        return read_answer(begun + output.text + ended, self.names, output.finished, self.forced)


def tool_use(
    functions: Sequence[Mapping[str, Any]], choice: Choice, parallel: bool | None, inner: str = ".function",
    parameters: str = "parameters",
) -> ToolUse:  # fmt: skip
    """From functions (`name`, `description`, `parameters`), the choice, and whether several calls may come.

    `inner` and `parameters`: the client's place of a function in an entry of `tools`, and of its schema in a function.
    Raises ApiError (400) for what is malformed or can't be promised.
    """
    if not functions:
        if choice.mode not in ("none", "auto"):
            raise bad_request("tool_choice", f"tool_choice is {shown(choice.given)}; there are no tools")
        return ToolUse(choice=choice.mode)
    if len(functions) > MAX_TOOLS:
        raise bad_request("tools", f"tools has {len(functions)} functions; at most {MAX_TOOLS} are taken")
    checked = [_checked(function, f"tools[{index}]{inner}") for index, function in enumerate(functions)]
    known = frozenset(str(tool["name"]) for tool in checked)
    if len(known) < len(checked):
        raise bad_request("tools", "tools has two functions of one name")
    given = tuple(checked)
    strict = frozenset(
        tool["name"] for tool, function in zip(checked, functions, strict=True) if function.get("strict")
    )
    if choice.mode == "none":
        return ToolUse(given=given, strict=strict, choice="none")
    required, forced = choice.mode == "required" and len(known) > 1, choice.name
    if choice.mode == "required" and not required:
        (forced,) = known
    if forced is not None and forced not in known:
        raise bad_request("tool_choice", f"tool_choice names {shown(forced)}, which is none of tools")
    schema, schema_name = None, ""
    if required:
        schema_name = "tools"
        schema = {"anyOf": [_call_schema(tool, tool["name"] in strict) for tool in checked]}
    elif forced is not None:
        index = next(i for i, function in enumerate(checked) if function["name"] == forced)
        if forced in strict:
            schema, schema_name = checked[index]["parameters"], f"tools[{index}]{inner}.{parameters}"
    elif strict:
        index = next(i for i, function in enumerate(checked) if function["name"] in strict)
        at = f"tools[{index}]{inner}.strict"
        message = f"{at} is true; arguments are held to a schema only where tool_choice asks for a call: send false"
        raise ApiError(400, message, param=at, code="unsupported_parameter")
    rendered = tuple({"type": "function", "function": tool} for tool in checked)
    chosen: str | dict[str, str] = choice.mode
    if choice.name is not None:
        chosen = {"type": "function", "name": choice.name}
    return ToolUse(
        rendered, known, forced, required, schema, schema_name, forced is not None or required or parallel is False,
        given, strict, chosen,
    )  # fmt: skip


def _call_schema(function: dict[str, Any], strict: bool) -> dict[str, Any]:
    """Of a call of one function, as its JSON stands between the tags."""
    arguments = function["parameters"] if strict else {"type": "object"}
    properties = {"name": {"const": function["name"]}, "arguments": arguments}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _checked(function: Mapping[str, Any], at: str) -> dict[str, Any]:
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        message = f"{at}.name is {shown(name)}; it must be 1 to 64 letters, digits, _ or -"
        raise bad_request(f"{at}.name", message)
    if not isinstance(function.get("strict"), bool | None):
        raise bad_request(f"{at}.strict", f"{at}.strict is {shown(function['strict'])}; it must be true or false")
    for key, kind, words in (("description", str, "text"), ("parameters", Mapping, "an object")):
        if not isinstance(function.get(key), kind | None):
            raise bad_request(f"{at}.{key}", f"{at}.{key} is {shown(function[key])}; it must be {words}")
    given = {key: value for key, value in function.items() if value is not None and key not in _NOT_SHOWN}
    return {"name": name, "description": "", "parameters": {"type": "object", "properties": {}}} | given


def chat_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[Mapping[str, Any]]:
    """The functions of OpenAI's chat tools. Raises ApiError (400) for tools of other kinds."""
    functions = []
    for index, tool in enumerate(tools or ()):
        if tool.get("type") != "function" or not isinstance(tool.get("function"), Mapping):
            at = f"tools[{index}]"
            if tool.get("type") != "function":
                raise bad_request(f"{at}.type", f'{at}.type is {shown(tool.get("type"))}; it must be "function"')
            raise bad_request(f"{at}.function", f"{at}.function is {shown(tool.get('function'))}; it must be an object")
        functions.append(tool["function"])
    return functions


def chat_choice(choice: Any) -> Choice:
    """The choice in OpenAI's words: `none`, `auto`, `required`, or `{"type": "function", "function": {"name": ...}}`
    (in Responses without the inner object). Raises ApiError (400) for another value.
    """
    if choice is None:
        return Choice("auto", None, None)
    if isinstance(choice, str) and choice in ("none", "auto", "required"):
        return Choice(choice, None, choice)
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        inner = choice.get("function", choice)
        if isinstance(inner, Mapping) and isinstance(inner.get("name"), str):
            return Choice("named", inner["name"], choice)
    words = 'it must be "none", "auto", "required" or an object that names a function'
    raise bad_request("tool_choice", f"tool_choice is {shown(choice)}; {words}")


def call_id(prefix: str = "call_") -> str:
    """A new id of a tool call."""
    return prefix + secrets.token_hex(12)
