"""OpenAI's responses, by the openai package; the answers are written here, but for one of a real server."""

from __future__ import annotations

import json
import random
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from shoal.shop.task import ask_colour

from .process import ServerProcess, wait_idle
from .scripted import URL, Scripted, hermes, http_client, kinds

CALL = 'I look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
TOOLS: Any = [{"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}]
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def api(service: Scripted) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="x", http_client=http_client(service), max_retries=0)


async def respond(answer: str, given: Any = "Warm?", **options: Any) -> tuple[Scripted, Response]:
    service = Scripted(hermes(), answer)
    async with api(service) as client:
        return service, await client.responses.create(model="m", input=given, **options)


async def events_of(answer: str, **options: Any) -> list[Any]:
    async with api(Scripted(hermes(), answer)) as client:
        stream = await client.responses.create(model="m", input="Warm?", stream=True, **options)
        return [event async for event in stream]


async def test_text_and_instructions():
    service, reply = await respond("Yes.", instructions="Be brief.", metadata={"a": "b"}, max_output_tokens=9)
    assert reply.output_text == "Yes."
    assert (reply.status, reply.object, reply.store) == ("completed", "response", False)  # type: ignore[attr-defined]
    assert (reply.metadata, reply.max_output_tokens) == ({"a": "b"}, 9)
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens > 0
    assert service.prompt().startswith("<|im_start|>system\nBe brief.<|im_end|>")
    assert service.asked[0].sampling.max_new_tokens == 9
    Response.model_validate(reply.model_dump())


async def test_what_was_cut_is_incomplete():
    _, reply = await respond("Yes, and~")
    assert reply.incomplete_details is not None
    assert (reply.status, reply.incomplete_details.reason) == ("incomplete", "max_output_tokens")


async def test_items_are_the_messages_of_a_chat():
    _, first = await respond(CALL, tools=TOOLS)
    assert [item.type for item in first.output] == ["message", "function_call"]
    given = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "Warm"}, {"type": "input_text", "text": "?"}]},
        *(item.model_dump(exclude_none=True) for item in first.output),
        {"type": "function_call_output", "call_id": first.output[1].call_id, "output": "30"},  # type: ignore[union-attr]
    ]
    service, _ = await respond("Yes.", given, tools=TOOLS)
    talk = service.prompt()
    assert "<|im_start|>user\nWarm?<|im_end|><|im_start|>assistant\n" + CALL + "<|im_end|>" in talk
    assert "<tool_response>\n30\n</tool_response>" in talk


@pytest.mark.parametrize("choice", ["auto", "none", {"type": "function", "name": "weather"}])
async def test_tools_and_the_choice_come_back(choice):
    _, reply = await respond("{}", tools=TOOLS, tool_choice=choice)
    assert [(tool.type, tool.name) for tool in reply.tools] == [("function", "weather")]  # type: ignore[union-attr]
    shown = reply.tool_choice if isinstance(reply.tool_choice, str) else reply.tool_choice.model_dump()
    assert shown == choice


async def test_a_strict_function_comes_back_as_one():
    strict = [{**TOOLS[0], "strict": True}, {**TOOLS[0], "name": "other"}]
    for choice in ("none", {"type": "function", "name": "weather"}):
        _, reply = await respond("{}", tools=strict, tool_choice=choice)
        assert [tool.strict for tool in reply.tools] == [True, False]  # type: ignore[union-attr]


async def test_what_would_come_back_is_checked_too():
    """Half a surrogate pair, or what is nested too deeply, fits no reply."""
    deep: Any = 1
    for _ in range(300):
        deep = {"a": deep}
    async with http_client(Scripted(hermes(), "")) as client:
        for extra, param in (
            ({"tools": [{**TOOLS[0], "description": "\ud800"}], "tool_choice": "none"}, "tools[0].description"),
            ({"tools": [{**TOOLS[0], "parameters": deep}], "tool_choice": "none"}, "tools"),
            ({"metadata": {"a": deep}}, "metadata"), ({"metadata": {"a": "\ud800"}}, "metadata.a"),
            ({"user": "\ud800"}, "user"), ({"instructions": "\ud800"}, "instructions"),
            (
                {"input": [{"role": "user", "content": [{"type": "input_text", "text": "\ud800"}]}]},
                "input[0].content[0].text",
            ),
        ):  # fmt: skip
            sent = json.dumps({"input": "Warm?", **extra})
            reply = await client.post("/v1/responses", content=sent, headers={"content-type": "application/json"})
            assert (reply.status_code, reply.json()["param"]) == (400, param), reply.text


async def test_events_come_in_order_and_add_up():
    events = await events_of("Yes, it is.")
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert kinds(events) == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
        "response.output_text.delta", "response.output_text.done", "response.content_part.done",
        "response.output_item.done", "response.completed",
    ]  # fmt: skip
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 1
    assert "".join(deltas) == "Yes, it is." == events[-1].response.output_text
    for event in events:
        EVENT.validate_python(event.model_dump())


async def test_calls_follow_the_message():
    events = await events_of(CALL, tools=TOOLS)
    assert kinds(events)[-5:] == [
        "response.output_item.added", "response.function_call_arguments.delta",
        "response.function_call_arguments.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip
    message, call = events[-1].response.output
    assert message.content[0].text == "I look."
    assert (call.name, call.arguments) == ("weather", '{"city": "Rome"}')
    assert [e.item.id for e in events if e.type == "response.output_item.done"] == [message.id, call.id]
    alone = await events_of(CALL.removeprefix("I look.\n"), tools=TOOLS)
    assert [item.type for item in alone[-1].response.output] == ["function_call"]


async def test_the_stream_helper_of_the_client_agrees():
    async with (
        api(Scripted(hermes(), CALL)) as client,
        client.responses.stream(model="m", input="Warm?", tools=TOOLS) as stream,
    ):
        reply = await stream.get_final_response()
    assert reply.output_text == "I look."


@pytest.mark.parametrize(
    ("options", "param", "words"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "nothing is kept here"),
        ({"store": True}, "store", "keeps no responses"),
        ({"conversation": "c"}, "conversation", "nothing is kept here"),
        ({"background": True}, "background", ""),
        ({"truncation": "auto"}, "truncation", "never cut"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema", "a JSON schema"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format", "grammar"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "calls no tools itself"),
        ({"tools": [{**TOOLS[0], "strict": True}]}, "tools[0].strict", "only where tool_choice asks for a call"),
        ({"input": []}, "input", ""),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input[0].type", '"reasoning"'),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "keeps no items"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "must be one of"),
        (
            {"instructions": "x", "input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{"}]},
            "input[0].arguments", "JSON of an object",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0].type", '"input_image"',
        ),
        ({"extra_body": {"n": 2}}, "n", "it is a field of"),
        ({"extra_body": {"max_tokens": 5}}, "max_tokens", "max_output_tokens says so here"),
    ],
)  # fmt: skip
async def test_what_can_not_be_had_is_refused_by_its_place(options, param, words):
    service = Scripted(hermes(), "")
    options = {"input": "Warm?", **options}
    async with api(service) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.create(model="m", **options)
    assert caught.value.param == param
    assert words in caught.value.message


async def test_a_real_server_answers_and_streams(server: ServerProcess, prices):
    question = ask_colour(random.Random(31), prices, json=True)
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="EMPTY", max_retries=0) as client:
        sent: Any = {"model": "shop", "instructions": prices.text, "input": question.text, "max_output_tokens": 32}
        reply = await client.responses.create(**sent)
        assert reply.output_text == question.answer
        stream = await client.responses.create(**sent, stream=True, extra_body={"steps": 32, "cache_mode": "none"})
        events = [event async for event in stream]
        assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == question.answer
        with pytest.raises(openai.BadRequestError, match="send max_output_tokens of at most") as caught:
            await client.responses.create(**{**sent, "max_output_tokens": 5000})
        assert caught.value.param == "max_output_tokens"


async def test_an_error_in_a_stream_is_its_last_event():
    events = await events_of("Yes, it^")
    assert (events[-1].type, events[-1].message) == ("error", "the worker failed")
    assert [event.sequence_number for event in events] == list(range(len(events)))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"input": "red", "max_output_tokens": 512}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "red"}], "max_tokens": 512}),
    ],
)
def test_a_client_that_leaves_ends_its_generation(server: ServerProcess, path, body):
    slow = {"steps": 512, "block_length": 8, "ignore_eos": True, "cache_mode": "none"}
    with server.client() as client:
        with client.stream("POST", path, json={**body, **slow, "stream": True}) as reply:
            assert reply.status_code == 200
            assert next(reply.iter_lines()).startswith("event: ")
        with pytest.raises(httpx.ReadTimeout):
            client.post(path, json={**body, **slow}, timeout=0.5)
        wait_idle(client, 30)
