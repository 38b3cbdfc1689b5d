"""The chat in the terminal, against scripted replies of a server."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from typing import Any

import httpx
import pytest
from rich.console import Console
from typer.testing import CliRunner

from shoal.chat.main import Chat
from shoal.chat.server import ChatServer
from shoal.chat.view import canvas_text, printable
from shoal.cli import app
from shoal.runtime.errors import EngineError, InvalidRequestError

INFO: dict[str, Any] = {"served_model_name": "shop", "stop_token_ids": [0], "num_layers": 16}
META = {"nfe": 2, "cache_mode": "bicache", "depth": 8, "reused_token_layers": 512, "computed_token_layers": 900}
USAGE = {"prompt_tokens": 80, "completion_tokens": 2}
SNAPSHOT = {"tokens": [7, -1, 0], "texts": ["17", "", "<|eos|>"], "confidences": [0.9, None, 0.5], "steps": [1, 0, 1],
            "blocks": [2, 3], "block": 0, "step": 1}  # fmt: skip
LOADS = {"loads": [{"num_running_reqs": 1, "num_waiting_reqs": 0, "gen_throughput": 12.5, "cache_hit_rate": 0.25,
                    "token_usage": 0.5}]}  # fmt: skip


def sse(*events: Any) -> str:
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"


def answer(text: str) -> str:
    choice = {"delta": {"content": text}, "snapshot": SNAPSHOT, "meta_info": META}
    return sse({"choices": [choice]}, {"choices": [], "usage": USAGE})


class Script:
    """A server that gives each chat the next of `answers`, and the requests that came."""

    def __init__(self, *answers: str | httpx.Response):
        self.answers = list(answers)
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.keys.add(request.headers.get("authorization"))
        match request.url.path:
            case "/model_info":
                return httpx.Response(200, json=INFO)
            case "/v1/loads":
                return httpx.Response(200, json=LOADS)
            case "/v1/chat/completions":
                self.asked.append(json.loads(request.content))
                reply = self.answers.pop(0)
                return reply if isinstance(reply, httpx.Response) else httpx.Response(200, text=reply)
        return httpx.Response(404)


def talk(script: Callable[[httpx.Request], httpx.Response], lines: Iterable[str], **options: Any) -> str:
    """What is printed while these lines are typed."""
    out = io.StringIO()
    typed = iter(lines)

    def read() -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    with ChatServer("http://server/", "key", httpx.MockTransport(script)) as server:
        chat = Chat(server, Console(file=out, width=100), **options)
        chat.open()
        chat.run(read)
    return out.getvalue()


def test_turns_are_kept_and_each_answer_says_what_it_cost():
    script = Script(answer("17"), answer("42"))
    shown = talk(script, ["How much?", "And now?"], body={"max_tokens": 8}, system="Prices")
    assert "17" in shown
    assert "bicache: 2 passes" in shown
    assert "64 of 80 prompt tokens from the cache, 8 of 16 layers deep" in shown
    first, second = script.asked
    assert (first["stream_mode"], first["stream"], first["max_tokens"]) == ("denoise", True, 8)
    assert [m["content"] for m in first["messages"]] == ["Prices", "How much?"]
    assert [m["content"] for m in second["messages"]] == ["Prices", "How much?", "17", "And now?"]
    assert script.keys == {"Bearer key"}


def test_commands_change_what_is_asked_next():
    script = Script(answer("17"), answer("18"))
    lines = ["a", "/mode none", "/clear", "b", "/mode", "/mode fast", "/stats", "/nothing", "/help", "/quit", "never"]
    shown = talk(script, lines)
    assert [asked.get("cache_mode") for asked in script.asked] == [None, "none"]
    assert [m["content"] for m in script.asked[1]["messages"]] == ["b"]
    for words in ("cache mode none", "fast is no cache mode; there are none, prefix", "12.50", "/nothing is no command",
                  "/system TEXT"):  # fmt: skip
        assert words in shown


def test_a_refusal_is_told_and_the_chat_goes_on():
    refusal = httpx.Response(400, json={"error": {"message": "max_tokens is too large"}})
    script = Script(refusal, sse({"error": {"message": "the worker died"}}), answer("17"))
    shown = talk(script, ["a", "b", "c"])
    assert "error: max_tokens is too large" in shown
    assert "error: the worker died" in shown
    assert [m["content"] for m in script.asked[2]["messages"]] == ["c"]


def test_a_server_that_is_not_there_is_named():
    def nobody(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with (
        pytest.raises(EngineError, match=r"no answer from http://server .*shoal serve shop"),
        ChatServer("http://server", transport=httpx.MockTransport(nobody)) as server,
    ):
        server.get("/model_info")
    with (
        pytest.raises(InvalidRequestError, match="the server answered 418"),
        ChatServer("http://server", transport=httpx.MockTransport(lambda _: httpx.Response(418))) as server,
    ):
        server.get("/model_info")


def test_a_system_prompt_that_can_not_be_read_is_a_usage_error(tmp_path):
    (tmp_path / "latin").write_bytes(b"\xe9")
    for name in ("none", "latin"):
        result = CliRunner().invoke(app, ["chat", "--system", f"@{tmp_path / name}"])
        assert result.exit_code == 2
        assert "can't be read" in " ".join(result.output.split())


def test_text_can_not_steer_the_terminal(monkeypatch):
    monkeypatch.setitem(INFO, "served_model_name", "a[/b]")
    assert "a[/b] at http://server" in talk(Script(), [])
    shown = talk(Script(answer("\x1b[2J\x07[bold]x[/bold]")), ["a"])
    assert "\x1b" not in shown
    assert "\\x1b[2J\\x07[bold]x[/bold]" in shown
    assert printable("a\tb\u202e") == "a\\x09b\\x202e"


def test_the_canvas_shows_tokens_masks_ends_and_blocks():
    assert canvas_text(SNAPSHOT, frozenset({0})).plain == "17 ░░ │ · \npass 1"
