"""Limits on heads, silence and connections: raw sockets against a server with small limits."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import resource
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from shoal.runtime.errors import ConfigError
from shoal.runtime.http.config import ServerConfig
from shoal.runtime.http.connection_limits import ConnectionLimits

from .process import ServerProcess, wait_for

MOST = 8
FLAGS = ("--null-worker", "--null-tokens", "1", "--null-delay-s", "0.02", "--max-connections", str(MOST),
         "--max-header-bytes", "4096", "--max-headers", "20", "--header-timeout-s", "1",
         "--send-timeout-s", "2")  # fmt: skip
CLOSE = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
BUSY = {"text": "red", "sampling_params": {"max_new_tokens": 512, "steps": 512, "ignore_eos": True}}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    with ServerProcess(tmp_path_factory.mktemp("small") / "server.log", *FLAGS) as server:
        yield server


@contextlib.contextmanager
def raw(server: ServerProcess, head: bytes = b"") -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(head)
        yield connection


def answer(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def open_files(server: ServerProcess) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def settled_files(server: ServerProcess) -> int:
    """`open_files` once the connections of tests before are gone: the same for half a second."""
    count, same = open_files(server), 0
    while same < 5:
        time.sleep(0.1)
        now = open_files(server)
        count, same = now, same + 1 if now == count else 0
    return count


@pytest.mark.parametrize(
    ("head", "status", "words"),
    [
        (b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 5000 + b"\r\n\r\n", 431, b"--max-header-bytes"),
        (b"GET /" + b"y" * 5000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n", 431, b"--max-header-bytes"),
        (b"GET /health HTTP/1.1\r\nhost: localhost\r\n" + b"x: y\r\n" * 20 + b"\r\n", 431, b"--max-headers"),
        (CLOSE + b"x: y\r\n" * 18 + b"\r\n", 200, b"up"),
        (CLOSE + b"x: " + b"y" * 4000 + b"\r\n\r\n", 200, b"up"),
        (b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * (16 << 20), 431, b"--max-header-bytes"),
        (b"\r\n" * 10000, 431, b"--max-header-bytes"),
        (b"GET /health HTTP/1.1\r\nhost: local", 408, b"after 1 seconds"),
        (b"no http at all\r\n\r\n", 400, b"no valid HTTP"),
        (b"", None, b""),
    ],
    ids=["header", "path", "count", "as many as may be", "as large as may be", "endless", "blank", "slow", "other",
         "silent"],
)  # fmt: skip
def test_heads(small, head, status, words):
    with raw(small) as connection:
        with contextlib.suppress(ConnectionError):  # it stops reading an endless one
            connection.sendall(head)
        reply = answer(connection)
    if not reply and status != 200:  # the connection is closed; an endless head may have hidden the answer
        assert not head or len(head) > 1 << 20
        return
    assert reply.startswith(b"HTTP/1.1 %d " % status)
    assert words in reply
    assert json.loads(reply.partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize("tail", [b"0\r\nx: " + b"y" * 20000, b"5;x=" + b"y" * 20000])
def test_trailers_and_chunk_headers_are_bounded_too(small, tail):
    head = b"POST /generate HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    with raw(small, head) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(tail)
        assert b"HTTP/1.1 200" not in answer(connection)


def test_a_client_gets_to_see_why(small):
    connection = http.client.HTTPConnection("127.0.0.1", small.port, timeout=30)
    connection.request("GET", "/health", headers={"x": "y" * 200_000})
    reply = connection.getresponse()
    assert reply.status == 431
    assert json.loads(reply.read())["error"]["type"] == "HeadersTooLargeError"


def test_large_bodies_and_kept_connections_are_no_heads(small):
    """Bytes of bodies count for nothing, and every request of a connection has its own head."""
    with small.client() as client:
        for _ in range(50):
            reply = client.post("/generate", json={"text": "red", "max_new_tokens": 1, "x": "y" * 20000})
            assert reply.status_code == 200
            assert client.get("/health", headers={"x": "y" * 3000}).status_code == 200


def test_a_client_that_never_reads_is_dropped(small):
    """The stream's text is far larger than what the sockets hold."""
    body = json.dumps({"input_ids": [[5]] * 32, "stream": True, "sampling_params": BUSY["sampling_params"]}).encode()
    head = b"POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    before = settled_files(small)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", small.port))
        connection.sendall(head % len(body) + body)
        wait_for(lambda: open_files(small) > before)
        wait_for(lambda: open_files(small) <= before)
    with small.client() as client:
        wait_for(lambda: client.get("/get_load").json()[0]["num_reqs"] == 0)


def test_silent_connections_give_way_to_new_ones(small):
    with contextlib.ExitStack() as stack:
        for _ in range(4 * MOST):
            stack.enter_context(raw(small, b"GET /health"))
            assert httpx.get(f"{small.url}/health", timeout=30).status_code == 200
        assert "connections are open, as many as may be (--max-connections)" in small.log_text()
        assert small.log_text().count("connections are open") < 4  # not a line for each


def test_when_all_are_busy_health_is_still_answered(small):
    """Also what sends nothing, next to them, is closed first."""
    body = json.dumps(BUSY).encode()
    head = b"POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    with small.client() as watch, contextlib.ExitStack() as stack:
        watch.get("/health").raise_for_status()
        busy = [stack.enter_context(raw(small, head % len(body) + body)) for _ in range(MOST)]
        wait_for(lambda: all_busy(small))
        for path in ("/health", "/ready", "/ping", "/metrics"):
            assert httpx.get(small.url + path, timeout=30).status_code == 200
        refused = httpx.post(f"{small.url}/generate", json=BUSY, timeout=30)
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert "--max-connections" in refused.json()["message"]
        assert httpx.get(f"{small.url}/server_info", timeout=30).status_code == 503
        assert len(busy) == MOST
    wait_for(lambda: httpx.get(f"{small.url}/get_load", timeout=30).status_code == 200)


def all_busy(server: ServerProcess) -> bool:
    """Whether every ordinary place is taken."""
    return httpx.get(f"{server.url}/get_load", timeout=30).status_code == 503


def test_a_file_limit_of_1024_leaves_health_reachable(tmp_path):
    """1,100 connections whose heads never end, at default limits."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
        server = ServerProcess(tmp_path / "log", "--null-worker")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    with server, contextlib.ExitStack() as stack:
        for _ in range(1100):
            connection = stack.enter_context(socket.socket())
            connection.settimeout(30)
            connection.connect(("127.0.0.1", server.port))
            connection.send(b"GET /health HTTP/1.1\r\n")
        for _ in range(3):
            assert httpx.get(f"{server.url}/health", timeout=30).status_code == 200
        reply = httpx.post(f"{server.url}/generate", json={"text": "red", "max_new_tokens": 1}, timeout=30)
        assert reply.status_code == 200
        assert "connections are open" in server.log_text()


def test_more_connections_than_files_are_refused(monkeypatch):
    monkeypatch.setattr("shoal.runtime.http.connection_limits.resource.getrlimit", lambda kind: (1024, 4096))
    assert ConnectionLimits.of(ServerConfig()).max_connections < 1024 - 100
    with pytest.raises(ConfigError, match="max_connections is 1000; the limit of 1024 open files"):
        ConnectionLimits.of(ServerConfig(max_connections=1000))
    assert ConnectionLimits.of(ServerConfig(max_connections=5)).max_connections == 5


SMALL = json.dumps({"text": "red", "max_new_tokens": 1}).encode()
GENERATE = b"POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
LENGTH = b"content-length: %d\r\n\r\n" % len(SMALL)
CHUNKED = b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(SMALL), SMALL)
H2C = b"connection: keep-alive, Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n"
WEBSOCKET = b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nhost: localhost\r\n"


@pytest.mark.parametrize("upgrade", [H2C, WEBSOCKET], ids=["h2c", "websocket"])
@pytest.mark.parametrize(
    ("parts", "replies"),
    [
        ([GENERATE, LENGTH + SMALL], [200]),
        ([GENERATE, CHUNKED], [200]),
        ([GENERATE, LENGTH + SMALL[:10], SMALL[10:]], [200]),
        ([HEALTH, b"\r\n"], [200]),
        ([HEALTH, b"\r\n" + HEALTH + b"\r\n" + GENERATE + LENGTH + SMALL], [200, 200, 200]),
        ([GENERATE, LENGTH + SMALL + HEALTH + H2C + b"\r\n"], [200, 200]),
        ([GENERATE + b"x: y\r\n" * 20, LENGTH + SMALL], [431]),
    ],
    ids=["length", "chunked", "in pieces", "no body", "three in a row", "two that ask", "too many headers"],
)
def test_a_client_that_asks_for_another_protocol_is_answered_in_this_one(small, upgrade, parts, replies):
    """As Java's client does with its first request, whatever body that has."""
    with raw(small) as connection:
        connection.sendall(parts[0] + upgrade + parts[1])
        for part in parts[2:]:
            time.sleep(0.1)
            connection.sendall(part)
        reply = b""
        while reply.count(b"HTTP/1.1 ") < len(replies):
            more = connection.recv(65536)
            assert more, reply
            reply += more
    assert [int(line[:3]) for line in reply.split(b"HTTP/1.1 ")[1:]] == replies


@pytest.mark.parametrize("behind", [b"garbage\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 30 + b"\r\n"])
def test_what_is_wrong_behind_requests_ends_the_connection_after_their_answers(small, behind):
    with raw(small, (GENERATE + LENGTH + SMALL) * 2 + behind + HEALTH + b"\r\n") as connection:
        reply = answer(connection)
    assert reply.count(b"HTTP/1.1 200") == reply.count(b"HTTP/1.1 ") == 2


def test_a_body_that_is_no_http_is_told_so(small):
    for chunk in (b"-1\r\n", b"f" * 20 + b"\r\n", b"2\r\n{}no end of a chunk"):
        with raw(small, GENERATE + b"transfer-encoding: chunked\r\n\r\n") as connection:
            time.sleep(0.1)
            connection.sendall(chunk)
            assert answer(connection).startswith(b"HTTP/1.1 400")
    with small.client() as client:
        wait_for(lambda: client.get("/get_load").json()[0]["num_reqs"] == 0)


def test_pipelined_requests_wait_with_the_client_not_in_memory(small):
    many = (HEALTH + b"\r\n") * 100
    with raw(small, many + HEALTH + b"connection: close\r\n\r\n") as connection:
        assert answer(connection).count(b"HTTP/1.1 200") == 101
    with raw(small) as connection:
        connection.settimeout(3)
        with pytest.raises(OSError):  # it is closed, or nothing more is read
            connection.sendall(many * 7500)
