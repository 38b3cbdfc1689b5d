"""Two replicas of `shop` on a local Ray cluster: routes and streams, reuse, and the death of a replica under load."""

from __future__ import annotations

import collections
import json
import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from benchmarks.ray_cluster import children, ray_application, replica_pids, wait_until
from shoal.runtime.engine.engine import Engine
from shoal.runtime.request.sampling_params import SamplingParams
from shoal.shop.task import ask_price, make_list
from tests.runtime.http.process import chat_text

pytest.importorskip("ray", reason="needs pip install shoal[ray]")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of Ray's own classes
]
ARGS = {"model_path": "shop", "device": "cpu", "num_replicas": 2, "kv_cache_tokens": 16384, "summary_period_s": 1.0,
        "summary_stride": 32, "drain_timeout_s": 5.0, "log_level": "warning"}  # fmt: skip


@pytest.fixture(scope="module")
def application():
    with ray_application(ARGS) as running:
        assert wait_until(lambda: running.running() == 2, 120)
        yield running


@pytest.fixture(scope="module")
def client(application):
    with httpx.Client(base_url=application.url, timeout=120) as client:
        yield client


def questions(seed: int, lists: int, each: int) -> list[tuple[str, str]]:
    """Prompts and answers about price lists, in random order."""
    rng = random.Random(seed)
    made = [make_list(rng, 24, held_out=True) for _ in range(lists)]
    asked = [(chat_text(prices, one.text), one.answer) for prices in made for one in (
        ask_price(rng, prices, json=False) for _ in range(each))]  # fmt: skip
    rng.shuffle(asked)
    return asked


def generate(client, text, **fields):
    return client.post("/generate", json={"text": text, "sampling_params": {"max_new_tokens": 16}, **fields})


def test_native_and_openai_routes_answer_as_one_server_does(application, client):
    prompt, answer = questions(1, 1, 1)[0]
    reply = generate(client, prompt)
    assert (reply.status_code, reply.json()["text"]) == (200, answer)
    assert client.get("/health").json() == {"status": "up"}
    with openai.OpenAI(base_url=f"{application.url}/v1", api_key="none") as user:
        assert [model.id for model in user.models.list()] == ["shop"]
        words = user.completions.create(model="shop", prompt=prompt, max_tokens=16)
        assert words.choices[0].text == answer
        stream = user.completions.create(model="shop", prompt=prompt, max_tokens=16, stream=True)
        assert "".join(event.choices[0].text for event in stream) == answer
    refused = client.post("/generate", json={"text": "red", "sampling_params": {"max_new_tokens": -1}})
    assert refused.status_code == 400
    assert refused.json()["param"] == "max_new_tokens"
    missing = generate(client, "red", sampling_params={"max_new_tokens": 10**6})
    assert missing.status_code == 400
    assert "max_new_tokens" in missing.json()["message"]
    assert client.post("/start_profile", json={}).status_code == 400


def test_streams_come_block_by_block(client):
    params = {"max_new_tokens": 256, "block_length": 16, "ignore_eos": True, "steps": 64}
    body = {"text": "red apple", "sampling_params": params, "stream": True}
    seen = []
    with client.stream("POST", "/generate", json=body) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                seen.append((time.monotonic(), json.loads(line[6:])["meta_info"]["completion_tokens"]))
    assert seen[-1][1] == 256
    assert [count for _, count in seen] == sorted(count for _, count in seen)
    assert len({count for _, count in seen}) >= 8
    assert seen[-1][0] - seen[0][0] > 0.05  # not all at the end


def test_an_abort_ends_a_request_wherever_it_runs(client):
    params = {"max_new_tokens": 512, "block_length": 16, "ignore_eos": True, "steps": 512}
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(generate, client, "red", rid="mine", sampling_params=params)
        assert wait_until(lambda: client.post("/abort_request", json={"rid": "mine"}).json()["aborted"] == 1, 30)
        assert running.result(60).json()["meta_info"]["finish_reason"]["type"] == "abort"


def test_prompts_go_where_their_prefix_is(client):
    """The hit rate of two replicas is within 5 points of one engine's over the same prompts in the same order."""
    assert client.post("/flush_cache?timeout=10").status_code == 200
    asked = questions(2, 4, 5)
    with Engine("shop", device="cpu", kv_cache_tokens=16384) as engine:
        alone = [engine.generate(prompt, SamplingParams(max_new_tokens=16)) for prompt, _ in asked]
    replies = []
    for prompt, _ in asked:
        reply = generate(client, prompt)
        assert reply.status_code == 200, reply.text
        replies.append(reply.json())
    assert [one["text"] for one in replies] == [one.text for one in alone]
    tokens = sum(one.prompt_tokens for one in alone)
    rates = [sum(one.cached_tokens for one in alone) / tokens,
             sum(one["meta_info"]["cached_tokens"] for one in replies) / tokens]  # fmt: skip
    assert rates[1] >= rates[0] - 0.05, rates
    trees = client.get("/cache").json()["namespaces"]
    assert {one["replica"] for one in trees} == {0, 1}  # both took a share


class Load:
    """Clients that ask until they are told to stop, half of them streaming; `replies` has an entry for each request."""

    def __init__(self, url: str, clients: int):
        self._url = url
        self._stop = threading.Event()
        self.replies: list[str] = []
        self.sent = 0
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(clients)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join(120)
        assert not any(thread.is_alive() for thread in self._threads)

    def _run(self, number: int) -> None:
        params = {"max_new_tokens": 64, "block_length": 16, "ignore_eos": True, "steps": 32}
        body = {"text": f"red apple {number}", "sampling_params": params, "stream": number % 2 == 0}
        with httpx.Client(base_url=self._url, timeout=120) as client:
            while not self._stop.is_set():
                with self._lock:
                    self.sent += 1
                result = self._ask(client, body)
                with self._lock:
                    self.replies.append(result)

    def _ask(self, client: httpx.Client, body) -> str:
        """`done`, or how it failed."""
        try:
            with client.stream("POST", "/generate", json=body) as reply:
                lines = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
        except httpx.HTTPError as error:
            return f"broken: {type(error).__name__}"
        kind = "stream" if body["stream"] else "whole"
        if reply.status_code != 200:
            return f"{kind} {reply.status_code}: {json.loads(lines[0])['message']}"
        if not body["stream"]:
            return "done" if json.loads(lines[0])["meta_info"]["completion_tokens"] == 64 else f"whole: {lines[0]}"
        if lines[-1] != "[DONE]":
            return f"stream without an end: {lines[-1:]}"
        last = json.loads(lines[-2])
        return f"stream: {last['error']['message']}" if "error" in last else "done"


@pytest.mark.parametrize("victim", ["replica", "worker"])
def test_a_replica_that_is_killed_comes_back_and_nothing_else_is_lost(application, client, victim):
    """Kills a replica's actor, then a process of a pipeline: whole answers are retried, streams that have begun get an
    error that says so, and two replicas run again.
    """
    pids = replica_pids()
    assert len(pids) == 2
    with Load(application.url, 6) as load:
        assert wait_until(lambda: len(load.replies) >= 12, 60)
        os.kill(pids[0] if victim == "replica" else children(pids[0])[0], signal.SIGKILL)
        count = len(load.replies)
        assert wait_until(lambda: len(load.replies) >= count + 12, 60)  # the other one goes on
        assert wait_until(lambda: pids[0] not in replica_pids() and len(replica_pids()) == 2, 120)
        assert wait_until(lambda: application.running() == 2, 120)
    assert len(load.replies) == load.sent
    kinds = collections.Counter(load.replies)
    failed = [reply for reply in load.replies if reply != "done"]
    assert len(failed) <= 6, kinds  # no more than were in flight
    assert all(reply.startswith("stream") and "send the request again" in reply for reply in failed), kinds
    assert generate(client, "red").status_code == 200
