"""Anthropic's messages, by the anthropic package; the answers are written here, but for one of a real server."""

from __future__ import annotations

import random
from typing import Any

import pytest

from shoal.shop.task import ask_colour

from .process import ServerProcess
from .scripted import URL, Scripted, hermes, http_client, kinds, quiet

anthropic = pytest.importorskip("anthropic")
CALL = 'I look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
TOOLS: Any = [{"name": "weather", "description": "Of a city", "input_schema": {"type": "object"}}]
ASK: Any = [{"role": "user", "content": "Warm?"}]


def api(service: Scripted, key: str = "x", **options: Any) -> Any:
    client = http_client(service, **options)
    return anthropic.AsyncAnthropic(base_url=URL, api_key=key, http_client=client, max_retries=0)


async def ask(answer: str, messages: Any = ASK, **options: Any) -> tuple[Scripted, Any]:
    service = Scripted(hermes(), answer)
    async with api(service) as client:
        sent = {"model": "m", "max_tokens": 20, "messages": messages, **options}
        return service, await client.messages.create(**sent)


async def stream(answer: str, **options: Any) -> list[Any]:
    async with api(Scripted(hermes(), answer)) as client:
        events = await client.messages.create(model="m", max_tokens=20, messages=ASK, stream=True, **options)
        return [event async for event in events]


async def test_text_and_system():
    service, reply = await ask("Yes.", system=[{"type": "text", "text": "Be brief.", "cache_control": None}])
    assert [block.text for block in reply.content] == ["Yes."]
    assert (reply.type, reply.role, reply.stop_reason, reply.stop_sequence) == (
        "message", "assistant", "end_turn", None,
    )  # fmt: skip
    usage = reply.usage
    count = usage.input_tokens + usage.cache_read_input_tokens
    assert count == len(service.ids(service.asked[0].prompt))
    assert usage.output_tokens == 4
    assert service.prompt().startswith("<|im_start|>system\nBe brief.<|im_end|>")
    assert service.asked[0].sampling.max_new_tokens == 20
    assert reply._request_id == service.asked[0].rid


@pytest.mark.parametrize(
    ("answer", "options", "reason", "sequence", "texts"),
    [
        ("Yes, and~", {}, "max_tokens", None, ["Yes, and"]),
        ("Yes. No.", {"stop_sequences": ["No", "Maybe"]}, "stop_sequence", "No", ["Yes. "]),
        ("", {}, "end_turn", None, []),
        (
            "<tool_call>what</tool_call> more",
            {"tools": TOOLS, "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
            "end_turn", None, ["<tool_call>what</tool_call>"],
        ),
        (CALL, {"tools": TOOLS, "tool_choice": {"type": "none"}}, "end_turn", None, [CALL]),
    ],
)  # fmt: skip
async def test_how_a_message_ends(answer, options, reason, sequence, texts):
    _, reply = await ask(answer, **options)
    assert (reply.stop_reason, reply.stop_sequence) == (reason, sequence)
    assert [block.text for block in reply.content] == texts
    events = await stream(answer, **options)
    assert (events[-2].delta.stop_reason, events[-2].delta.stop_sequence) == (reason, sequence)
    deltas = [event.delta.text for event in events if event.type == "content_block_delta"]
    assert "".join(deltas) == "".join(texts)


async def test_calls_and_results_go_to_and_fro():
    service, reply = await ask(CALL, tools=TOOLS)
    text, call = reply.content
    assert (text.text, call.name, call.input, reply.stop_reason) == ("I look.", "weather", {"city": "Rome"}, "tool_use")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "30"}]}
    blocks = [block.model_dump(exclude_none=True) for block in reply.content]
    more = [*ASK, {"role": "assistant", "content": blocks}, {"role": "user", "content": [result]}]
    service, _ = await ask("Yes.", more, tools=TOOLS)
    assert f"<|im_start|>assistant\n{CALL}<|im_end|>" in service.prompt()
    assert "<tool_response>\n30\n</tool_response>" in service.prompt()


async def test_a_tool_that_was_asked_for_is_used():
    service, reply = await ask('{"a": 1}}', tools=TOOLS, tool_choice={"type": "any"})
    assert [(block.type, block.input) for block in reply.content] == [("tool_use", {"a": 1})]
    assert service.prompt().endswith('<tool_call>\n{"name": "weather", "arguments": ')
    # What is no object can't be the input of a block.
    events = await stream('{"a": 1~', tools=TOOLS, tool_choice={"type": "tool", "name": "weather"})
    assert [event.delta.text for event in events if event.type == "content_block_delta"] == ['{"a": 1']
    assert events[-2].delta.stop_reason == "max_tokens"


async def test_any_of_several_tools_is_used():
    tools = [*TOOLS, {**TOOLS[0], "name": "add", "strict": True}]
    service, reply = await ask('{"name": "add", "arguments": {}}', tools=tools, tool_choice={"type": "any"})
    assert [(block.type, block.name, block.input) for block in reply.content] == [("tool_use", "add", {})]
    assert service.asked[0].sampling.json_schema is not None


@pytest.mark.parametrize("value", ['"\\ud800"', "123456789012345678901234567890"])
async def test_a_call_whose_input_no_reply_can_hold_comes_as_text(value):
    """Half a surrogate pair, and a number beyond 64 bits."""
    answer = f'<tool_call>{{"name": "weather", "arguments": {{"city": {value}}}}}</tool_call>'
    _, reply = await ask(answer, tools=TOOLS)
    assert [(block.type, block.text) for block in reply.content] == [("text", f'{{"city": {value}}}')]
    assert reply.stop_reason == "end_turn"
    events = await stream(answer, tools=TOOLS)
    assert [e.delta.text for e in events if e.type == "content_block_delta"] == [f'{{"city": {value}}}']


async def test_events_come_in_order():
    events = await stream(CALL, tools=TOOLS)
    assert kinds(events) == [
        "message_start", "content_block_start", "content_block_delta", "content_block_stop", "content_block_start",
        "content_block_delta", "content_block_stop", "message_delta", "message_stop",
    ]  # fmt: skip
    assert [event.index for event in events if event.type == "content_block_start"] == [0, 1]
    assert events[0].message.usage.input_tokens > 0
    assert events[-2].usage.output_tokens == len(CALL)
    plain = await stream("Yes, it is.")
    assert len([event for event in plain if event.type == "content_block_delta"]) > 1
    async with (
        api(Scripted(hermes(), CALL)) as client,
        client.messages.stream(model="m", max_tokens=20, messages=ASK, tools=TOOLS) as helper,
    ):
        text, call = (await helper.get_final_message()).content
    assert (text.text, call.input) == ("I look.", {"city": "Rome"})


async def test_an_error_in_a_stream_is_its_last_event():
    with pytest.raises(anthropic.APIStatusError, match="the worker failed") as caught:
        await stream("Yes, it^")
    assert caught.value.body["error"]["type"] == "api_error"


async def test_an_answer_continues_the_assistants_last_message():
    service, reply = await ask("warm.", [*ASK, {"role": "assistant", "content": "It is "}])
    assert service.prompt().endswith("<|im_start|>assistant\nIt is ")
    assert reply.content[0].text == "warm."


async def test_tokens_are_counted():
    service, _ = await ask("", system="Be brief.", tools=TOOLS)
    async with api(Scripted(hermes())) as client:
        counted = await client.messages.count_tokens(model="m", messages=ASK, system="Be brief.", tools=TOOLS)
    assert counted.input_tokens == len(service.ids(service.asked[0].prompt))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"messages": []}, "messages is []"),
        ({"messages": [{"role": "system", "content": "x"}]}, 'messages[0].role is "system"'),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, 'content[0].type is "image"'),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text is null"),
        ({"system": [{"type": "document"}]}, 'system[0].type is "document"'),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "do not reason"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "calls no tools itself"),
        ({"tools": [{"name": "x"}]}, "tools[0].input_schema is null"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool"}}, "tool with a name"),
        ({"tool_choice": {"type": "any"}}, "there are no tools"),
        ({"stop_sequences": [""]}, "stop_sequences is"),
        ({"stop_sequences": ["x"] * 17}, "stop_sequences has 17 entries"),
        ({"stop_sequences": ["x"], "extra_body": {"regex": "y"}}, "stop_sequences is"),
        ({"extra_body": {"stop": ["x"]}}, "stop_sequences says so here"),
        ({"extra_body": {"max_tokens": None}}, "max_tokens"),
    ],
)
async def test_what_can_not_be_had_is_refused_in_anthropics_form(options, words):
    with pytest.raises(anthropic.BadRequestError) as caught:
        await ask("", **options)
    assert caught.value.body["type"] == "error"
    assert caught.value.body["error"]["type"] == "invalid_request_error"
    assert words in caught.value.body["error"]["message"]


async def test_a_template_without_tools_says_so():
    async with api(Scripted(quiet(), "")) as client:
        with pytest.raises(anthropic.BadRequestError, match="the chat template"):
            await client.messages.create(model="m", max_tokens=9, messages=ASK, tools=TOOLS)


async def test_the_key_comes_in_anthropics_header():
    service = Scripted(hermes(), "Yes.")
    async with api(service, "secret", api_key="secret") as client:
        assert (await client.messages.create(model="m", max_tokens=9, messages=ASK)).content[0].text == "Yes."
    for key, options in (("wrong", {"api_key": "secret"}), ("é" * 3, {"api_key": "secret"})):
        async with http_client(service, **options) as client:
            headers: Any = {"x-api-key": key.encode(), "content-type": "application/json"}
            reply = await client.post("/v1/messages", content=b"{}", headers=headers)
            assert (reply.status_code, reply.json()["error"]["type"]) == (401, "authentication_error")
            elsewhere = await client.get("/v1/models", headers={"x-api-key": "secret"})
            assert elsewhere.status_code == 401


async def test_other_failures_have_its_form_too(monkeypatch, caplog):
    monkeypatch.setattr(Scripted, "tokenize", None)
    async with http_client(Scripted(hermes())) as client:
        sent = {"messages": ASK}
        broken = await client.post("/v1/messages/count_tokens", json=sent)
    assert "failed" in caplog.text
    async with http_client(Scripted(hermes()), max_body_bytes=100) as client:
        headers = {"content-type": "application/json"}
        large = await client.post("/v1/messages", content=b" " * 200, headers=headers)
        unread = await client.post("/v1/messages", content=b"{", headers=headers)
        nowhere = await client.post("/v1/messages/none", content=b"{}", headers=headers)
    for reply, status, kind in (
        (broken, 500, "api_error"), (large, 413, "request_too_large"), (unread, 400, "invalid_request_error"),
        (nowhere, 404, "not_found_error"),
    ):  # fmt: skip
        assert (reply.status_code, reply.json()["error"]["type"]) == (status, kind)


async def test_a_real_server_answers_streams_and_counts(server: ServerProcess, prices):
    question = ask_colour(random.Random(32), prices, json=True)
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key="EMPTY", max_retries=0) as client:
        talk: Any = {"model": "shop", "system": prices.text, "messages": [{"role": "user", "content": question.text}]}
        reply = await client.messages.create(**talk, max_tokens=32)
        assert reply.content[0].text == question.answer
        assert reply.stop_reason == "end_turn"
        counted = await client.messages.count_tokens(**talk)
        assert counted.input_tokens == reply.usage.input_tokens + reply.usage.cache_read_input_tokens
        events = await client.messages.create(
            **talk, max_tokens=32, stream=True, extra_body={"steps": 32, "cache_mode": "none"}
        )
        text = "".join([e.delta.text async for e in events if e.type == "content_block_delta"])
        assert text == question.answer
        with pytest.raises(anthropic.BadRequestError, match="over the model's maximum"):
            await client.messages.create(**talk, max_tokens=5000)
