"""A server process from its start to its end: ready, draining, signals, options that can't be."""

from __future__ import annotations

import json
import signal
import threading
import time
from typing import Any

import httpx
import pytest

from shoal.launch_server import main, parse

from .process import SLOW, ServerProcess, wait_for, wait_load


def asking(
    server: ServerProcess, body: dict[str, Any], path: str = "/generate"
) -> tuple[threading.Thread, list[httpx.Response]]:
    """A thread, not started, that sends `body`, and the list that its reply goes to."""
    replies: list[httpx.Response] = []

    def ask() -> None:
        replies.append(httpx.post(f"{server.url}{path}", json=body, timeout=120))

    return threading.Thread(target=ask), replies


def test_503_until_warm_then_drains_on_sigterm(tmp_path):
    """Requests under way finish, new ones are refused, health says 503, the exit code is 0."""
    flags = ("--kv-cache-tokens", "4096", "--drain-timeout", "600")
    with ServerProcess(tmp_path / "log", *flags, wait=False) as server:
        statuses = early_statuses(server)
        assert 503 in statuses
        assert statuses[-1] == 200
        with server.client() as client:
            reply = client.post("/generate", json={"text": "red", "max_new_tokens": 8})
        assert reply.status_code == 200
        body = {"text": "red", "sampling_params": {"max_new_tokens": 32, "steps": 32, "ignore_eos": True}}
        thread, replies = asking(server, body)
        with server.client() as client, server.worker_held():
            thread.start()
            wait_load(client, 1)
            server.process.send_signal(signal.SIGTERM)
            wait_for(lambda: client.get("/health").status_code == 503)
            assert client.post("/generate", json={"text": "red"}).status_code == 503
            assert client.get("/ping").json() == {"status": "draining"}
        thread.join(120)
        assert replies[0].status_code == 200
        assert replies[0].json()["meta_info"]["completion_tokens"] == 32
        assert server.process.wait(60) == 0
    assert "Draining: 1 requests" in server.log_text()


def test_what_does_not_end_in_time_is_ended(tmp_path):
    flags = ("--null-worker", "--null-tokens", "1", "--null-delay-s", "0.05", "--drain-timeout", "0.5")
    with ServerProcess(tmp_path / "log", *flags) as server:
        choices = {"text": "red", "choices": [[5] * 200] * 8}
        askers = [asking(server, {**SLOW, "n": 2}), asking(server, {**SLOW, "stream": True}),
                  asking(server, choices, "/score"), asking(server, SLOW)]  # fmt: skip
        for thread, _ in askers[:3]:
            thread.start()
        with server.client() as client:
            wait_load(client, 4)
            server.process.send_signal(signal.SIGSTOP)  # what it finds when it goes on: a request and the signal
            askers[3][0].start()
            begin = time.monotonic()
            server.process.send_signal(signal.SIGINT)
            server.process.send_signal(signal.SIGCONT)
        assert server.process.wait(60) == 0
        assert time.monotonic() - begin < 8
        for thread, _ in askers:
            thread.join(60)
        (whole,), (stream,), (scores,), (late,) = (replies for _, replies in askers)
    for reply in (whole, scores, late):
        assert reply.status_code == 503, reply.text
        assert reply.headers["retry-after"]
        assert reply.json()["error"]["retryable"] is True
    assert "shutting down" in whole.json()["message"]
    data = [line.removeprefix("data: ") for line in stream.text.splitlines() if line]
    assert stream.status_code == 200
    assert data[-1] == "[DONE]"
    end = json.loads(data[-2])["error"]
    assert (end["type"], end["code"], end["retryable"]) == ("ServiceUnavailableError", 503, True)
    assert not any("abort" in line for line in data[:-2])


def test_a_second_signal_cuts_the_waiting_short(tmp_path):
    """Also without a standard input; the request would take 25 seconds."""
    flags = ("--null-worker", "--null-tokens", "1", "--null-delay-s", "0.05", "--drain-timeout", "600")
    with ServerProcess(tmp_path / "log", *flags, has_stdin=False) as server:
        thread, replies = asking(server, SLOW)
        thread.start()
        with server.client() as client:
            wait_load(client, 1)
            server.process.send_signal(signal.SIGTERM)
            wait_for(lambda: client.get("/health").status_code == 503)
            assert client.get("/get_load").status_code == 503
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 0
        thread.join(60)
        assert replies[0].status_code == 503
        assert replies[0].headers["retry-after"]


def test_signals_that_come_late_do_not_change_how_it_ends(tmp_path):
    """All that is left to do then is to end: one who is impatient must not make it look like a crash."""
    with ServerProcess(tmp_path / "log", "--null-worker") as server:
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "Draining" in server.log_text())
        while server.process.poll() is None:
            server.process.send_signal(signal.SIGINT)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.005)
        assert server.process.returncode == 0
        assert "Traceback" not in server.log_text()


def test_a_signal_while_it_starts(tmp_path):
    with ServerProcess(tmp_path / "log", wait=False) as server, server.client() as client:
        assert client.get("/health").status_code == 503
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (("--port", "70000"), 2, "port is 70000"),
        (("--host", "256.1.1.1"), 2, "host is"),
        (("--default-steps", "4", "--default-threshold", "0.5"), 2, "at most one of"),
        (("--page-size", "0"), 2, "page_size"),
        (("--profile-dir", "/dev/null/traces"), 2, "profile_dir is '/dev/null/traces'"),
        (("--api-key", " "), 2, "api_key must be"),
        (("--admin-api-key", "a\nb"), 2, "admin_api_key must be"),
        (("--allowed-hosts", "http://a.example"), 2, "allowed_hosts is 'http://a.example'"),
        (("--allowed-origins", "a.example"), 2, "allowed_origins is 'a.example'"),
        (("--no-such-flag",), 2, "--no-such-flag"),
        (("--model-path", "no/such/model"), 2, "no/such/model"),
        (("shop",), 2, "the model is given twice: shop and --model-path shop"),
        (("shop", "shoe"), 2, "unrecognized arguments: shoe"),
        (("--device", "tpu"), 2, "device is 'tpu'"),
        (("--depth", "100"), 2, "depth is 100"),  # the worker finds out
        (("--depth", "100", "--in-process"), 2, "depth is 100"),
        (("--null-worker", "--kv-cache-tokens", "1"), 2, "kv_cache_tokens is 1; it must be room for at least 9 tokens"),
        (
            ("--null-worker", "--default-max-new-tokens", "640"),
            2,
            "default_max_new_tokens is 640; it must be at most 639",
        ),
        (("--startup-timeout-s", "0.2"), 1, "startup_timeout_s = 0.2"),
    ],
)
def test_options_that_cannot_be_end_it_in_words(tmp_path, flags, code, words):
    server = ServerProcess(tmp_path / "log", *flags)
    assert server.process.wait(120) == code
    assert server.log_text().count(words) == 1
    assert "Traceback" not in server.log_text()


@pytest.mark.parametrize("name", ["SHOAL_API_KEY", "SHOAL_ADMIN_API_KEY"])
@pytest.mark.parametrize("key", ["", " \n"])
def test_an_empty_key_in_the_environment_is_no_open_server(monkeypatch, capsys, name, key):
    """A secret that is missing, most likely."""
    monkeypatch.setenv(name, key)
    assert main(["--model-path", "shop", "--port", "0"]) == 2
    assert f"{name} is set but empty" in capsys.readouterr().err


def test_the_model_may_be_given_as_shoal_generate_takes_it():
    for arguments in (["x/y", "--port", "7"], ["--port", "7", "x/y"], ["--port", "7", "--model-path", "x/y"]):
        namespace = parse(arguments)
        assert (namespace.model_path, namespace.port) == ("x/y", 7)
    assert "model_path" not in parse(["--port", "7"])


def test_a_port_in_use(tmp_path, server):
    second = ServerProcess(tmp_path / "log", "--port", str(server.port))
    assert second.process.wait(120) == 2
    assert f"port is {server.port}" in second.log_text()


def early_statuses(server):
    """Of /health, from the moment in which it listens: the model takes seconds to load."""
    statuses: list[int] = []
    with server.client() as client:

        def is_ready():
            statuses.append(client.get("/health").status_code)
            return statuses[-1] == 200

        wait_for(is_ready, 180)
    return statuses
