"""Streams with snapshots of the canvas, on the native route and on OpenAI's."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from shoal.shop.task import ask_total

from .process import chat_messages, chat_text
from .test_generate import events

OPTIONS = {"max_tokens": 16, "block_length": 8, "steps": 8, "stream": True, "stream_mode": "denoise"}


@pytest.fixture
def question(prices):
    return ask_total(random.Random(3), prices, json=False)


def stream(client, route, body):
    with client.stream("POST", route, json=body) as response:
        assert response.status_code == 200, response.read()
        *data, done = events(response)
    assert done == "[DONE]"
    return [json.loads(item) for item in data]


def check(shots, answer):
    filled = [sum(token >= 0 for token in shot["tokens"]) for shot in shots]
    assert filled == sorted(filled)
    last = shots[-1]
    assert (len(last["tokens"]), last["blocks"]) == (16, [8, 16])
    assert "".join(last["texts"]).split("<|eos|>")[0] == answer
    assert all(0 < c <= 1 for c, t in zip(last["confidences"], last["tokens"], strict=True) if t >= 0)
    assert last["steps"][0] >= 1


def test_native_events_have_the_canvas_beside_the_text(client, prices, question):
    sampling = {"max_new_tokens": 16, "block_length": 8, "steps": 8}
    text = chat_text(prices, question.text)
    body = {"text": text, "sampling_params": sampling, "stream": True, "stream_mode": "denoise"}
    replies = stream(client, "/generate", body)
    check([reply["snapshot"] for reply in replies], question.answer)
    assert replies[-1]["text"] == question.answer
    assert replies[-1]["snapshot"]["step"] == replies[-1]["meta_info"]["nfe"]
    plain = stream(client, "/generate", {**body, "stream_mode": "text"})
    assert plain[-1]["text"] == question.answer
    assert not any("snapshot" in reply for reply in plain)


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions"])
def test_openai_chunks_have_it_too(client, prices, question, route):
    prompt: dict[str, Any] = {"messages": chat_messages(prices, question.text)}
    if route == "/v1/completions":
        prompt = {"prompt": chat_text(prices, question.text)}
    choices = [c for chunk in stream(client, route, {**prompt, **OPTIONS}) for c in chunk["choices"]]
    check([choice["snapshot"] for choice in choices if "snapshot" in choice], question.answer)
    texts = (c["delta"].get("content", "") if "delta" in c else c["text"] for c in choices)
    assert "".join(texts) == question.answer


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"stream_mode": "denoise"}, 'stream_mode is "denoise", which goes with stream true'),
        ({"stream_mode": "pixels", "stream": True}, 'stream_mode is "pixels"; it must be one of text, denoise'),
        ({"sampling_params": {"stream_mode": "denoise"}}, "stream_mode"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(client, body, words):
    response = client.post("/generate", json={"text": "red", **body})
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]
