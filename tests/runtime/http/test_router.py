"""sglang's router (cache_aware) before two real server processes."""

from __future__ import annotations

import functools
import json
import os
import random
import subprocess
import sys
from typing import Any

import httpx
import openai
import pytest

from shoal.shop.task import ask_price, make_list

from .process import ServerProcess, chat_messages, chat_text, free_port, metric_values, wait_for

pytest.importorskip("sglang_router")


@pytest.fixture(scope="module")
def workers(tmp_path_factory, server):
    log = tmp_path_factory.mktemp("worker") / "second.log"
    with ServerProcess(log, "--kv-cache-tokens", "16384") as second:
        yield [server, second]


@pytest.fixture(scope="module")
def router(tmp_path_factory, workers):
    folder = tmp_path_factory.mktemp("router")
    for _ in range(3):  # its port may be gone by the time it wants it
        process, url = launch(folder, workers)
        try:
            if wait_for(functools.partial(is_ready_or_gone, process, url), 120) == "ready":
                yield url
                return
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    raise AssertionError((folder / "log").read_text()[-3000:])


def launch(folder, workers):
    """The router's process, and its address."""
    port = free_port()
    command = [
        sys.executable, "-m", "sglang_router.launch_router", "--host", "127.0.0.1", "--port", str(port),
        "--policy", "cache_aware", "--worker-urls", *(worker.url for worker in workers),
        "--prometheus-port", str(free_port()), "--health-check-interval-secs", "1", "--disable-retries",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
    return process, f"http://127.0.0.1:{port}"


def is_ready_or_gone(process, url):
    return "gone" if process.poll() is not None else "ready" if is_ready(url) else None


def is_ready(url):
    """Whether the router has both workers."""
    try:
        return (
            httpx.get(f"{url}/readiness", timeout=30).status_code == 200
            and len(httpx.get(f"{url}/workers", timeout=30).json()["workers"]) == 2
        )
    except (httpx.TransportError, KeyError, ValueError):
        return False


def requests_of(workers):
    counts = []
    for worker in workers:
        with worker.client() as client:
            counts.append(metric_values(client)['shoal:num_requests_total{model_name="shop"}'])
    return counts


def test_questions_about_a_list_go_where_it_is_cached(router, workers):
    """Two lists, one after the other: each is computed by one worker, and reused there."""
    rng = random.Random(1)
    for size in (20, 30):
        prices = make_list(rng, size, held_out=True)
        before = requests_of(workers)
        infos = []
        for _ in range(5):
            question = ask_price(rng, prices, json=False)
            body = {"text": chat_text(prices, question.text), "sampling_params": {"max_new_tokens": 8}}
            reply = httpx.post(f"{router}/generate", json=body, timeout=60)
            assert reply.status_code == 200, reply.text
            assert reply.json()["text"] == question.answer
            infos.append(reply.json()["meta_info"])
        assert sorted(b - a for a, b in zip(before, requests_of(workers), strict=True)) == [0, 5]
        assert [info["cached_tokens"] > 0 for info in infos] == [False] + [True] * 4


def test_streams_chats_and_completions_pass(router, prices):
    question = ask_price(random.Random(2), prices, json=True)
    body = {"text": chat_text(prices, question.text), "sampling_params": {"max_new_tokens": 32}, "stream": True}
    with httpx.stream("POST", f"{router}/generate", json=body, timeout=60) as reply:
        data = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
    assert data[-1] == "[DONE]"
    assert json.loads(data[-2])["text"] == question.answer
    with openai.OpenAI(base_url=f"{router}/v1", api_key="EMPTY", max_retries=0) as api:
        messages: Any = chat_messages(prices, question.text)
        chat: Any = api.chat.completions.create(model="shop", messages=messages, max_tokens=32)
        assert chat.choices[0].message.content == question.answer
        assert chat.usage.completion_tokens > 0
        chunks: list[Any] = list(
            api.chat.completions.create(model="shop", messages=messages, max_tokens=32, stream=True)
        )
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == question.answer
        text = api.completions.create(model="shop", prompt=chat_text(prices, question.text), max_tokens=32)
        assert text.choices[0].text == question.answer


def test_knobs_reach_the_worker_through_chat_template_kwargs(router, prices):
    """Steps of a chat, the tenant's salt of a native request as extra_key: routers drop what they don't know."""
    body = {"model": "shop", "messages": chat_messages(prices, "Which things are red?"), "max_tokens": 16,
            "ignore_eos": True, "chat_template_kwargs": {"steps": 4, "block_length": 8}}  # fmt: skip
    reply = httpx.post(f"{router}/v1/chat/completions", json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"][0]["meta_info"]["nfe"] == 4
    knobs = {"model": "shop", "prompt": chat_text(prices, "Which things are red?"), "max_tokens": 16, "steps": 4,
             "block_length": 8, "ignore_eos": True}  # fmt: skip
    completion = httpx.post(f"{router}/v1/completions", json=knobs, timeout=60)
    assert completion.json()["choices"][0]["meta_info"]["nfe"] == 4
    body = {"text": chat_text(prices, "Which things are red?"), "extra_key": "tenant-of-router",
            "sampling_params": {"max_new_tokens": 8}}  # fmt: skip
    first, second = (httpx.post(f"{router}/generate", json=body, timeout=60).json()["meta_info"] for _ in range(2))
    assert first["cached_tokens"] == 0
    assert second["cached_tokens"] > 0


def test_errors_pass(router):
    reply = httpx.post(f"{router}/generate", json={"text": "red", "sampling_params": {"regex": "a"}}, timeout=60)
    assert reply.status_code == 400
    assert "regex" in reply.text


def test_flush_goes_to_all_and_metrics_are_gathered(router, workers):
    assert httpx.post(f"{router}/flush_cache", timeout=60).status_code == 200
    for worker in workers:
        with worker.client() as client:
            assert client.get("/cache").json()["num_nodes"] == 0
    assert "shoal_num_requests_total" in httpx.get(f"{router}/engine_metrics", timeout=60).text
