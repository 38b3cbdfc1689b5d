"""One request's cost is bounded before it is accepted; whatever is under way can be ended."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from shoal.runtime.http.api_error import ApiError
from shoal.runtime.http.batch import Batch
from shoal.runtime.http.config import ServerConfig
from shoal.runtime.http.cost import check_work
from shoal.runtime.http.preparation import prepared
from shoal.runtime.http.routes.score import score
from shoal.runtime.http.schemas import ScoreBody
from shoal.runtime.request.input import GenerateInput
from shoal.runtime.request.sampling_params import SamplingParams

from .process import ServerProcess, metric_values, wait_for, wait_idle

IDS = [80] * 600


def requests_made(client: httpx.Client) -> float:
    return metric_values(client)['shoal:num_requests_total{model_name="shop"}']


@pytest.mark.parametrize(
    ("route", "body", "field", "words"),
    [
        ("/score", {"input_ids": [80], "choices": [IDS] * 64}, "choices", "38400 tokens in 64 entries.* at most 4096"),
        ("/score", {"input_ids": IDS * 2, "choices": [IDS] * 6}, "choices", "3600 forward.*max_request_tokens"),
        ("/score", {"input_ids": [80], "choices": [[5]] * 65}, "choices", "has 65 entries; it must have from 1 to 64"),
        ("/score", {"input_ids": [80], "choices": []}, "choices", "has 0 entries; it must have from 1 to 64"),
        ("/generate", {"text": ["red"] * 65}, "text", "65 prompts"),
        ("/generate", {"text": ["red"] * 32, "n": 4}, "n", "128 answers"),
    ],
)
def test_too_much_work_is_refused_by_name_before_any_request_is_made(client, route, body, field, words):
    before = requests_made(client)
    reply = client.post(route, json=body)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error["param"] == field
    assert re.search(words, error["message"]), error["message"]
    assert requests_made(client) == before


def info(max_tokens: int = 4096) -> Any:
    return SimpleNamespace(max_tokens=max_tokens, block_length=32)


@pytest.mark.parametrize(
    ("prompts", "n", "sampling", "limit", "over", "field"),
    [
        ([[1] * 40] * 2, 2, {"max_new_tokens": 10}, "max_request_tokens", 200, "max_new_tokens"),
        ([[1] * 50] * 4, 1, {"max_new_tokens": 0}, "max_request_tokens", 200, "prompt"),
        (["text"] * 2, 2, {"max_new_tokens": 50}, "max_request_tokens", 200, "max_new_tokens"),
        (["text"] * 3, 1, {"max_new_tokens": 34}, "max_request_forwards", 102, "max_new_tokens"),
        (["text"] * 6, 1, {"max_new_tokens": 32, "steps": 17, "block_length": 32}, "max_request_forwards", 102,
         "steps"),
    ],
)  # fmt: skip
def test_answers_are_refused_by_their_work_together(prompts, n, sampling, limit, over, field):
    """The limit itself is taken."""
    params = [SamplingParams(**sampling)] * len(prompts)
    with pytest.raises(ApiError, match=rf"{over}\b.*at most {over - 1} .*{limit}") as caught:
        check_work(ServerConfig(**{limit: over - 1}), info(), prompts, params, n, "prompt")
    assert (caught.value.status, caught.value.param) == (400, field)
    check_work(ServerConfig(**{limit: over}), info(), prompts, params, n, "prompt")


def test_lengths_are_left_to_the_models_maximum_where_that_is_stricter():
    check_work(ServerConfig(), info(640), [[1]], [SamplingParams(max_new_tokens=10**9)], 1, "prompt")


async def test_a_canvas_that_fits_no_prompt_is_refused_before_any_prompt_is_tokenized():
    """Its own error is the answer of the whole batch."""
    state: Any = SimpleNamespace(service=SimpleNamespace(info=info(640)), config=ServerConfig())
    inputs = tuple(
        GenerateInput(rid=f"r{i}", prompt="red", sampling=SamplingParams(max_new_tokens=n), stream=False)
        for i, n in enumerate((8, 639, 640))
    )
    request: Any = None
    assert (await prepared(state, request, Batch("r", inputs, 1))).inputs == inputs[2:]


@contextmanager
def held(server: ServerProcess, role: str) -> Iterator[None]:
    """A process does nothing inside."""
    pid = server.pid_of(role)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


TOKENIZED = [
    ("/score", {"text": "red", "choices": ["apple", "plum"]}),
    ("/v1/completions", {"prompt": [80, 81], "echo": True, "max_tokens": 8}),
    ("/generate", {"text": ["red", "blue"], "max_new_tokens": 8}),
]


@pytest.mark.parametrize(("route", "body"), TOKENIZED)
def test_what_is_tokenized_is_under_way_and_can_be_aborted(server, client, route, body):
    body = {**body, "rid": "tokenizes"}
    replies: list[httpx.Response] = []
    with held(server, "tokenizer"):
        thread = threading.Thread(target=lambda: replies.append(client.post(route, json=body)))
        thread.start()
        wait_for(lambda: client.post("/abort_request", json={"rid": "tokenizes"}).json() == {"aborted": 1})
        thread.join(60)
    assert replies[0].status_code == 400
    assert replies[0].json()["error"]["type"] == "RequestAbortedError"
    assert client.post("/abort_request", json={"rid": "tokenizes"}).json() == {"aborted": 0}
    wait_idle(client)


@pytest.mark.parametrize(
    ("member", "choices"), [("scores", [[83] * 40, [84] * 24]), ("scores-0", [[83]])], ids=["whole", "forward"]
)
def test_a_running_score_that_is_aborted_gets_an_error_of_its_own(server, client, member, choices):
    """By the request's id, and by the id of the one forward that it is made of, behind another request's forward."""
    body = {"input_ids": [80, 81, 82], "choices": choices, "rid": "scores", "cache_mode": "none"}
    other = {"text": "red", "max_new_tokens": 8, "steps": 1, "block_length": 8}
    replies: dict[str, httpx.Response] = {}
    threads = [
        threading.Thread(target=lambda: replies.update(other=client.post("/generate", json=other))),
        threading.Thread(target=lambda: replies.update(score=client.post("/score", json=body))),
    ]
    with server.worker_held():
        threads[0].start()
        wait_for(lambda: client.get("/get_load").json()[0]["num_reqs"])
        threads[1].start()
        wait_for(lambda: client.post("/abort_request", json={"rid": member}).json() == {"aborted": 1})
        client.get("/get_load").raise_for_status()  # the scheduler's answer: it has the abort too
    for thread in threads:
        thread.join(60)
    assert replies["other"].status_code == 200
    assert replies["score"].status_code == 400, replies["score"].text
    assert replies["score"].json()["error"]["type"] == "RequestAbortedError"
    wait_idle(client)


def test_choices_have_one_limit_by_default_too():
    """max_batch is 1024 then, and a score takes fewer."""
    body = ScoreBody(input_ids=[5], choices=[[5]] * 257)
    request: Any = None
    state: Any = SimpleNamespace(config=ServerConfig())
    with pytest.raises(ApiError, match="choices has 257 entries; it must have from 1 to 256"):
        asyncio.run(score(body, request, state))
