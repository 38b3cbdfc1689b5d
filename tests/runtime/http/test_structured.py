"""Structured output over HTTP: response_format, the fields of SGLang and vLLM, and errors in the client's words."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["red apple", "blue lamp"]}, "cost": {"type": "integer", "minimum": 10}},
    "required": ["name", "cost"],
    "additionalProperties": False,
}
MESSAGES: Any = [{"role": "user", "content": "Which things are red?"}]


@pytest.fixture(scope="module")
def api(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="EMPTY", max_retries=0) as api:
        yield api


def described(schema: Any) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "thing", "strict": True, "schema": schema}}


def fits(text: str) -> bool:
    value = json.loads(text)
    return set(value) == {"name", "cost"} and value["name"] in ("red apple", "blue lamp") and value["cost"] >= 10


def test_chats_with_a_schema_whole_streamed_and_with_several_answers(api):
    options: dict[str, Any] = {"model": "shop", "messages": MESSAGES, "response_format": described(SCHEMA)}
    reply = api.chat.completions.create(**options, max_tokens=40, n=2, temperature=1.5, seed=3)
    assert len(reply.choices) == 2
    assert all(fits(choice.message.content) and choice.finish_reason == "stop" for choice in reply.choices)
    chunks = list(api.chat.completions.create(**options, max_tokens=40, stream=True))
    assert fits("".join(chunk.choices[0].delta.content or "" for chunk in chunks))
    anything = api.chat.completions.create(
        model="shop", messages=MESSAGES, max_tokens=40, temperature=1.5, seed=1, response_format={"type": "json_object"}
    )
    assert isinstance(json.loads(anything.choices[0].message.content), dict)
    plain = api.chat.completions.create(model="shop", messages=MESSAGES, max_tokens=8, response_format={"type": "text"})
    assert plain.choices[0].message.content


class Thing(BaseModel):
    """A schema as the openai client makes one."""

    name: Literal["red apple", "blue lamp"]
    cost: int
    colour: Literal["red", "blue"] | None


def test_the_client_s_own_parsing(api):
    parse = api.chat.completions.parse
    reply = parse(model="shop", messages=MESSAGES, max_tokens=60, response_format=Thing, temperature=1.2, seed=4)
    thing = reply.choices[0].message.parsed
    assert isinstance(thing, Thing)
    with pytest.raises(openai.BadRequestError, match="at least"):
        parse(model="shop", messages=MESSAGES, max_tokens=10, response_format=Thing)


def test_responses_take_a_format(client, api):
    form: Any = {"type": "json_schema", "name": "thing", "schema": SCHEMA, "strict": True}
    reply = api.responses.create(
        model="shop", input="Which things are red?", max_output_tokens=40, text={"format": form}
    )
    assert fits(reply.output_text)
    assert reply.text.format.name == "thing"
    bad = {"input": "red", "text": {"format": {**form, "schema": {"contains": {}}}}}
    assert client.post("/v1/responses", json=bad).json()["error"]["param"] == "text.format.schema.contains"


def test_the_native_route_and_the_fields_of_other_servers(client, api):
    def text(**sampling: Any) -> str:
        body = {"text": "red", "sampling_params": {"max_new_tokens": 40, **sampling}}
        reply = client.post("/generate", json=body)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["text"])

    assert fits(text(json_schema=json.dumps(SCHEMA)))
    assert re.fullmatch("[0-9]{3,5}", text(regex="[0-9]{3,5}", temperature=1, sampling_seed=2))
    assert text(choice=["red apple", "blue"]) in ("red apple", "blue")
    for extra in ({"guided_choice": ["red"]}, {"structured_outputs": {"choice": ["red"]}}, {"guided_regex": "red"},
                  {"structured_outputs": {"regex": "red"}}, {"choice": ["red"]}):  # fmt: skip
        reply = api.completions.create(model="shop", prompt="blue", max_tokens=8, extra_body=extra)
        assert (reply.choices[0].text, reply.choices[0].finish_reason) == ("red", "stop")
    reply = api.completions.create(model="shop", prompt="blue", max_tokens=40, extra_body={"guided_json": SCHEMA})
    assert fits(reply.choices[0].text)


CHAT: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 16}
PATTERN = {"type": "object", "properties": {"x": {"type": "string", "pattern": "(?=a)"}}}


@pytest.mark.parametrize(
    ("route", "body", "field", "words"),
    [
        ("/v1/chat/completions", {**CHAT, "response_format": described(PATTERN)},
         "response_format.json_schema.schema.properties.x.pattern", "not regular"),
        ("/v1/chat/completions", {**CHAT, "response_format": described(SCHEMA), "max_tokens": 6}, "max_tokens",
         r"max_tokens is 6; a text that satisfies response_format.json_schema.schema takes at least \d+ tokens"),
        ("/v1/chat/completions", {**CHAT, "response_format": {"type": "json_schema"}}, "response_format.json_schema",
         "null"),
        ("/v1/chat/completions", {**CHAT, "response_format": {"type": "json_object", "schema": {}}},
         "response_format.schema", "not supported"),
        ("/v1/chat/completions", {**CHAT, "response_format": described(SCHEMA), "stop": "x"}, "stop",
         "can't be used with response_format.json_schema.schema"),
        ("/v1/chat/completions", {**CHAT, "response_format": described(SCHEMA), "regex": "x"},
         "response_format.json_schema.schema", "regex are given"),
        ("/v1/completions", {"prompt": "red", "structured_outputs": {"grammar": "x"}}, "structured_outputs.grammar",
         "json"),
        ("/v1/completions", {"prompt": "red", "guided_json": {"type": "x"}}, "guided_json.type",
         "must be one of string"),
        ("/v1/completions", {"prompt": "red", "guided_regex": "(a"}, "guided_regex", "without its"),
        ("/generate", {"text": "red", "sampling_params": {"json_schema": "{"}}, "json_schema", "a JSON schema"),
        ("/generate", {"text": "red", "sampling_params": {"regex": "a", "canvas": 1}}, "sampling_params.canvas",
         "canvas"),
        ("/generate", {"text": "red", "canvas": [-1, -1], "sampling_params": {"regex": "red"}}, "regex", "a canvas"),
        ("/generate", {"text": "red", "sampling_params": {"ebnf": "root ::= x"}}, "sampling_params.ebnf",
         "json_schema, regex or choice"),
    ],
)  # fmt: skip
def test_what_can_not_be_honoured_is_a_400_that_names_the_keyword(client, route, body, field, words):
    for stream in (False, True):
        reply = client.post(route, json={**body, "stream": stream})
        assert (reply.status_code, reply.json()["param"]) == (400, field), reply.text
        assert re.search(words, reply.json()["message"])


def test_others_are_answered_while_a_large_schema_compiles(client):
    """It compiles in a thread of its own; refused here, for its size."""
    large = {"type": "object", "properties": {f"p{n}": {"type": "string", "maxLength": 200} for n in range(40)}}
    reply = client.post("/v1/chat/completions", json={**CHAT, "response_format": described(large)})
    assert reply.status_code == 400
    assert "too large" in reply.json()["message"]
    assert client.get("/health_generate").status_code == 200
