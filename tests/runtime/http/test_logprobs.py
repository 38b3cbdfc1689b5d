"""Log-probabilities of tokens in every reply that has a place for them, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from .process import chat_text

LONG = {"max_tokens": 24, "extra_body": {"ignore_eos": True, "threshold": 0.5, "cache_mode": "dual"}}
"""In mode `bicache` the second of two equal requests may reuse what the first one did not."""


@pytest.fixture(scope="module")
def api(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="EMPTY", max_retries=0) as api:
        yield api


def native(client, **body: Any) -> Any:
    sampling = {"max_new_tokens": 24, "ignore_eos": True, "threshold": 0.5}
    return client.post("/generate", json={"text": "red apple", "sampling_params": sampling, **body})


def test_the_native_reply_has_them_with_their_steps(client):
    reply = native(client, return_logprob=True, top_logprobs_num=2, return_text_in_logprobs=True).json()
    info = reply["meta_info"]
    assert [entry[1] for entry in info["output_token_logprobs"]] == reply["output_ids"]
    assert all(logprob <= 0 and isinstance(text, str) for logprob, _, text in info["output_token_logprobs"])
    assert len(info["output_token_steps"]) == len(reply["output_ids"]) == 24
    assert max(info["output_token_steps"]) <= info["nfe"]
    assert info["input_token_logprobs"] == []
    for own, best in zip(info["output_token_logprobs"], info["output_top_logprobs"], strict=True):
        assert len(best) == 2
        assert own == best[0]  # greedy
    bare = native(client, return_logprob=True).json()["meta_info"]
    assert [entry[2] for entry in bare["output_token_logprobs"]] == [None] * 24
    assert "output_top_logprobs" not in bare
    assert "output_token_logprobs" not in native(client).json()["meta_info"]


def test_streams_end_with_the_same(client):
    whole = native(client, return_logprob=True, top_logprobs_num=1).json()
    with client.stream("POST", "/generate", json={
        "text": "red apple", "stream": True, "return_logprob": True, "top_logprobs_num": 1,
        "sampling_params": {"max_new_tokens": 24, "ignore_eos": True, "threshold": 0.5},
    }) as reply:  # fmt: skip
        events = [json.loads(line[6:]) for line in reply.iter_lines() if line.startswith("data: {")]
    assert len(events) > 1
    for event in events:
        assert len(event["meta_info"]["output_token_logprobs"]) == len(event["output_ids"])
    for name in ("output_token_logprobs", "output_top_logprobs", "output_token_steps"):
        assert events[-1]["meta_info"][name] == whole["meta_info"][name]


def test_chats_have_them_whole_and_streamed(api):
    messages: Any = [{"role": "user", "content": "Which things are red?"}]
    options: dict[str, Any] = {"model": "shop", "messages": messages, "logprobs": True, "top_logprobs": 3, **LONG}
    content = api.chat.completions.create(**options).choices[0].logprobs.content
    assert len(content) == 24
    assert all(len(one.top_logprobs) == 3 and one.top_logprobs[0].logprob == one.logprob for one in content)
    assert all(bytes(one.bytes).decode() == one.token for one in content)
    chunks = list(api.chat.completions.create(**options, stream=True))
    pieces = [chunk.choices[0].logprobs.content for chunk in chunks if chunk.choices[0].logprobs]
    assert len(pieces) > 1
    assert [one for piece in pieces for one in piece] == content


def test_completions_have_them_whole_and_streamed(api, prices):
    prompt = chat_text(prices, "Which things are red?")
    options: dict[str, Any] = {"model": "shop", "prompt": prompt, "logprobs": 2, **LONG}
    whole = api.completions.create(**options).choices[0].logprobs
    assert len(whole.tokens) == len(whole.token_logprobs) == len(whole.text_offset) == 24
    assert all(max(best.values()) == own for best, own in zip(whole.top_logprobs, whole.token_logprobs, strict=True))
    assert whole.text_offset[:2] == [0, len(whole.tokens[0])]
    chunks = [c.choices[0].logprobs for c in api.completions.create(**options, stream=True) if c.choices[0].logprobs]
    assert len(chunks) > 1
    for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
        assert [one for chunk in chunks for one in getattr(chunk, name)] == getattr(whole, name)
    assert api.completions.create(**{**options, "logprobs": 0}).choices[0].logprobs.top_logprobs is None


CHAT = {"messages": [{"role": "user", "content": "red"}], "max_tokens": 4}


@pytest.mark.parametrize(
    ("route", "body", "field", "words"),
    [
        ("/generate", {"text": "red", "return_logprob": True, "top_logprobs_num": 21}, "top_logprobs_num", "20"),
        ("/generate", {"text": "red", "top_logprobs_num": 2}, "top_logprobs_num", "return_logprob is not true"),
        ("/generate", {"text": "red", "return_logprob": True, "logprob_start_len": 0}, "logprob_start_len", "/score"),
        ("/v1/chat/completions", {**CHAT, "top_logprobs": 2}, "top_logprobs", "logprobs is not true"),
        ("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 21}, "top_logprobs", "from 0 to 20"),
        ("/v1/chat/completions", {**CHAT, "logprobs": 2}, "logprobs", "logprobs is 2"),
        ("/v1/completions", {"prompt": "red", "logprobs": 21}, "logprobs", "from 0 to 20"),
        ("/v1/completions", {"prompt": "red", "logprobs": 1, "echo": True}, "logprobs", "of a prompt"),
        (
            "/generate",
            {"text": ["red"] * 64, "return_logprob": True, "top_logprobs_num": 20,
             "sampling_params": {"max_new_tokens": 256}},
            "max_new_tokens", "131072",
        ),
    ],
)  # fmt: skip
def test_what_can_not_be_had_is_refused_by_name(client, route, body, field, words):
    reply = client.post(route, json=body)
    assert (reply.status_code, reply.json()["param"]) == (400, field), reply.text
    assert words in reply.json()["message"]
