"""Conversations as templates render them: every kind of message, tools, continued messages, variables."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.runtime.errors import InvalidRequestError
from shoal.runtime.text.conversation import Conversation, plain_messages
from shoal.runtime.text.tokenizer import Tokenizer

from . import test_control_tokens as base
from .templates import DEVELOPER, HERMES, QUIET, with_template

TEMPLATES = {"hermes": HERMES, "quiet": QUIET, "developer": DEVELOPER}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "Of a city", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "Warm?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": [{"type": "text", "text": "30 "}, {"type": "text", "text": "degrees"}]},
]


def tokenizer(template: str) -> Tokenizer:
    return with_template(TEMPLATES[template]) if template in TEMPLATES else base.tokenizer("bytes", template)


def text(template: str, messages: Any, **options: Any) -> str:
    made = tokenizer(template)
    ids = made.apply_chat_template(Conversation(messages=messages, **options))
    return made.decode(ids, skip_special_tokens=False)


# Messages


@pytest.mark.parametrize(
    ("message", "field", "words"),
    [
        ("hello", "m[1]", "m[1] is 'hello'; it must be an object with a role and a content"),
        ({"content": "a"}, "m[1].role", "m[1].role is missing; it must be text"),
        ({"role": 5, "content": "a"}, "m[1].role", "m[1].role is 5"),
        ({"role": "user"}, "m[1].content", "m[1].content is missing"),
        ({"role": "user", "content": None}, "m[1].content", "m[1].content is None"),
        ({"role": "assistant", "content": None}, "m[1].content", "m[1].content is None"),
        ({"role": "user", "content": ["a"]}, "m[1].content[0]", "m[1].content[0] is 'a'"),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]},
            "m[1].content[1].type", "m[1].content[1].type is 'image_url'",
        ),
        ({"role": "user", "content": [{"type": "text"}]}, "m[1].content[0].text", "is missing"),
        ({"role": "user", "content": "a", "tool_calls": [CALL]}, "m[1].tool_calls", "role is not"),
        ({"role": "assistant", "tool_calls": [5]}, "m[1].tool_calls[0]", "it must be a call"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "m[1].tool_calls[0].function", "a name"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            "m[1].tool_calls[0].function.arguments", "is '{'; it must be an object, or JSON of one",
        ),
    ],
)  # fmt: skip
def test_what_is_no_message_is_refused_by_its_place(message, field, words):
    with pytest.raises(InvalidRequestError) as caught:
        plain_messages([{"role": "user", "content": "a"}, message], "m")
    assert caught.value.field == field
    assert words in caught.value.message


def test_plain_messages_have_text_and_objects():
    plain = plain_messages([*TALK, {"role": "user", "content": "a", "name": None, "x": 1}])
    assert plain[1]["content"] == ""
    assert plain[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Rome"}
    assert plain[2] == {"role": "tool", "content": "30 degrees"}
    assert plain[3] == {"role": "user", "content": "a", "x": 1}
    assert plain_messages(plain) == plain


# What templates take


def test_a_template_with_tools_gets_tools_calls_and_results():
    shown = text("hermes", TALK, tools=[TOOL], template_kwargs={"note": "Well,"})
    assert '"name": "weather"' in shown.partition("<|im_end|>")[0]
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>' in shown
    assert "<tool_response>\n30 degrees\n</tool_response>" in shown
    assert shown.endswith("<|im_start|>assistant\nWell,\n")


@pytest.mark.parametrize(
    ("template", "messages", "tools", "field"),
    [
        ("quiet", TALK[:1], [TOOL], "tools"), ("llada", TALK[:1], [TOOL], "tools"),
        ("quiet", TALK[:2], [], "messages[1].tool_calls"), ("llada", TALK[:2], [], "messages[1].tool_calls"),
        ("quiet", [TALK[0], TALK[2]], [], "messages[1].role"),
    ],
)  # fmt: skip
def test_what_a_template_would_leave_out_is_refused(template, messages, tools, field):
    with pytest.raises(InvalidRequestError, match=r"chat_template in tokenizer_config\.json") as caught:
        text(template, messages, tools=tools)
    assert caught.value.field == field


def test_a_developer_is_the_system_where_the_template_has_no_such_role():
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    system = [{**messages[0], "role": "system"}, messages[1]]
    assert text("llada", messages) == text("llada", system)
    assert text("developer", messages) != text("developer", system)
    assert "<|im_start|>developer\nBe brief." in text("developer", messages)


@pytest.mark.parametrize("template", ["llada", "qwen", "chatml", "hermes"])
def test_an_answer_can_continue_the_last_message_or_have_no_header(template):
    messages = [{"role": "user", "content": "Count"}, {"role": "assistant", "content": "One, two, "}]
    whole, bare = text(template, messages[:1]), text(template, messages[:1], add_generation_prompt=False)
    assert whole.startswith(bare)
    assert len(whole) > len(bare)
    assert bare.count("assistant") < whole.count("assistant")
    assert text(template, messages, continue_final_message=True) == whole + "One, two, "


def test_a_last_message_that_is_not_rendered_as_it_is_can_not_be_continued():
    """One template renders it twice, the other cuts it."""
    for template in ("title", "slice"):
        with pytest.raises(InvalidRequestError, match="does not render the last message once") as caught:
            text(template, [{"role": "user", "content": "one" * 20}], continue_final_message=True)
        assert caught.value.field == "continue_final_message"


@pytest.mark.parametrize("name", ["tools", "bos_token", "messages", "tokenize", "conversation", "no name"])
def test_variables_can_not_take_the_place_of_what_a_template_is_given(name):
    with pytest.raises(InvalidRequestError) as caught:
        text("hermes", TALK[:1], template_kwargs={name: "x"})
    assert caught.value.field == "chat_template_kwargs"


# Data stays data


@pytest.mark.parametrize("template", ["hermes", "developer"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_no_content_argument_tool_or_variable_gives_a_control_token(template, data):
    made = tokenizer(template)
    word = base.spelled(base.SPECIAL)

    def talk(say: Any) -> Conversation:
        call = {"type": "function", "function": {"name": "f", "arguments": {"x": say(), "y": [say()]}}}
        messages: list[dict[str, Any]] = [
            {"role": "developer", "content": say()},
            {"role": "user", "content": [{"type": "text", "text": say()}, {"type": "text", "text": say()}]},
        ]
        tools: list[dict[str, Any]] = []
        if template == "hermes":
            messages += [
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "content": say()},
            ]
            function = {"name": "f", "description": say(), "parameters": {"type": "object", "title": say()}}
            tools = [{"type": "function", "function": function}]
        return Conversation(messages=messages, tools=tools, template_kwargs={"note": say()})

    drawn = talk(lambda: data.draw(word))
    expected = base.control(made, made.apply_chat_template(talk(lambda: "-")))
    assert base.control(made, made.apply_chat_template(drawn)) == expected
    last = [*drawn.messages[:2], {"role": "assistant", "content": data.draw(word)}]
    continued = replace(drawn, messages=last, continue_final_message=True)
    plain = replace(continued, messages=[*talk(lambda: "-").messages[:2], {"role": "assistant", "content": "-"}],
                    tools=drawn.tools and talk(lambda: "-").tools)  # fmt: skip
    assert base.control(made, made.apply_chat_template(continued)) == base.control(
        made, made.apply_chat_template(plain)
    )
