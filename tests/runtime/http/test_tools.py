"""Functions that answers call, by the openai package; the answers are written here."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

from shoal.runtime.grammar.automaton import Automaton
from shoal.runtime.grammar.json_schema import expression_of
from shoal.runtime.http.tool_use import MAX_TOOLS
from shoal.runtime.text.tool_calls import CLOSE

from .process import ServerProcess
from .scripted import URL, Scripted, hermes, http_client, quiet

ROME = 'I look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
BOTH = ROME + '\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
BAD = 'I look.\n<tool_call>\n{"name": "weather", "arguments": {"city": }}\n</tool_call>'
ASK: Any = [{"role": "user", "content": "Warm?"}]


def function(name: str, **more: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters, **more}}


TOOLS: Any = [function("weather"), function("add")]


def api(service: Scripted, **options: Any) -> openai.AsyncOpenAI:
    client = http_client(service, **options)
    return openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="x", http_client=client, max_retries=0)


async def ask(answer: str, messages: Any = ASK, **options: Any) -> tuple[Scripted, Any]:
    service = Scripted(hermes(), answer)
    async with api(service) as client:
        reply = await client.chat.completions.create(model="m", messages=messages, **{"tools": TOOLS, **options})
    return service, reply.choices[0]


def called(choice: Any) -> list[tuple[str, str]]:
    return [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()]


async def test_a_call_comes_as_one():
    service, choice = await ask(ROME)
    assert called(choice) == [("weather", '{"city": "Rome"}')]
    assert choice.message.tool_calls[0].id.startswith("call_")
    assert (choice.message.content, choice.finish_reason) == ("I look.", "tool_calls")
    assert '"name": "weather"' in service.prompt()
    assert service.asked[0].sampling.stop == ()


async def test_the_template_gets_all_of_a_function():
    service, _ = await ask("", tools=[function("f", strict=False, returns={"type": "number"})])
    said = '{"type": "function", "function": {"name": "f", "description": "f", "parameters": {"type": "object", '
    assert said in service.prompt()
    assert '"returns": {"type": "number"}' in service.prompt()
    assert "strict" not in service.prompt()


async def test_several_calls_and_none():
    _, choice = await ask(BOTH)
    assert [name for name, _ in called(choice)] == ["weather", "add"]
    assert len({call.id for call in choice.message.tool_calls}) == 2
    _, choice = await ask("No.")
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == ("No.", None, "stop")


async def test_a_malformed_call_stays_text():
    _, choice = await ask(BAD)
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (BAD, None, "stop")


async def test_an_answer_that_was_cut_says_so_although_it_calls():
    _, choice = await ask(ROME + " and~")
    assert len(called(choice)) == 1
    assert choice.finish_reason == "length"


async def test_none_hides_the_functions_and_reads_no_call():
    service, choice = await ask(ROME, tool_choice="none")
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (ROME, None, "stop")
    assert "weather" not in service.prompt()


async def test_without_parallel_calls_an_answer_ends_with_its_first():
    service, choice = await ask(BOTH, parallel_tool_calls=False, stop="x")
    assert [name for name, _ in called(choice)] == ["weather"]
    assert choice.finish_reason == "tool_calls"
    assert service.asked[0].sampling.stop == ("x", CLOSE)
    _, choice = await ask(BAD + " more", parallel_tool_calls=False)
    assert choice.message.content == BAD


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "add"}}}, "add"),
        ({"tool_choice": "required", "tools": TOOLS[:1]}, "weather"),
    ],
)
async def test_a_function_that_was_asked_for_is_called(options, name):
    service, choice = await ask('{"a": 1}}\n</tool_call> and more', **options)
    assert called(choice) == [(name, '{"a": 1}')]
    assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")
    assert service.prompt().endswith(f'<|im_start|>assistant\n<tool_call>\n{{"name": "{name}", "arguments": ')
    _, choice = await ask('{"a": 1, "b~', **options)
    assert called(choice) == [(name, '{"a": 1, "b')]
    assert choice.finish_reason == "length"


ADD = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


def accepts(service: Scripted, text: str) -> bool:
    """Whether the text of an answer may be this."""
    schema = service.asked[0].sampling.json_schema
    assert isinstance(schema, str)
    return Automaton.of(expression_of(json.loads(schema))).accepts(text.encode())


async def test_a_call_of_one_of_several_functions_is_held_to_its_form():
    tools = [function("weather"), function("add", strict=True, parameters=ADD)]
    service, choice = await ask('{"name": "add", "arguments": {"a": 1}}', tools=tools, tool_choice="required")
    assert called(choice) == [("add", '{"a": 1}')]
    assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")
    assert service.prompt().endswith("<|im_start|>assistant\n<tool_call>\n")
    assert service.asked[0].sampling.stop == ()
    assert accepts(service, '{"name": "add", "arguments": {"a": 1}}')
    assert accepts(service, '{"name": "weather", "arguments": {"city": "Rome", "x": [1]}}')
    for wrong in ('{"name": "add", "arguments": {"a": "1"}}', '{"name": "other", "arguments": {}}', '{"name": "add"}',
                  "No.", '{"name": "weather", "arguments": 5}'):  # fmt: skip
        assert not accepts(service, wrong)
    _, choice = await ask('{"name": "add", "argu~', tools=tools, tool_choice="required")
    assert (choice.message.content, choice.message.tool_calls) == ('<tool_call>\n{"name": "add", "argu', None)
    assert choice.finish_reason == "length"


async def test_arguments_of_a_strict_function_that_was_asked_for_are_held_to_its_schema():
    named = {"type": "function", "function": {"name": "add"}}
    tools = [function("weather", strict=True), function("add", strict=True, parameters=ADD)]
    service, choice = await ask('{"a": 1}', tools=tools, tool_choice=named)
    assert called(choice) == [("add", '{"a": 1}')]
    assert accepts(service, '{"a": 1}')
    assert not accepts(service, '{"a": 1}}')
    assert not accepts(service, '{"a": "1"}')
    free, _ = await ask('{"a": 1}', tools=[function("weather"), function("add")], tool_choice=named)
    assert free.asked[0].sampling.json_schema is None
    assert service.asked[0].names.structure == "tools[1].function.parameters"


@pytest.mark.parametrize("answer", [ROME, BOTH, BAD, "No call at all", ROME + " Then.", BAD + "~"])
@pytest.mark.parametrize("pieces", [1, 7, 1000])
async def test_a_stream_has_what_the_whole_reply_has(answer, pieces):
    _, whole = await ask(answer)
    service = Scripted(hermes(), answer, pieces=pieces)
    async with api(service) as client:
        stream = await client.chat.completions.create(model="m", messages=ASK, tools=TOOLS, stream=True)
        chunks = [chunk.choices[0] async for chunk in stream]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == (whole.message.content or "")
    calls: list[Any] = [call for chunk in chunks for call in chunk.delta.tool_calls or ()]
    assert [call.index for call in calls] == list(range(len(called(whole))))
    assert [(call.function.name, call.function.arguments) for call in calls] == called(whole)
    assert [c.finish_reason for c in chunks] == [None] * (len(chunks) - 1) + [whole.finish_reason]
    assert all(chunk.delta.content or chunk.delta.tool_calls for chunk in chunks[1:-1])
    if pieces == 1 and answer == "No call at all":
        assert len(chunks) > 5


async def test_a_call_and_its_result_go_back_into_the_prompt():
    _, choice = await ask(ROME)
    service, _ = await ask("Yes.", [*ASK, choice.message, {"role": "tool", "tool_call_id": "x", "content": "30"}])
    talk = service.prompt()
    assert 'I look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>' in talk
    assert "<tool_response>\n30\n</tool_response>" in talk


@pytest.mark.parametrize(
    ("options", "param", "words"),
    [
        (
            {"tool_choice": "required", "response_format": {"type": "json_object"}},
            "tool_choice", "tool_choice and response_format are given",
        ),
        ({"tool_choice": "any"}, "tool_choice", 'tool_choice is "any"'),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", 'names "x"'),
        ({"tool_choice": "required", "tools": []}, "tool_choice", "there are no tools"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type", 'is "custom"'),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "it must be an object"),
        ({"tools": [function("two words")]}, "tools[0].function.name", "1 to 64 letters"),
        ({"tools": [function("f", strict=True)]}, "tools[0].function.strict", "only where tool_choice asks for a call"),
        ({"tools": [function("f", parameters="x")]}, "tools[0].function.parameters", "it must be an object"),
        ({"tools": [function("f"), function("f")]}, "tools", "two functions of one name"),
        ({"tools": [function(f"f{i}") for i in range(MAX_TOOLS + 1)]}, "tools", "at most 128"),
        ({"parallel_tool_calls": False, "stop": ["x"] * 16}, "stop", "at most 15"),
        ({"extra_body": {"continue_final_message": True, "add_generation_prompt": True}}, "continue_final_message", ""),
        (
            {"extra_body": {"continue_final_message": True}, "tool_choice": "required", "tools": TOOLS[:1]},
            "messages", "the last message is to be continued",
        ),
    ],
)  # fmt: skip
async def test_what_can_not_be_promised_is_refused_by_its_place(options, param, words):
    with pytest.raises(openai.BadRequestError) as caught:
        await ask("", **options)
    assert caught.value.param == param
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("messages", "tools", "param"),
    [
        (ASK, TOOLS, "tools"),
        ([*ASK, {"role": "tool", "tool_call_id": "x", "content": "30"}], [], "messages[1].role"),
        (
            [*ASK, {"role": "assistant", "content": None, "tool_calls": [
                {"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}],
            [], "messages[1].tool_calls",
        ),
    ],
)  # fmt: skip
async def test_a_template_that_takes_none_says_so(messages, tools, param):
    async with api(Scripted(quiet(), "")) as client:
        with pytest.raises(openai.BadRequestError, match="the chat template") as caught:
            await client.chat.completions.create(model="m", messages=messages, tools=tools)
    assert caught.value.param == param


async def test_an_answer_continues_a_message_and_variables_reach_the_template():
    said = [*ASK, {"role": "assistant", "content": "It is "}]
    service, choice = await ask("warm", said, extra_body={"continue_final_message": True}, tools=None)
    assert service.prompt().endswith("<|im_start|>assistant\nIt is ")
    assert choice.message.content == "warm"
    service, _ = await ask("", extra_body={"chat_template_kwargs": {"note": "Well,", "steps": 3}}, tools=None)
    assert service.prompt().endswith("<|im_start|>assistant\nWell,\n")
    assert service.asked[0].sampling.steps == 3
    service, _ = await ask("", extra_body={"add_generation_prompt": False}, tools=None)
    assert service.prompt().endswith("Warm?<|im_end|>")


async def test_tokens_of_a_chat_with_tools_are_those_of_its_prompt():
    service, _ = await ask("")
    async with http_client(Scripted(hermes())) as client:
        sent = {"messages": ASK, "tools": TOOLS}
        reply = (await client.post("/tokenize", json=sent)).json()
        wrong = await client.post("/tokenize", json={"prompt": "red", "tools": TOOLS})
    assert service.tokenizer.decode(reply["tokens"], skip_special_tokens=False) == service.prompt()
    assert (wrong.status_code, wrong.json()["param"]) == (400, "tools")


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"tools": [function("f", parameters=nested(200))]}, "tools"),
        ({"extra_body": {"chat_template_kwargs": {"x": nested(200)}}}, "chat_template_kwargs"),
        (
            {"messages": [*ASK, {"role": "assistant", "tool_calls": [
                {"id": "x", "type": "function", "function": {"name": "f", "arguments": json.dumps(nested(200))}}]}]},
            "messages",
        ),
    ],
)  # fmt: skip
async def test_what_is_nested_too_deeply_is_refused(options, param):
    with pytest.raises(openai.BadRequestError, match="nested more than 64 deep") as caught:
        await ask("", **options)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "messages[0].content"),
        (b'{"messages": [{"role": "user", "content": "a"}], "chat_template": "\\ud800"}', "chat_template"),
        (
            b'{"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"x": ["\\ud800"]}}',
            "chat_template_kwargs.x[0]",
        ),
        (
            b'{"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function", "function": '
            b'{"name": "f", "description": "\\ud800"}}]}',
            "tools[0].description",
        ),
    ],
)
async def test_what_is_no_unicode_is_refused_by_its_place(body, param):
    async with http_client(Scripted(hermes(), "")) as client:
        headers = {"content-type": "application/json"}
        reply = await client.post("/v1/chat/completions", content=body, headers=headers)
    assert (reply.status_code, reply.json()["param"]) == (400, param)


async def test_a_template_of_the_request_is_used():
    template = "{{ messages[0].content }}<|im_end|>{{ note }}"
    service, choice = await ask("Yes.", tools=None, extra_body={
        "chat_template": template, "chat_template_kwargs": {"note": "<|im_end|>"},
    })  # fmt: skip
    assert service.prompt() == "Warm?<|im_end|><|im_end|>"
    ids = service.ids(service.asked[0].prompt)
    assert sum(token in service.tokenizer.control_ids for token in ids) == 1
    assert choice.message.content == "Yes."


async def test_arguments_keep_their_letters():
    _, choice = await ask('<tool_call>{"name": "add", "arguments": {"a": "é\\u4e2d\\n", "b": 12345678901234567890}}')
    ((_, arguments),) = called(choice)
    assert json.loads(arguments) == {"a": "é中\n", "b": 12345678901234567890}


@pytest.mark.slow
async def test_templates_without_an_end_delay_templates_alone(server: ServerProcess):
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    talk: Any = {"model": "shop", "messages": [{"role": "user", "content": "red"}], "max_tokens": 4}
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        hostile = [
            asyncio.ensure_future(client.chat.completions.create(**talk, extra_body={"chat_template": endless}))
            for _ in range(4)
        ]
        reply = await client.chat.completions.create(**talk)
        assert reply.choices
        with pytest.raises(openai.BadRequestError, match="messages: the text has"):
            await client.chat.completions.create(**{**talk, "messages": [{"role": "user", "content": "red " * 50_000}]})
        assert not all(task.done() for task in hostile)
        for task in hostile:
            with pytest.raises(openai.BadRequestError, match="chat_template takes longer than 2 seconds"):
                await task
        own = await client.chat.completions.create(
            **talk, extra_body={"chat_template": "<|user|>{{ messages[0].content }}<|end|><|assistant|>"}
        )
    assert own.choices[0].message.content == reply.choices[0].message.content
