"""What is too long over HTTP: the error names what the client sent, and its advice can be followed."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

WALL = "red " * 50_000
"""Refused from a part of it: CHARACTERS_PER_TOKEN in runtime/text/bound.py."""


def red(count: int) -> str:
    """Text of so many tokens."""
    return " ".join(["red"] * count)


CHAT = [{"role": "user", "content": red(500)}]  # 503 tokens with the template's
TOO_LONG: list[tuple[str, dict[str, Any], str, str]] = [
    ("/generate", {"text": red(640)}, "text has 640 tokens and max_new_tokens is 1 by default",
     "shorten text by 1 token, to at most 639"),
    ("/generate", {"input_ids": [[5], [5] * 600], "sampling_params": {"max_new_tokens": 64}},
     "input_ids[1] has 600 tokens and max_new_tokens is 64", "send max_new_tokens of at most 40"),
    ("/generate", {"text": red(600), "canvas": [-1] * 64}, "text has 600 tokens and canvas 64 positions",
     "send a canvas of at most 40"),
    ("/generate", {"text": ["red", red(700)]}, "text[1] has 700 tokens",
     "shorten text[1] by 61 tokens, to at most 639"),
    ("/generate", {"text": red(639), "sampling_params": {"max_new_tokens": 0}}, "the masks behind it are 8",
     "shorten text by 7 tokens, to at most 632"),
    ("/v1/completions", {"prompt": red(603), "max_tokens": 100}, "prompt has 603 tokens and max_tokens is 100",
     "send max_tokens of at most 37"),
    ("/v1/completions", {"prompt": [red(640)]}, "prompt[0] has 640 tokens and max_tokens is 1 by default",
     "shorten prompt[0] by 1 token, to at most 639"),
    ("/v1/completions", {"prompt": red(600), "max_tokens": 96, "block_length": 32}, "max_tokens is 96",
     "send max_tokens of at most 40"),
    ("/v1/completions", {"prompt": red(640), "max_tokens": 8}, "prompt has 640 tokens",
     "shorten prompt by 8 tokens, to at most 632"),
    ("/v1/chat/completions", {"messages": CHAT, "max_tokens": 200}, "messages has 503 tokens and max_tokens is 200",
     "send max_tokens of at most 137"),
    ("/v1/chat/completions", {"messages": CHAT, "max_completion_tokens": 200}, "max_completion_tokens is 200",
     "send max_completion_tokens of at most 137"),
    ("/score", {"text": red(630), "choices": [[5] * 9, [6]]},
     "text has 630 tokens and the longest of choices takes a canvas of 16", "shorten text by 6 tokens, to at most 624"),
]  # fmt: skip


def follow(body: dict[str, Any], advice: str) -> dict[str, Any]:
    """The body with what the advice names made as long as it says."""
    number = int(re.findall(r"\d+", advice)[-1])
    if "send a canvas" in advice:
        return {**body, "canvas": [-1] * number}
    if "send" in advice:
        name = advice.split()[1]
        inner = {"sampling_params": {name: number}} if name == "max_new_tokens" else {name: number}
        return {**body, **inner}
    name = advice.split()[1].partition("[")[0]
    text = red(number)
    return {**body, name: text if isinstance(body[name], str) else [*body[name][:-1], text]}


@pytest.mark.parametrize(("route", "body", "words", "advice"), TOO_LONG, ids=[str(i) for i in range(len(TOO_LONG))])
def test_the_error_names_what_was_sent_and_its_advice_works(client, route, body, words, advice):
    reply = client.post(route, json=body)
    assert reply.status_code == 400, reply.text
    message = reply.json()["message"]
    assert words in message
    assert message.endswith(advice)
    assert reply.json()["param"] in body or reply.json()["param"] in ("max_new_tokens", "max_tokens")
    steps = {} if route == "/score" else {"threshold": 1e-6}  # as few forward passes as can be
    followed = client.post(route, json={**follow(body, advice), **steps})
    assert followed.status_code == 200, followed.text


@pytest.mark.parametrize(
    ("route", "body", "name", "param"),
    [
        ("/generate", {"text": WALL}, "text", "text"),
        ("/generate", {"text": ["red", WALL]}, "text[1]", "text"),
        ("/v1/completions", {"prompt": WALL}, "prompt", "prompt"),
        ("/v1/completions", {"prompt": ["red", WALL]}, "prompt[1]", "prompt"),
        ("/v1/completions", {"prompt": "red", "suffix": WALL}, "suffix", "suffix"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": WALL}]}, "messages", "messages"),
        ("/v1/messages", {"messages": [{"role": "user", "content": WALL}], "max_tokens": 4}, "messages", "messages"),
        ("/v1/responses", {"input": WALL}, "input", "input"),
        ("/score", {"text": WALL, "choices": ["a"]}, "text", "text"),
        ("/score", {"text": "red", "choices": ["a", WALL]}, "choices[1]", "choices"),
        ("/cache/match", {"text": WALL}, "text", "text"),
        ("/tokenize", {"prompt": WALL}, "prompt", "prompt"),
        ("/tokenize", {"prompt": ["red", WALL]}, "prompt[1]", "prompt"),
        ("/tokenize", {"parts": [{"text": WALL}]}, "parts", "parts"),
    ],
)
def test_a_text_that_is_far_too_long_is_called_as_the_client_calls_it(client, route, body, name, param):
    reply = client.post(route, json=body)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert re.match(rf"{re.escape(name)}: the text has 2000\d\d characters, of which the first", error["message"])
    assert error["param"] == param


def test_tokenize_names_the_prompt_that_is_wrong(client):
    for body, field, words in (
        ({"prompt": ["red", "\ud800"]}, "prompt", "prompt[1] is"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages", "refuses the messages"),
    ):
        content = json.dumps(body).encode()  # ASCII: also half a surrogate pair gets through
        reply = client.post("/tokenize", content=content, headers={"content-type": "application/json"})
        assert reply.status_code == 400
        assert reply.json()["param"].startswith(field)
        assert words in reply.json()["message"]
