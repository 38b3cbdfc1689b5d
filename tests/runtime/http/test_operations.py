"""Keys, limits, logs, profiles: a server with flags of its own."""

from __future__ import annotations

import functools
import gzip
import json
import socket
import threading

import httpx
import pytest

from .process import SLOW, SLOW_SAMPLING, ServerProcess, metric_values, wait_for, wait_idle, wait_load

KEY, ADMIN_KEY = "k-ordinary", "k-admin"

RETRACTIONS = 'shoal:num_retractions_total{model_name="prices"}'


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    """A server with both keys (the admin one from the environment), JSON logs and few places."""
    flags = ("--api-key", KEY, "--json-logs", "--log-requests", "--max-running-requests", "1", "--max-queued-requests",
             "1", "--kv-cache-tokens", "4096", "--max-new-tokens-limit", "512", "--served-model-name", "prices",
             "--default-steps", "16", "--default-max-new-tokens", "16", "--request-timeout-s", "30",
             "--no-enable-cache-report", "--body-timeout-s", "3")  # fmt: skip
    log = tmp_path_factory.mktemp("locked") / "server.log"
    with ServerProcess(log, *flags, environment={"SHOAL_ADMIN_API_KEY": f"{ADMIN_KEY}\n"}) as server:
        yield server


def bearer(key):
    return {"authorization": f"Bearer {key}"}


class TestKeys:
    @pytest.mark.parametrize("path", ["/health", "/ready", "/ping", "/metrics", "/health_generate"])
    def test_probes_need_no_key(self, locked, path):
        assert httpx.get(locked.url + path, timeout=60).status_code == 200
        if path in ("/health", "/ready", "/ping"):
            assert httpx.head(locked.url + path, timeout=60).status_code == 200

    @pytest.mark.parametrize("headers", [{}, bearer("wrong"), {"authorization": "Bearer"}, {"authorization": KEY},
                                         {"authorization": f"Basic {KEY}"}])  # fmt: skip
    @pytest.mark.parametrize("path", ["/v1/models", "/get_model_info", "/server_info", "/get_load", "/docs", "/none"])
    def test_everything_else_does(self, locked, headers, path):
        reply = httpx.get(locked.url + path, headers=headers, timeout=60)
        assert reply.status_code == 401
        assert reply.json()["error"]["code"] == "invalid_api_key"

    def test_either_key_opens_ordinary_routes(self, locked):
        for key in (KEY, ADMIN_KEY):
            reply = httpx.get(f"{locked.url}/v1/models", headers=bearer(key), timeout=60)
            assert reply.json()["data"][0]["id"] == "prices"

    @pytest.mark.parametrize(("method", "path"), [("POST", "/flush_cache"), ("GET", "/cache"), ("GET", "/cache/"),
                                                  ("POST", "/abort_request"), ("POST", "/start_profile")])  # fmt: skip
    def test_admin_routes_need_the_admin_key(self, locked, method, path):
        asked, url = functools.partial(httpx.request, timeout=60), locked.url + path
        ordinary = asked(method, url, headers=bearer(KEY), json={})
        assert ordinary.status_code == 401
        assert "needs the admin key" in ordinary.json()["message"]
        assert "the key that was sent is the ordinary one" in ordinary.json()["message"]
        assert "ordinary" not in asked(method, url, headers=bearer("wrong"), json={}).json()["message"]
        reply = asked(method, url, headers=bearer(ADMIN_KEY), json={"rid": "none"})
        assert reply.status_code == {"/cache/": 307, "/start_profile": 400}.get(path, 200)

    @pytest.mark.parametrize(("route", "body"), [
        ("/generate", {"text": "red"}), ("/score", {"text": "red", "choices": ["blue"]}),
        ("/v1/completions", {"prompt": "red"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "red"}]}),
    ])  # fmt: skip
    def test_only_the_admin_key_goes_before_all_others(self, locked, route, body):
        """Nobody has raised --max-priority."""
        for key, priority, status in ((KEY, 1, 400), (KEY, 0, 200), (KEY, -1, 200), (ADMIN_KEY, 1000, 200)):
            reply = httpx.post(locked.url + route, json={**body, "priority": priority}, headers=bearer(key), timeout=60)
            assert reply.status_code == status, reply.text
            assert status == 200 or "--max-priority" in reply.json()["message"]

    def test_keys_are_shown_nowhere(self, locked):
        info = httpx.get(f"{locked.url}/server_info", headers=bearer(KEY), timeout=60).text
        for text in (info, locked.log_text(), httpx.get(f"{locked.url}/metrics", timeout=60).text):
            assert KEY not in text
            assert ADMIN_KEY not in text


def test_logs_are_json_and_say_what_users_look_for(locked):
    with locked.client() as client:
        reply = client.post("/generate", json={"text": "red"}, headers={"x-request-id": "log-me"})
        assert reply.status_code == 200

    def whole_log() -> str:
        text = locked.log_text()
        return text if '"rid":"log-me"}' in text and text.endswith("\n") else ""

    # The line comes after the reply.
    lines = [json.loads(line) for line in wait_for(whole_log).splitlines()]
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


@pytest.mark.parametrize("size", [{}, {"max_tokens": 1}, {"max_tokens": 33}, {"max_tokens": 100}, {"block_length": 5},
                                  {"max_tokens": 12, "block_length": 4}, {"block_length": 64}])  # fmt: skip
@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
def test_default_steps_and_length_adapt_to_what_the_client_sends(locked, route, size):
    """The server's are 16 steps, 16 tokens, and the model's blocks of 8: steps are spread, early blocks first."""
    prompt = {"prompt": "red"} if "chat" not in route else {"messages": [{"role": "user", "content": "red"}]}
    with locked.client() as client:
        reply = client.post(route, json={**prompt, **size, "ignore_eos": True})
    assert reply.status_code == 200, reply.text
    length, block = size.get("max_tokens", 16), size.get("block_length", 8)
    masks = [min(block, length - start) for start in range(0, length, block)]
    base, extra = divmod(16, len(masks))
    info = reply.json()["choices"][0]["meta_info"]
    assert info["canvas_tokens"] == length
    assert info["nfe"] == sum(min(max(1, base + (i < extra)), count) for i, count in enumerate(masks))


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
        assert client.get("/get_load").json()[0]["num_reqs"] == 2
        assert reply.status_code == 503
        assert reply.headers["retry-after"]
        assert reply.json()["error"]["type"] == "QueueFullError"
        assert reply.json()["error"]["retryable"] is True
        client.post("/abort_request", json={"abort_all": True}, headers=bearer(ADMIN_KEY)).raise_for_status()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        wait_idle(client, name="prices")


def test_a_probe_puts_nobody_back(locked):
    """The one place is taken by a request that any ordinary one would preempt."""
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
        thread.join(60)
        (reply,) = replies
        assert reply.json()["meta_info"]["finish_reason"]["type"] == "abort"
        assert reply.json()["meta_info"]["num_retractions"] == 0
        assert metric_values(client)[RETRACTIONS] == before
        wait_idle(client, name="prices")


def test_a_time_out_is_a_504_also_while_it_waits(locked):
    with locked.client() as client:
        runs = threading.Thread(target=client.post, args=("/generate",), kwargs={"json": {**SLOW, "rid": "runs"}})
        runs.start()
        wait_load(client, 1)
        waits = client.post("/generate", json={"text": "red", "timeout_s": 0.3})
        assert waits.status_code == 504
        assert waits.json()["error"]["type"] == "RequestTimeoutError"
        assert client.get("/get_load").json()[0]["num_reqs"] == 1  # the other one still runs
        client.post("/abort_request", json={"rid": "runs"}, headers=bearer(ADMIN_KEY)).raise_for_status()
        runs.join(60)
        running = client.post("/generate", json={**SLOW, "timeout_s": 0.3})
        assert running.status_code == 504
        assert "timeout_s = 0.3 seconds (it was running)" in running.json()["message"]
        # Blocks of one token: the first text comes with the first of 512 forward passes.
        body = {**SLOW, "sampling_params": {**SLOW_SAMPLING, "block_length": 1}, "stream": True}
        status, seconds, data = 504, 1.0, list[str]()
        while status == 504:  # this machine takes longer for the first text
            with client.stream("POST", "/generate", json={**body, "timeout_s": seconds}) as stream:
                status, data = stream.status_code, [line.removeprefix("data: ") for line in stream.iter_lines() if line]
            seconds *= 2
        assert data[-1] == "[DONE]"
        assert json.loads(data[0])["meta_info"]["finish_reason"] is None
        assert json.loads(data[-2])["error"]["type"] == "RequestTimeoutError"
        wait_idle(client, name="prices")


def test_one_request_with_more_parts_than_the_queue_has_places_takes_turns(locked):
    """One place to run and one to wait: a 503 would ask its client to try again for ever."""
    small = {"max_new_tokens": 8, "steps": 1, "block_length": 8, "ignore_eos": True}
    with locked.client() as client:
        batch = client.post("/generate", json={"text": [f"{n}" for n in range(5)], "sampling_params": small})
        assert batch.status_code == 200, batch.text
        assert [one["meta_info"]["finish_reason"]["type"] for one in batch.json()] == ["length"] * 5
        answers = client.post("/v1/completions", json={"prompt": ["1", "2"], "n": 3, "max_tokens": 8, "steps": 1})
        assert [choice["index"] for choice in answers.json()["choices"]] == list(range(6))
        scored = client.post("/score", json={"input_ids": [80], "choices": [[81, 82, 83], [84, 85, 86, 87]]})
        assert scored.status_code == 200, scored.text
        assert scored.json()["meta_info"]["nfe"] == 7 + 1
        wait_idle(client, name="prices")


def test_a_body_that_does_not_come_is_a_408(locked):
    with socket.create_connection(("127.0.0.1", locked.port), timeout=60) as raw:
        head = f"POST /generate HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\n"
        raw.sendall(f"{head}content-length: 100\r\n\r\n{{".encode())
        assert raw.recv(4096).startswith(b"HTTP/1.1 408")


PROFILED = {"text": "red", "sampling_params": {"max_new_tokens": 16, "steps": 16, "ignore_eos": True}}


class TestProfiles:
    @pytest.fixture
    def admin(self, locked):
        with httpx.Client(base_url=locked.url, headers=bearer(ADMIN_KEY), timeout=120) as admin:
            yield admin

    def test_a_trace_of_what_the_worker_does_while_it_serves(self, locked, admin, tmp_path):
        body = {"output_dir": str(tmp_path / "new"), "activities": ["CPU", "GPU"], "record_shapes": True}
        started = admin.post("/start_profile", json=body).json()
        again = admin.post("/start_profile", json=body)
        assert (again.status_code, again.json()["param"]) == (400, "start_profile")
        assert started["path"] in again.json()["message"]
        reply = admin.post("/generate", json=PROFILED)
        assert reply.json()["meta_info"]["nfe"] == 16
        assert not list((tmp_path / "new").iterdir())
        stopped = admin.post("/stop_profile").json()
        assert stopped == {"profiling": False, "path": started["path"]}
        names = traced(stopped["path"])
        assert sum(str(name).startswith("aten::") for name in names) > 16
        none = admin.post("/stop_profile")
        assert none.status_code == 400
        assert f"the last one went to {started['path']}" in none.json()["message"]
        assert admin.post("/generate", json=PROFILED).json()["output_ids"] == reply.json()["output_ids"]
        assert all(line.startswith("{") for line in locked.log_text().splitlines())

    def test_it_ends_by_itself_after_so_many_steps(self, admin, tmp_path):
        path = admin.post("/start_profile", json={"output_dir": str(tmp_path), "num_steps": 4}).json()["path"]
        admin.post("/generate", json=PROFILED).raise_for_status()
        assert admin.post("/stop_profile").status_code == 400
        assert any(str(name).startswith("aten::") for name in traced(path))

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            ({}, "output_dir is missing"),
            ({"output_dir": "/proc/nowhere"}, "can write to"),
            ({"output_dir": "a\0b"}, "output_dir"),
            ({"output_dir": "\ud800"}, "output_dir"),
            ({"output_dir": "/tmp", "num_steps": 0}, "num_steps is 0"),
            ({"output_dir": "/tmp", "num_steps": 501}, "from 1 to 500"),
            ({"output_dir": "/tmp", "num_steps": True}, "num_steps"),
            ({"output_dir": "/tmp", "activities": ["MEM"]}, "activities"),
            ({"output_dir": "/tmp", "activities": []}, "activities"),
            ({"output_dir": "/tmp", "start_step": 3}, "start_step is 3"),
            ({"output_dir": "/tmp", "profile_by_stage": True}, "profile_by_stage"),
        ],
        ids=str,
    )
    def test_what_can_not_be_recorded_is_refused_by_name(self, admin, body, words):
        headers = {"content-type": "application/json"}
        reply = admin.post("/start_profile", content=json.dumps(body), headers=headers)
        assert reply.status_code == 400, reply.text
        assert words in reply.json()["message"]
        assert admin.post("/stop_profile").status_code == 400

    def test_who_has_no_key_does_not_choose_where_files_are_written(self, server, client, tmp_path):
        for folder in (str(tmp_path), "../other", str(server.log.parent)):
            reply = client.post("/start_profile", json={"output_dir": folder})
            assert reply.status_code == 400
            assert "outside of --profile-dir" in reply.json()["message"]
        inside = client.post("/start_profile", json={"output_dir": "one/two"}).json()["path"]
        assert inside.startswith(str(server.log.parent / "profiles" / "one" / "two"))
        assert client.post("/stop_profile").json()["path"] == inside


def traced(path):
    """Names of the events in a trace."""
    with gzip.open(path) as file:
        return [event.get("name") for event in json.load(file)["traceEvents"]]


def test_limits_of_new_tokens(locked):
    with locked.client() as client:
        reply = client.post("/generate", json={"text": "red", "sampling_params": {"max_new_tokens": 513}})
    assert reply.status_code == 400
    assert "at most 512" in reply.json()["message"]
