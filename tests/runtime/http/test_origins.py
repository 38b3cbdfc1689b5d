"""What pages in browsers may not do, and what shows of other tenants: hosts, origins, content types, keys, /cache."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from shoal.runtime.errors import ConfigError
from shoal.runtime.http.app import create_app
from shoal.runtime.http.config import ServerConfig
from shoal.runtime.service.service import ServiceStatus

TREE = {
    "num_nodes": 2,
    "namespaces": [
        {"salt": "", "capture": "first", "nodes": []},
        {"salt": "tenant-a", "capture": "first", "nodes": [
            {"tokens": 16, "first_tokens": [5, 6], "children": [{"tokens": 4, "first_tokens": [7], "children": []}]},
        ]},
        {"salt": "tenant-a", "capture": "alone", "nodes": []},
    ],
}  # fmt: skip


class Service:
    """Is up; counts what changes it."""

    status = ServiceStatus("up")

    def __init__(self) -> None:
        self.flushed = 0

    async def flush_cache(self, timeout_s: float) -> None:
        self.flushed += 1

    async def cache_snapshot(self) -> dict[str, Any]:
        return json.loads(json.dumps(TREE))


def served(**options: Any) -> tuple[Service, httpx.AsyncClient]:
    """A service behind the application, and a client that reaches it as http://localhost:30000."""
    service: Any = Service()
    app: FastAPI = create_app(service, ServerConfig(**options))
    app.state.server.warm = True
    return service, httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost:30000")


@pytest.mark.parametrize("path", ["/flush_cache", "/start_profile", "/stop_profile", "/abort_request"])
async def test_reading_methods_change_nothing(path):
    service, client = served()
    for method in ("GET", "HEAD"):
        assert (await client.request(method, path)).status_code == 405
    assert service.flushed == 0


@pytest.mark.parametrize(
    ("bind", "allowed", "host", "passes"),
    [
        ("127.0.0.1", None, "localhost:30000", True),
        ("127.0.0.1", None, "LOCALHOST.", True),
        ("127.0.0.1", None, "127.0.0.1:30000", True),
        ("127.0.0.1", None, "[::1]:30000", True),
        ("127.0.0.1", None, "evil.example:30000", False),
        ("127.0.0.1", None, "localhost.evil.example", False),
        ("127.0.0.1", None, "127.0.0.1.evil.example", False),
        ("127.0.0.1", None, "evil.example#localhost", False),
        ("127.0.0.1", None, "localhost@evil.example", False),
        ("127.0.0.1", None, "", False),
        ("127.0.0.5", None, "127.0.0.5:1", True),
        ("::1", None, "[::1]", True),
        ("::1", None, "evil.example", False),
        ("localhost", None, "evil.example", False),
        ("0.0.0.0", None, "shoal.example", True),
        ("0.0.0.0", "shoal.example", "shoal.example:30000", True),
        ("0.0.0.0", "shoal.example", "localhost", False),
        ("127.0.0.1", "shoal.example, *.b.example", "a.b.example", True),
        ("127.0.0.1", "*.b.example", "b.example", False),
        ("127.0.0.1", "*", "evil.example", True),
    ],
)
async def test_names_that_a_server_answers_to(bind, allowed, host, passes):
    service, client = served(host=bind, allowed_hosts=allowed)
    reply = await client.post("/flush_cache", headers={"host": host})
    assert reply.status_code == (200 if passes else 403)
    assert service.flushed == passes
    if not passes:
        assert "--allowed-hosts" in reply.json()["message"]


async def test_every_host_header_of_a_request_is_checked():
    service, client = served()
    headers = [("host", "localhost"), ("host", "evil.example")]
    assert (await client.post("/flush_cache", headers=headers)).status_code == 403
    assert service.flushed == 0


@pytest.mark.parametrize(
    ("headers", "allowed", "passes"),
    [
        ({}, None, True),
        ({"origin": "http://localhost:30000"}, None, True),
        ({"origin": "http://localhost:8080"}, None, False),
        ({"origin": "http://evil.example"}, None, False),
        ({"origin": "null"}, None, False),
        ({"origin": ""}, None, False),
        ({"sec-fetch-site": "cross-site"}, None, False),
        ({"sec-fetch-site": "same-site"}, None, False),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, None, False),
        ({"sec-fetch-site": "same-origin"}, None, True),
        ({"sec-fetch-site": "none"}, None, True),
        ({"origin": "https://app.example", "sec-fetch-site": "cross-site"}, "https://app.example", True),
        ({"origin": "https://app.example.evil.example"}, "https://app.example", False),
        ({"origin": "http://evil.example"}, "*", True),
    ],
)
async def test_pages_of_other_sites_are_refused(headers, allowed, passes):
    service, client = served(allowed_origins=allowed)
    reply = await client.post("/flush_cache", headers=headers)
    assert reply.status_code == (200 if passes else 403)
    assert service.flushed == passes
    if not passes:
        assert "--allowed-origins" in reply.json()["message"]


async def test_a_page_may_link_here_but_not_load_from_here():
    _, client = served()
    cross = {"sec-fetch-site": "cross-site"}
    assert (await client.get("/health", headers={**cross, "sec-fetch-mode": "navigate"})).status_code == 200
    assert (await client.get("/health", headers={**cross, "sec-fetch-mode": "no-cors"})).status_code == 403


async def test_an_allowed_origin_may_read_replies_and_ask_before():
    _, client = served(allowed_origins="https://app.example", api_key="k")
    origin = {"origin": "https://app.example"}
    reply = await client.get("/health", headers=origin)
    assert reply.headers["access-control-allow-origin"] == "https://app.example"
    asks = {**origin, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    assert (await client.options("/generate", headers=asks)).status_code == 200
    assert "access-control-allow-origin" not in (await served()[1].get("/health")).headers


@pytest.mark.parametrize(
    ("kind", "content", "passes"),
    [
        (None, b"", True),
        ("application/json", b"{}", True),
        ("application/json; charset=utf-8", b"{}", True),
        ("application/octet-stream", b"", True),  # what aiohttp, and so bench_serving, sends without a body
        ("application/octet-stream", b"{}", False),
        ("application/x-www-form-urlencoded", b"", False),
        ("application/x-www-form-urlencoded", b"a=b", False),
        ("Multipart/Form-Data; boundary=x", b"", False),
        ("text/plain", b"{}", False),
        (None, b"{}", False),
    ],
)
async def test_what_a_form_can_send_is_refused(kind, content, passes):
    service, client = served()
    headers = {} if kind is None else {"content-type": kind}
    reply = await client.post("/flush_cache", content=content, headers=headers)
    assert reply.status_code == (200 if passes else 400)
    assert service.flushed == passes
    assert passes or "send application/json" in reply.json()["message"]


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize("options", [{}, {"api_key": "k"}, {"api_key": "k", "admin_api_key": "a"}])
async def test_the_cache_s_snapshot_shows_no_tenant_to_another(options):
    """Tokens only with the admin key, salts never; equal salts have equal digests."""
    _, client = served(**options)
    is_admin = "admin_api_key" in options
    reply = await client.get("/cache", headers=bearer("a" if is_admin else "k"))
    assert "tenant-a" not in reply.text
    plain, first, second = reply.json()["namespaces"]
    assert plain["salt"] == ""
    assert len(first["salt"]) == 16
    assert first["salt"] == second["salt"]
    (node,) = first["nodes"]
    for one in (node, *node["children"]):
        assert ("first_tokens" in one) == is_admin
        assert one["tokens"]
    other = (await served(**options)[1].get("/cache", headers=bearer("a" if is_admin else "k"))).json()
    assert other["namespaces"][1]["salt"] != first["salt"]  # each server has a key of its own


async def test_white_space_around_a_key_is_no_part_of_it():
    _, client = served(api_key=" k\n", admin_api_key="a\r\n")
    assert (await client.get("/cache", headers=bearer("a"))).status_code == 200
    assert (await client.get("/v1/models", headers=bearer("wrong"))).status_code == 401
    for key in ("", " ", "\n", "a\nb", "a\0"):
        with pytest.raises(ConfigError, match="api_key must be"):
            ServerConfig(api_key=key)


def test_logs_of_libraries_are_json_lines():
    """They make handlers of their own when they are imported, after logging was configured."""
    code = """
import logging, sys, warnings
sys.modules["torch"] = None
from shoal.runtime.logs import configure_logging
configure_logging("info", True, False)
from transformers.utils import logging as theirs
theirs.get_logger("transformers.x").warning("of transformers")
from huggingface_hub.utils import logging as theirs
theirs.get_logger("huggingface_hub.x").warning("of the hub")
warnings.warn("of Python")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert {line["logger"] for line in lines} >= {"transformers.x", "huggingface_hub.x", "py.warnings"}
    for words in ("of transformers", "of the hub", "of Python"):
        assert sum(words in line["message"] for line in lines) == 1


class TestRefusedBodies:
    """http.client, and most clients, look for a reply only when they have sent everything."""

    SIZE = 12 << 20  # more than the sockets' buffers hold

    @pytest.mark.parametrize("close", [False, True])
    @pytest.mark.parametrize(
        ("path", "headers", "status"),
        [("/generate", {}, 413), ("/generate", {"host": "evil.example"}, 403),
         ("/generate", {"origin": "http://evil.example"}, 403)],
    )  # fmt: skip
    def test_a_client_that_sends_all_of_it_gets_the_reply(self, server, path, headers, status, close):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        sent = {"content-type": "application/json", **headers, **({"connection": "close"} if close else {})}
        connection.request("POST", path, body=b" " * self.SIZE, headers=sent)
        reply = connection.getresponse()
        assert reply.status == status
        assert json.loads(reply.read())["error"]["message"]
        if not close:  # the body was read to its end, so the connection can go on
            connection.request("GET", "/health")
            assert connection.getresponse().status == 200
        connection.close()

    def test_one_that_asks_first_is_told_at_once(self, server):
        head = b"POST /generate HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 5000000\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as raw:
            raw.sendall(head)
            assert raw.recv(4096).startswith(b"HTTP/1.1 413")

    def test_nobody_is_read_without_end(self, server):
        head = b"POST /generate HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
        block = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as raw:
            raw.sendall(head)
            with pytest.raises(OSError):  # noqa: PT012
                for _ in range(200):
                    raw.sendall(block)
