"""The playground's files, and the dry run of the cache, over a real server process."""

from __future__ import annotations

import random
import re

import pytest

from shoal.runtime.http.routes import playground
from shoal.shop.task import ask_price

from .process import chat_messages, chat_text
from .test_origins import served

MOST_BYTES, MOST_LINES = 100_000, 1_000


def test_every_file_is_served_with_a_strict_policy_and_nothing_from_elsewhere(client):
    page = client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    named = set(re.findall(r'(?:href|src)="([^"#]+)"', page.text))
    assert named == {"playground/icon.svg", "playground/style.css", "playground/app.js"}
    size, lines = len(page.content), page.text.count("\n")
    for name in playground.FILES:
        reply = client.get(f"/playground/{name}")
        assert reply.status_code == 200, name
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", reply.text), name
        assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", reply.text), name
        assert set(re.findall(r'from "([^"]+)"', reply.text)) <= {f"./{file}" for file in playground.FILES}
        size += len(reply.content) if name != "index.html" else 0
        lines += reply.text.count("\n") if name != "index.html" else 0
    assert size < MOST_BYTES
    assert lines < MOST_LINES


def test_only_listed_files_are_served(client):
    for path in ("/playground/", "/playground/../config.py", "/playground/%2e%2e/config.py", "/playground/nothing.js"):
        assert client.get(path).status_code == 404, path
    assert client.post("/", json={}).status_code == 405


def test_a_dry_run_says_what_the_request_then_reuses(client, prices):
    salt = "dry-run"
    first, second = (ask_price(random.Random(seed), prices, json=False).text for seed in (5, 6))
    sampling = {"max_new_tokens": 16}
    look = {"text": chat_text(prices, second), "max_new_tokens": 16, "cache_salt": salt}
    before = client.post("/cache/match", json=look).json()
    assert (before["cached_tokens"], before["cut"], before["depth"], before["num_layers"]) == (0, 0, 0, 16)
    client.post("/generate", json={"text": chat_text(prices, first), "sampling_params": sampling, "cache_salt": salt})
    found = client.post("/cache/match", json=look).json()
    assert client.post("/cache/match", json=look).json() == found
    tokens = client.post("/tokenize", json={"messages": chat_messages(prices, second)}).json()["tokens"]
    by_ids = {"input_ids": tokens, "max_new_tokens": 16, "cache_salt": salt}
    assert client.post("/cache/match", json=by_ids).json() == found
    reply = client.post(
        "/generate", json={"text": chat_text(prices, second), "sampling_params": sampling, "cache_salt": salt}
    )
    info = reply.json()["meta_info"]
    assert (found["cut"], found["depth"]) == (info["cached_tokens"], info["depth"])
    assert found["cut"] <= found["cached_tokens"] <= found["prompt_tokens"] == info["prompt_tokens"]
    assert found["cut"] > 0
    none = client.post("/cache/match", json={**look, "cache_mode": "dual"}).json()
    assert (none["cached_tokens"], none["cut"]) == (0, 0)
    other = client.post("/cache/match", json={**look, "cache_salt": "another tenant"}).json()
    assert other["cached_tokens"] == 0


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "exactly one of text and input_ids"),
        ({"text": "red", "input_ids": [5]}, "exactly one of text and input_ids"),
        ({"text": "red", "max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"text": "red", "max_new_tokens": 10**6}, "max_new_tokens"),
        ({"text": "red", "cache_mode": "fast"}, 'cache_mode is "fast"'),
        ({"input_ids": [10**6]}, "token id 1000000"),
        ({"input_ids": []}, "input_ids is empty"),
        ({"text": "red", "steps": 3}, "steps"),
    ],
)
def test_a_dry_run_of_nonsense_is_refused_by_name(client, body, words):
    reply = client.post("/cache/match", json=body)
    assert reply.status_code == 400
    assert words in reply.json()["error"]["message"]


async def test_the_page_needs_no_key_but_what_it_calls_does():
    _, client = served(api_key="k", admin_api_key="a")
    assert (await client.get("/")).status_code == 200
    assert (await client.get("/playground/app.js")).status_code == 200
    for method, path in (("GET", "/cache"), ("POST", "/cache/match"), ("GET", "/playground/none.js")):
        assert (await client.request(method, path, json={} if method == "POST" else None)).status_code == 401


async def test_without_a_playground_there_is_no_page():
    _, client = served(playground=False)
    assert {(await client.get(path)).status_code for path in playground.PATHS} == {404}
    _, locked = served(playground=False, api_key="k")
    assert (await locked.get("/")).status_code == 401
