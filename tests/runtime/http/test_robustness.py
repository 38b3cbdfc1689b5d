"""What clients do to a server: leave, abort, time out, send garbage. Nothing is lost and nothing leaks."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from typing import Any

import httpx
import pytest

from .process import chat_text, metric_values, wait_idle

QUESTION = "Which things are red? Answer in JSON."


# 512 forward passes.
LONG: dict[str, Any] = {
    "text": "red", "cache_mode": "dual",
    "sampling_params": {"max_new_tokens": 512, "block_length": 8, "steps": 512, "ignore_eos": True},
}  # fmt: skip


def work(prices, rng, **extra):
    """A request of some hundred milliseconds on the CPU."""
    tokens = rng.choice((16, 32, 64))
    return {"text": chat_text(prices, rng.choice((QUESTION, "Which things are blue?"))),
            "sampling_params": {"max_new_tokens": tokens, "block_length": 8, "steps": tokens, "ignore_eos": True},
            "stream": rng.random() < 0.5, "cache_mode": rng.choice(("bicache", "dual", "none")), **extra}  # fmt: skip


def alone(client, prices):
    """Tokens of one greedy request without cross-request reuse."""
    body = {"text": chat_text(prices, QUESTION), "sampling_params": {"max_new_tokens": 32}, "cache_mode": "dual"}
    return client.post("/generate", json=body).json()["output_ids"]


def errors_500(client):
    return sum(
        v for k, v in metric_values(client).items() if k.startswith("shoal:http_requests_total") and 'status="500"' in k
    )


@pytest.fixture
def unharmed(client, prices):
    """After the test: no 500, no page held, and a request alone gives what it gave before."""
    before = alone(client, prices)
    failures = errors_500(client)
    yield
    wait_idle(client)
    assert errors_500(client) == failures
    assert client.get("/health_generate").status_code == 200
    assert alone(client, prices) == before


@pytest.mark.usefixtures("unharmed")
async def test_200_clients_that_leave_at_random_moments(server, client, prices):
    """Every fourth leaves right after it has asked, so that some do whatever the speed of the machine."""
    rng = random.Random(1)
    gone = metric_values(client)["shoal:disconnected_requests_total"]

    async def one(index):
        body = json.dumps(work(prices, rng, rid=f"leaver-{index}")).encode()
        await asyncio.sleep(rng.random() * 4)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        head = "POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        sent = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
        at_once = index % 4 == 0
        cut = len(sent) if at_once or rng.random() < 2 / 3 else rng.randrange(len(sent))  # a quarter while it sends
        writer.write(sent[:cut])
        await writer.drain()
        received = b""
        try:
            async with asyncio.timeout(0.02 if at_once else rng.random() * 1.5):
                while chunk := await reader.read(4096):
                    received += chunk
        except TimeoutError:
            pass
        if rng.random() < 0.5:  # half of them with a reset instead of a polite end
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.close()
        return received.startswith(b"HTTP/1.1 500")

    assert not any(await asyncio.gather(*(one(index) for index in range(200))))
    await asyncio.to_thread(wait_idle, client)
    assert metric_values(client)["shoal:disconnected_requests_total"] - gone > 50


@pytest.mark.usefixtures("unharmed")
async def test_50_aborts_by_id_get_one_answer_each(server, client, prices):
    """Half of them of long requests, as soon as these are known; half at random moments."""
    rng = random.Random(2)
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as api:

        async def run(index):
            body = work(prices, rng, rid=f"aborted-{index}", n=1)
            return await api.post("/generate", json=LONG | {"rid": body["rid"]} if index < 25 else body)

        async def abort(index):
            await asyncio.sleep(0 if index < 25 else rng.random() * 2)
            body = {"rid": f"aborted-{index}"}
            while not (told := (await api.post("/abort_request", json=body)).json()["aborted"]) and index < 25:
                await asyncio.sleep(0.05)
            return told

        results = await asyncio.gather(*(run(i) for i in range(50)), *(abort(i) for i in range(50)))
    replies, told = results[:50], results[50:]
    ends = [last_meta(reply)["finish_reason"]["type"] for reply in replies]
    assert ends[:25] == ["abort"] * 25
    assert set(ends[25:]) <= {"abort", "length"}
    # An abort that comes with the last forward pass is too late.
    assert all(told[index] == 1 for index, end in enumerate(ends) if end == "abort")


@pytest.mark.usefixtures("unharmed")
async def test_20_time_outs(server, prices):
    rng = random.Random(3)
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as api:
        bodies = [work(prices, rng, timeout_s=0.02 + 0.4 * rng.random(), stream=False) for _ in range(20)]
        for body in bodies:
            body.update(text=LONG["text"], sampling_params=LONG["sampling_params"])
        replies = await asyncio.gather(*(api.post("/generate", json=body) for body in bodies))
    assert [reply.status_code for reply in replies] == [504] * 20


@pytest.mark.usefixtures("unharmed")
async def test_a_mix_of_everything_at_once(server, prices):
    """Good requests among bad ones get what they get alone."""
    rng = random.Random(4)
    good = {"text": chat_text(prices, QUESTION), "sampling_params": {"max_new_tokens": 32}, "cache_mode": "dual"}
    bad = [{"text": "red " * 700}, {"text": 5}, {"input_ids": [999]}, {"text": "red", "top_logprobs_num": 2}]
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as api:

        async def one(index):
            kind = index % 4
            if kind == 0:
                return (await api.post("/generate", json=good)).json()["output_ids"]
            if kind == 1:
                return (await api.post("/generate", json=rng.choice(bad))).status_code
            if kind == 2:
                return (await api.post("/generate", json=work(prices, rng, timeout_s=0.05, stream=False))).status_code
            task = asyncio.create_task(api.post("/generate", json=work(prices, rng)))
            await asyncio.sleep(rng.random() * 0.3)
            task.cancel()
            return None

        results = await asyncio.gather(*(one(i) for i in range(60)))
    assert len({tuple(tokens) for tokens in results[::4]}) == 1
    assert set(results[1::4]) == {400}
    assert set(results[2::4]) <= {504, 200}


RAW = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b"\xff\xfe",
    b'{"text": "red",}',
    b'{"text": "red", "sampling_params": {"temperature": NaN}}',
    b'{"text": "red", "sampling_params": {"max_new_tokens": 1e400}}',
    b'{"text": "red", "sampling_params": {"max_new_tokens": 99999999999999999999999999}}',
    b'{"text": "red", "timeout_s": Infinity}',
    b'{"text": "red", "timeout_s": 1' + b"0" * 400 + b"}",
    b'{"text": "red", "sampling_params": {"top_k": NaN}}',
    b'{"text": "red", "sampling_params": {"top_k": Infinity}}',
    b'{"text": "red", "sampling_params": {"temperature": 1' + b"0" * 400 + b"}}",
    b'{"text": "red", "sampling_params": {"threshold": 1' + b"0" * 400 + b"}}",
    b'{"text": "red", "sampling_params": [{"\\ud800": 1}, 5]}',
    b'{"text": "red", "n": 99999999999999999999999999}',
    b'{"text": "red", "priority": 99999999999999999999999999}',
    b'{"input_ids": [99999999999999999999999999]}',
    b'{"text": "red", "canvas": [99999999999999999999999999, -1]}',
    b'{"text": "red", "canvas": [5, -1], "shared_prefix": 99999999999999999999999999}',
    b'{"text": "red", "choices": ["\\ud800"]}',
    b'{"text": "red", "choices": [[99999999999999999999999999]]}',
    b'{"tokens": [99999999999999999999999999]}',
    b'{"text": "\\u0000", "rid": "\\u0000"}',
    b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"text": ' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}",
    b'{"text": "red", "x": ' + b"[" * 900 + b"]" * 900 + b', "n": 0}',
    b'{"text": "red", "x": ' + b"9" * 5000 + b', "n": 0}',
]


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize(
    "route", ["/generate", "/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize", "/score"]
)
def test_bodies_that_are_no_requests(client, route):
    for content in RAW:
        if route == "/generate" and b'"choices"' in content:
            continue  # an unknown field there
        reply = client.post(route, content=content, headers={"content-type": "application/json"})
        assert reply.status_code == 400, (content[:60], reply.text[:300])
        assert reply.json()["error"]["message"], content[:60]


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("logit_bias", f'{{"{token}": 1}}') for token in (" 5", "1_0", "-5", "05", "\u0665", "5.0", "", "9" * 30)),
        *(("logit_bias", f'{{"5": {bias}}}') for bias in ("1" + "0" * 400, "1e999", "NaN", '"1"', "null", "true")),
        ("logit_bias", "[[5, 1]]"),
        ("steps", '1000000000, "schedule": "linear"'),
        ("steps", '1000000000, "strategy": "origin"'),
        ("repetition_penalty", '1e-40, "temperature": 1'),
        ("min_tokens", f'8, "stop_token_ids": {list(range(256))}'),
    ],
)
def test_values_that_would_break_a_forward_are_refused_by_name(client, field, value):
    content = f'{{"text": "red", "max_new_tokens": 16, "{field}": {value}}}'
    reply = client.post("/generate", content=content.encode(), headers={"content-type": "application/json"})
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == field


@pytest.mark.usefixtures("unharmed")
def test_bodies_over_the_limit_are_answered_with_413(server, client):
    huge = json.dumps({"text": "red " * 300_000}).encode()
    for content in (huge, iter([huge[i : i + 65536] for i in range(0, len(huge), 65536)])):
        reply = client.post("/generate", content=content, headers={"content-type": "application/json"})
        assert reply.status_code == 413
        assert "1000000 bytes" in reply.json()["message"]
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as raw:
        raw.sendall(b"POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999999\r\n\r\n")
        assert raw.recv(4096).startswith(b"HTTP/1.1 413")


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("head", [
    b"garbage\r\n\r\n", b"\x00\x01\x02\x03\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00",
    b"POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n",
    b"POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-length: x\r\n\r\n",
    b"POST /generate HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"GET /health HTTP/1.1\r\n" + b"x: " + b"y" * 200_000 + b"\r\n\r\n",
])  # fmt: skip
def test_what_is_no_http(server, head):
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as raw:
        raw.sendall(head)
        raw.shutdown(socket.SHUT_WR)
        reply = b""
        try:
            while chunk := raw.recv(65536):
                reply += chunk
        except ConnectionResetError:
            pass
    assert not reply.startswith(b"HTTP/1.1 5")


@pytest.mark.usefixtures("unharmed")
def test_unknown_routes_and_methods(client):
    for path in ("/nope", "/v1", "/v1/embeddings", "/generate/x", "/%00", "/..%2f..%2fetc/passwd", "/%ff%0a"):
        reply = client.get(path)
        assert reply.status_code == 404, path
        assert reply.json()["error"]["type"] == "NotFoundError"
    assert client.post("/concate_and_append_request", json={}).status_code == 404
    for method, path in (("GET", "/generate"), ("DELETE", "/v1/models"), ("PATCH", "/v1/completions"),
                         ("POST", "/health"), ("PUT", "/tokenize")):  # fmt: skip
        reply = client.request(method, path)
        assert reply.status_code == 405, path
        assert reply.json()["error"]["type"] == "MethodNotAllowedError"
    reply = client.get("/generate")
    assert reply.headers["allow"] == "POST, PUT"
    assert reply.json()["message"] == "GET is not allowed on '/generate'; it takes POST, PUT"


def test_a_body_that_is_no_json(client):
    reply = client.post("/generate", content=b'{"text": "red"', headers={"content-type": "application/json"})
    assert reply.status_code == 400
    assert reply.json()["message"] == "the body is no valid JSON: Expecting ',' delimiter at character 14"
    assert reply.json()["param"] == "body"


def test_other_content_types_are_told_what_to_send(client):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        reply = client.post("/generate", content=b'{"text": "red"}', headers={"content-type": kind})
        assert reply.status_code == 400, kind
        assert "send application/json" in reply.json()["message"]


def last_meta(reply):
    """meta_info of a whole reply, or of a stream's last chunk."""
    if reply.headers["content-type"].startswith("text/event-stream"):
        data = [line.removeprefix("data: ") for line in reply.text.splitlines() if line]
        assert data[-1] == "[DONE]"
        return json.loads(data[-2])["meta_info"]
    return reply.json()["meta_info"]
