"""Keys, limits, health, logs, metrics, ids, draining: servers with flags of their own."""

from __future__ import annotations

import json
import random
import signal
import socket
import threading
import time

import httpx
import pytest

from shoal.shop.task import ask_price

from .process import ServerProcess, chat_text, metric_values, wait_idle

KEY, ADMIN_KEY = "k-ordinary", "k-admin"
SLOW_SAMPLING = {"max_new_tokens": 512, "steps": 512, "block_length": 8, "ignore_eos": True}
SLOW = {"text": "red", "sampling_params": SLOW_SAMPLING, "cache_mode": "dual"}

RETRACTIONS = 'shoal:num_retractions_total{model_name="prices"}'


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    """A server with both keys (the admin one from the environment), JSON logs and few places."""
    flags = ("--api-key", KEY, "--json-logs", "--log-requests", "--max-running-requests", "1", "--max-queued-requests",
             "1", "--kv-cache-tokens", "4096", "--max-new-tokens-limit", "512", "--served-model-name", "prices",
             "--default-steps", "16", "--default-max-new-tokens", "16", "--request-timeout-s", "30",
             "--no-enable-cache-report", "--body-timeout-s", "1.5")  # fmt: skip
    log = tmp_path_factory.mktemp("locked") / "server.log"
    with ServerProcess(log, *flags, environment={"SHOAL_ADMIN_API_KEY": ADMIN_KEY}) as server:
        yield server


def bearer(key):
    return {"authorization": f"Bearer {key}"}


class TestKeys:
    @pytest.mark.parametrize("path", ["/health", "/ready", "/ping", "/metrics", "/health_generate"])
    def test_probes_need_no_key(self, locked, path):
        assert httpx.get(locked.url + path).status_code == 200

    @pytest.mark.parametrize("headers", [{}, bearer("wrong"), {"authorization": "Bearer"}, {"authorization": KEY},
                                         {"authorization": f"Basic {KEY}"}])  # fmt: skip
    @pytest.mark.parametrize("path", ["/v1/models", "/get_model_info", "/server_info", "/get_load", "/docs", "/none"])
    def test_everything_else_does(self, locked, headers, path):
        reply = httpx.get(locked.url + path, headers=headers)
        assert reply.status_code == 401
        assert reply.json()["error"]["code"] == "invalid_api_key"

    def test_either_key_opens_ordinary_routes(self, locked):
        for key in (KEY, ADMIN_KEY):
            assert httpx.get(f"{locked.url}/v1/models", headers=bearer(key)).json()["data"][0]["id"] == "prices"

    @pytest.mark.parametrize(("method", "path"), [("POST", "/flush_cache"), ("GET", "/cache"), ("GET", "/cache/"),
                                                  ("POST", "/abort_request"), ("POST", "/start_profile")])  # fmt: skip
    def test_admin_routes_need_the_admin_key(self, locked, method, path):
        assert httpx.request(method, locked.url + path, headers=bearer(KEY), json={}).status_code == 401
        reply = httpx.request(method, locked.url + path, headers=bearer(ADMIN_KEY), json={"rid": "none"})
        assert reply.status_code in (200, 307, 501)

    def test_keys_are_shown_nowhere(self, locked):
        info = httpx.get(f"{locked.url}/server_info", headers=bearer(KEY)).text
        for text in (info, locked.log_text(), httpx.get(f"{locked.url}/metrics").text):
            assert KEY not in text
            assert ADMIN_KEY not in text


def test_logs_are_json_and_say_what_users_look_for(locked):
    with locked.client() as client:
        reply = client.post("/generate", json={"text": "red"}, headers={"x-request-id": "log-me"})
        assert reply.status_code == 200
    lines = [json.loads(line) for line in locked.log_text().splitlines()]
    assert any(line["message"] == "The server is fired up and ready to roll!" for line in lines)
    (access,) = [line["http"] for line in lines if line.get("http", {}).get("rid") == "log-me"]
    assert access["path"] == "/generate"
    assert access["status"] == 200
    (request,) = [line["request"] for line in lines if line.get("request", {}).get("rid") == "log-me"]
    assert request["finish_reason"] in ("stop", "length")


def test_server_defaults_of_decoding(locked):
    with locked.client() as client:
        info = client.post("/generate", json={"text": "red", "ignore_eos": True}).json()["meta_info"]
        assert (info["completion_tokens"], info["nfe"]) == (16, 16)
        own = client.post("/generate", json={"text": "red", "ignore_eos": True, "threshold": 0.01}).json()["meta_info"]
        assert own["nfe"] < 16
        usage = client.post("/v1/completions", json={"prompt": "red"}).json()["usage"]
        assert "prompt_tokens_details" not in usage


def test_a_full_queue_is_answered_with_503(locked):
    """One runs, one waits; the third is refused at once and told to try again."""
    with locked.client() as client:
        threads = [threading.Thread(target=client.post, args=("/generate",), kwargs={"json": SLOW}) for _ in range(2)]
        threads[0].start()
        wait_load(client, 1)
        threads[1].start()
        wait_load(client, 2)
        reply = client.post("/generate", json=SLOW)
        assert client.get("/health_generate").status_code == 200  # full, and well
        assert reply.status_code == 503
        assert reply.headers["retry-after"]
        assert reply.json()["error"]["type"] == "QueueFullError"
        assert reply.json()["error"]["retryable"] is True
        client.post("/abort_request", json={"abort_all": True}, headers=bearer(ADMIN_KEY)).raise_for_status()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        wait_idle(client, name="prices")


def test_a_probe_puts_nobody_back(locked):
    """The one place is taken by a request that would give way to any ordinary one."""
    with locked.client() as client:
        before = metric_values(client)[RETRACTIONS]
        replies: list[httpx.Response] = []
        body = {**SLOW, "priority": -5, "rid": "gives-way"}
        thread = threading.Thread(target=lambda: replies.append(client.post("/generate", json=body)))
        thread.start()
        wait_load(client, 1)
        for _ in range(3):
            assert client.get("/health_generate").status_code == 200
        client.post("/abort_request", json={"rid": "gives-way"}, headers=bearer(ADMIN_KEY)).raise_for_status()
        thread.join(20)
        (reply,) = replies
        assert reply.json()["meta_info"]["finish_reason"]["type"] == "abort"
        assert reply.json()["meta_info"]["num_retractions"] == 0
        assert metric_values(client)[RETRACTIONS] == before
        wait_idle(client, name="prices")


def test_a_time_out_is_a_504_also_while_it_waits(locked):
    with locked.client() as client:
        runs = threading.Thread(target=client.post, args=("/generate",), kwargs={"json": {**SLOW, "timeout_s": 2}})
        runs.start()
        wait_load(client, 1)
        begin = time.monotonic()
        waits = client.post("/generate", json={"text": "red", "timeout_s": 0.3})
        assert waits.status_code == 504
        assert waits.json()["error"]["type"] == "RequestTimeoutError"
        assert time.monotonic() - begin < 2.5
        runs.join(20)
        running = client.post("/generate", json={**SLOW, "timeout_s": 0.3})
        assert running.status_code == 504
        body = {**SLOW, "cache_mode": "none", "timeout_s": 4, "stream": True}  # first text soon, the end in a minute
        with client.stream("POST", "/generate", json=body) as stream:
            data = [line.removeprefix("data: ") for line in stream.iter_lines() if line]
        assert data[-1] == "[DONE]"
        assert json.loads(data[-2])["error"]["type"] == "RequestTimeoutError"
        wait_idle(client, name="prices")


def test_a_body_that_does_not_come_is_a_408(locked):
    with socket.create_connection(("127.0.0.1", locked.port), timeout=10) as raw:
        head = f"POST /generate HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: 100\r\n\r\n{{"
        raw.sendall(head.encode())
        assert raw.recv(4096).startswith(b"HTTP/1.1 408")


def test_limits_of_new_tokens(locked):
    with locked.client() as client:
        reply = client.post("/generate", json={"text": "red", "sampling_params": {"max_new_tokens": 513}})
    assert reply.status_code == 400
    assert "at most 512" in reply.json()["message"]


def test_request_ids(client):
    body = {"text": "red", "sampling_params": {"max_new_tokens": 8}}
    by_header = client.post("/generate", json=body, headers={"X-Request-ID": "abc-1"})
    assert by_header.headers["x-request-id"] == by_header.json()["meta_info"]["id"] == "abc-1"
    by_body = client.post("/generate", json={**body, "rid": "abc-2"}, headers={"X-Request-ID": "abc-1"})
    assert by_body.headers["x-request-id"] == by_body.json()["meta_info"]["id"] == "abc-2"
    several = client.post("/generate", json={**body, "text": ["red", "blue"], "rid": ["x", "y"]}).json()
    assert [one["meta_info"]["id"] for one in several] == ["x", "y"]
    drawn = client.post("/generate", json={**body, "rid": "z", "n": 2}).json()
    assert [one["meta_info"]["id"] for one in drawn] == ["z.0", "z.1"]
    chat = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "red"}], "max_tokens": 8},
                       headers={"x-request-id": "abc-3"})  # fmt: skip
    assert chat.json()["id"] == "chatcmpl-abc-3"
    odd = client.post("/generate", json=body, headers={"x-request-id": "two words"})
    assert odd.headers["x-request-id"] != "two words"


def test_an_id_in_use_is_refused_and_abort_ends_all_of_a_request(client):
    body = {**SLOW, "rid": "group", "text": ["red", "blue"], "n": 2}
    replies = []
    thread = threading.Thread(target=lambda: replies.append(client.post("/generate", json=body)))
    thread.start()
    wait_load(client, 4)
    assert client.post("/generate", json={"text": "red", "rid": "group"}).status_code == 400
    assert client.post("/abort_request", json={"rid": "group"}).json() == {"aborted": 4}
    thread.join(20)
    assert [one["meta_info"]["finish_reason"]["type"] for one in replies[0].json()] == ["abort"] * 4
    assert client.post("/abort_request", json={"rid": "group"}).json() == {"aborted": 0}
    assert client.post("/abort_request", json={}).status_code == 400
    wait_idle(client)


def test_flush_refuses_while_requests_run_and_waits_when_asked(client, prices):
    text = chat_text(prices, "Which things are red?")
    client.post("/generate", json={"text": text, "max_new_tokens": 8}).raise_for_status()
    assert client.get("/cache").json()["num_nodes"] > 0
    slow = {"text": text, "sampling_params": {**SLOW_SAMPLING, "max_new_tokens": 192, "steps": 192}, "rid": "holds"}
    thread = threading.Thread(target=client.post, args=("/generate",), kwargs={"json": slow})
    thread.start()
    wait_load(client, 1)
    refused = client.post("/flush_cache")
    assert refused.status_code == 400
    assert client.get("/cache").json()["num_nodes"] > 0
    threading.Timer(0.5, client.post, ("/abort_request",), {"json": {"rid": "holds"}}).start()
    assert client.post("/flush_cache?timeout=20").status_code == 200
    thread.join(20)
    assert client.get("/cache").json()["num_nodes"] == 0
    assert client.get("/flush_cache").text == "Cache flushed.\n"
    assert client.post("/flush_cache?timeout=-1").status_code == 400
    assert client.post("/flush_cache?timeout=soon").status_code == 400


def test_information_has_what_clients_read(client):
    for path in ("/model_info", "/get_model_info"):
        info = client.get(path).json()
        assert info["model_path"] == "shop"
        assert info["is_generation"] is True
        assert info["tokenizer_path"].endswith("model")
    for path in ("/server_info", "/get_server_info"):
        info = client.get(path).json()
        assert info["page_size"] == 16
        assert info["tp_size"] == info["dp_size"] == 1
        assert info["served_model_name"] == info["model_path"] == "shop"
        assert info["internal_states"][0]["memory_usage"]["token_capacity"] == 16384
    assert client.get("/get_load").json()[0].keys() == {"dp_rank", "num_reqs", "num_waiting_reqs", "num_tokens"}
    assert client.get("/v1/loads").json()["loads"][0]["num_total_reqs"] == 0
    schema = client.get("/openapi.json").json()
    assert {"/generate", "/v1/completions", "/v1/chat/completions"} <= set(schema["paths"])
    assert "swagger" in client.get("/docs").text.lower()


def test_tokenize_and_detokenize(client, prices):
    text = chat_text(prices, "Which things are red?")
    ids = client.post("/tokenize", json={"prompt": text}).json()
    assert ids["count"] == len(ids["tokens"])
    messages = [{"role": "system", "content": prices.text}, {"role": "user", "content": "Which things are red?"}]
    assert client.post("/tokenize", json={"messages": messages}).json()["tokens"] == ids["tokens"]
    many = client.post("/tokenize", json={"prompt": ["red", text]}).json()
    assert many["tokens"][1] == ids["tokens"]
    assert many["count"] == [1, ids["count"]]
    back = client.post("/detokenize", json={"tokens": ids["tokens"], "skip_special_tokens": False}).json()["text"]
    assert back == text
    plain = client.post("/detokenize", json={"tokens": [ids["tokens"], many["tokens"][0]]}).json()["text"]
    assert plain[1] == "red"
    assert "<|" not in plain[0]
    for path, body in (("/tokenize", {}), ("/tokenize", {"prompt": "a", "messages": []}), ("/tokenize", {"prompt": 5}),
                       ("/detokenize", {"tokens": [999]}), ("/detokenize", {"tokens": ["a"]}),
                       ("/detokenize", {"tokens": [[1], 2]}), ("/tokenize", {"prompt": ["a"] * 65})):  # fmt: skip
        assert client.post(path, json=body).status_code == 400, body


def test_metrics_count_what_happened(client, prices):
    wait_idle(client)
    before = metric_values(client)
    question = ask_price(random.Random(1), prices, json=False)
    for _ in range(2):
        client.post("/generate", json={"text": chat_text(prices, question.text), "cache_salt": "metrics",
                                       "sampling_params": {"max_new_tokens": 8}})  # fmt: skip
    after = metric_values(client)

    def grew(name, labels='{model_name="shop"}'):
        return after[f"shoal:{name}{labels}"] - before.get(f"shoal:{name}{labels}", 0)

    assert grew("num_requests_total") == 2
    assert grew("generation_tokens_total") == 4
    assert grew("prefix_cache_hits_total") == 1
    assert grew("cached_tokens_total") > 50
    assert grew("reused_token_layers_total") == grew("cached_tokens_total") * 8
    assert grew("nfe_total") >= 2
    assert grew("prefix_refreshes_total") >= 2
    assert grew("e2e_request_latency_seconds_count") == grew("time_to_first_token_seconds_count") == 2
    assert grew("http_requests_total", '{route="/generate",status="200"}') == 2
    assert after['shoal:pages{held="requests",model_name="shop",pool="kv"}'] == 0


def test_prompts_times_n_are_limited(client):
    reply = client.post("/generate", json={"text": ["red"] * 17, "n": 4, "max_new_tokens": 0})
    assert reply.status_code == 400
    assert "68 answers; this server gives at most 64" in reply.json()["message"]


def test_health_generate(client):
    assert client.get("/health_generate").json() == {"status": "up"}


def wait_load(client, count, seconds=20.0):
    deadline = time.monotonic() + seconds
    while client.get("/get_load").json()[0]["num_reqs"] < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


class TestLife:
    def test_503_until_warm_then_drains_on_sigterm(self, tmp_path):
        """Requests under way finish, new ones are refused, health says 503, the exit code is 0."""
        with ServerProcess(tmp_path / "log", "--kv-cache-tokens", "4096", wait=False) as server:
            statuses = early_statuses(server)
            assert 503 in statuses
            assert statuses[-1] == 200
            reply = httpx.post(f"{server.url}/generate", json={"text": "red", "max_new_tokens": 8})
            assert reply.status_code == 200
            replies: list[httpx.Response] = []
            body = {**SLOW, "sampling_params": {**SLOW_SAMPLING, "max_new_tokens": 96, "steps": 96}}
            thread = threading.Thread(
                target=lambda: replies.append(httpx.post(f"{server.url}/generate", json=body, timeout=60))
            )
            thread.start()
            with server.client() as client:
                wait_load(client, 1)
                server.process.send_signal(signal.SIGTERM)
                deadline = time.monotonic() + 5
                while client.get("/health").status_code != 503:
                    assert time.monotonic() < deadline
                assert client.post("/generate", json={"text": "red"}).status_code == 503
                assert client.get("/ping").json() == {"status": "draining"}
            thread.join(60)
            assert replies[0].status_code == 200
            assert replies[0].json()["meta_info"]["completion_tokens"] == 96
            assert server.process.wait(20) == 0
        assert "Draining: 1 requests" in server.log_text()

    def test_what_does_not_end_in_time_is_ended(self, tmp_path):
        with ServerProcess(tmp_path / "log", "--kv-cache-tokens", "4096", "--drain-timeout", "0.5") as server:
            replies: list[httpx.Response] = []
            thread = threading.Thread(
                target=lambda: replies.append(httpx.post(f"{server.url}/generate", json=SLOW, timeout=60))
            )
            thread.start()
            with server.client() as client:
                wait_load(client, 1)
            begin = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(20) == 0
            assert time.monotonic() - begin < 8
            thread.join(20)
            assert replies[0].status_code == 503 or replies[0].json()["meta_info"]["finish_reason"]["type"] == "abort"

    @pytest.mark.parametrize(
        ("flags", "code", "words"),
        [
            (("--port", "70000"), 2, "port is 70000"),
            (("--host", "256.1.1.1"), 2, "host is"),
            (("--default-steps", "4", "--default-threshold", "0.5"), 2, "at most one of"),
            (("--page-size", "0"), 2, "page_size"),
            (("--no-such-flag",), 2, "--no-such-flag"),
            (("--model-path", "no/such/model"), 1, "no/such/model"),
        ],
    )
    def test_options_that_cannot_be_end_it_in_words(self, tmp_path, flags, code, words):
        server = ServerProcess(tmp_path / "log", *flags)
        assert server.process.wait(60) == code
        assert words in server.log_text()
        assert "Traceback" not in server.log_text()

    def test_a_port_in_use(self, tmp_path, server):
        second = ServerProcess(tmp_path / "log", "--port", str(server.port))
        assert second.process.wait(60) == 2
        assert f"port is {server.port}" in second.log_text()


def early_statuses(server):
    statuses: list[int] = []
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not statuses or statuses[-1] != 200):
        try:
            statuses.append(httpx.get(f"{server.url}/health").status_code)
        except httpx.TransportError:
            time.sleep(0.01)
    return statuses
