"""What a JSON body may consist of, and what a hostile one costs the loop that serves everybody."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shoal.runtime.http import json_body
from shoal.runtime.http.api_error import ApiError
from shoal.runtime.http.json_body import EntryBound, parsed

MANY = 200_000
BOUND = EntryBound(max_entries=100, max_tokens=10)


def of(head: str, item: str, count: int = MANY, tail: str = "]}") -> bytes:
    """A body that holds an item over and over."""
    return (head + ",".join([item] * count) + tail).encode()


HOSTILE: dict[str, tuple[str, bytes, str]] = {
    "ids": ("/generate", of('{"input_ids":[', "80"), "input_ids"),
    "canvas": ("/generate", of('{"text":"red","canvas":[', "-1"), "canvas"),
    "choice": ("/score", of('{"text":"red","choices":[[', "80", tail="]]}"), "choices"),
    "detokenize": ("/detokenize", of('{"tokens":[', "80"), "tokens"),
    "wrong ids": ("/v1/completions", of('{"prompt":[', "-5"), "prompt"),
    "objects as prompts": ("/v1/completions", of('{"prompt":[', "{}"), "body"),
    "lists as prompts": ("/v1/completions", of('{"prompt":[', "[]"), "body"),
    "texts": ("/v1/completions", of('{"prompt":[', '""'), "prompt"),
    "one wrong text": ("/generate", of('{"text":[', '"a"', MANY // 2, ',1]}'), "text"),
    "choices": ("/score", of('{"text":"red","choices":[', "[]"), "body"),
    "ids of requests": ("/generate", of('{"text":"red","rid":[', '"x"'), "rid"),
    "messages": ("/v1/chat/completions", of('{"messages":[', '{"role":"user","content":"x"}', 30_000), "body"),
    "parts": ("/tokenize", of('{"parts":[', '{"text":"x"}', 60_000), "body"),
    "names": ("/generate", json.dumps({"text": "red", **{f"k{i}": 1 for i in range(60_000)}}).encode(), "body"),
    "names of sampling": ("/generate", json.dumps(
        {"text": "red", "sampling_params": {f"k{i}": 1 for i in range(60_000)}}).encode(), "body"),
    "fewer names": ("/generate", json.dumps(
        {"text": "red", "sampling_params": {f"k{i}": 1 for i in range(5000)}}).encode(), "sampling_params"),
    "similar names": ("/v1/chat/completions", json.dumps({"messages": [
        {"role": "user", "content": "x", f"conten_{i}": 1} for i in range(1000)]}).encode(), "messages"),
}  # fmt: skip


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far: other load on the machine does not count."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_body_of_millions_costs_little_more_than_json_alone(client, kind):
    """Validation of 200,000 wrong prompts took 7 s, 60,000 names that nobody knows 2 s."""
    route, body, field = HOSTILE[kind]
    start = time.process_time()
    json.loads(body)
    alone = time.process_time() - start
    http = client.get("/server_info").json()["processes"]["http"]
    before = cpu_seconds(http)
    reply = client.post(route, content=body, headers={"content-type": "application/json"})
    spent = cpu_seconds(http) - before
    assert reply.status_code == 400
    assert reply.json()["param"] == field
    assert spent < 3 * alone + 0.1


async def test_large_bodies_take_turns_with_pauses(monkeypatch):
    """Three times as long as the last one took: a quarter of the loop's time is the most that they get."""
    events: list[Any] = []
    clock = iter([0.0, 2.0, 10.0, 11.0])

    async def sleep(seconds: float) -> None:
        for _ in range(5):  # whoever does not wait for its turn goes on now
            await asyncio.sleep(0)
        events.append(seconds)

    monkeypatch.setattr(json_body, "asyncio", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(json_body, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    lock = asyncio.Lock()

    async def look(name: str, turn: asyncio.Lock | None) -> None:
        async with json_body._turn(turn):
            events.append(name)

    await asyncio.gather(look("first", lock), look("second", lock), look("small", None))
    assert events == ["first", "small", 6.0, "second", 3.0]


def test_what_any_request_can_use_passes(client):
    """As many prompts, ids and options as the server takes, and a text that is full of brackets."""
    bound = EntryBound(1000 + 32 * 1024 + 8 * 640, 640)
    options = {"max_new_tokens": 8, "temperature": 0, "seed": 1, "stop": ["a"], "custom_params": {"steps": 2}}
    body: dict[str, Any] = {
        "input_ids": [[9] * 640] * 1024, "canvas": [[-1] * 8] * 1024, "rid": [f"r{i}" for i in range(1024)],
        "sampling_params": [options] * 1024,
    }  # fmt: skip
    bound.check(body)
    bound.check({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}] * 640})
    text = json.dumps({"text": '[{"a\\"[": []}] ' * 100_000}).encode()
    assert text.count(b"[") > 3 * bound.max_entries
    bound.check_bytes(text)
    bound.check(parsed(text))
    reply = client.post("/generate", json={"text": '[{"a\\":' * 40_000, "max_new_tokens": 8})
    assert "text: the text has 280000 characters" in reply.json()["message"]
    assert reply.json()["param"] == "text"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"a": [{}] * 101}, "a"),
        ({"a": {"b": [{"c": 1.0}] * 51}}, "a"),
        ({"a": [1] * 200, "b": ["x"] * 101}, "b"),
        ({"a": [True] * 101}, "a"),
        ({"a": [[1]] * 60, "b": [[]] * 60}, "b"),
        ([[]] * 101, "body"),
        ({"input_ids": [[3], [4] * 81]}, "input_ids"),
        ({f"n{i}": 1 for i in range(501)}, "body"),
        ({"a": [{f"n{i}": 1, f"m{i}": 1} for i in range(20)], "b": {f"k{i}": 1 for i in range(480)}}, "b"),
    ],
)
def test_what_no_request_can_use_is_refused_with_its_field(body, field):
    with pytest.raises(ApiError) as caught:
        BOUND.check(body)
    assert (caught.value.status, caught.value.param) == (400, field)
    assert caught.value.message.startswith(field)


@pytest.mark.parametrize("body", [b"[" * 101, b'["a]", ' + b"{}, " * 101, b'["\\"[[[", ' + b"[], " * 100 + b'"',
                                  b"{" + b'"\\":":1, ' * 101])  # fmt: skip
def test_lists_and_objects_are_counted_before_they_are_made(body):
    with pytest.raises(ApiError, match="too many entries"):
        BOUND.check_bytes(body)


@pytest.mark.parametrize("body", [b'"' + b"[" * 200, b'["' + b'\\"[' * 200 + b'"]', b'"' + b"\\" * 7, b"[" * 100])
def test_what_stands_in_strings_is_not_counted(body):
    BOUND.check_bytes(body)


@pytest.mark.parametrize("body", [b"[" + b"1.5, " * 101 + b"1]", b'{"a": "' + b"x" * 5000 + b'"', b"9" * 5000,
                                  b'{"a": "' + b"x" * 5000 + b"\xff"])  # fmt: skip
def test_an_error_does_not_hold_the_body(body):
    """Exceptions live on in cycles of frames until the garbage collector runs; bodies have megabytes."""
    value, error = BOUND.load(body)
    assert value is None
    assert error is not None
    assert (error.__traceback__, error.__context__, error.__cause__) == (None, None, None)
    held = [*vars(error).values(), getattr(error, "object", b"")]
    assert all(not isinstance(value, str | bytes) or len(value) < 500 for value in held)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-32-be"])
def test_bodies_are_utf_8(client, encoding):
    """Others would pass the counts of entries, which look at bytes."""
    headers = {"content-type": f"application/json; charset={encoding}"}
    reply = client.post("/generate", content='{"text": "red", "max_new_tokens": 8}'.encode(encoding), headers=headers)
    assert reply.status_code == 400
    assert re.search("it is no UTF-8: .+ at byte \\d|the body is no valid JSON: .+ at", reply.json()["message"])


@pytest.mark.parametrize(
    "body",
    [b"[1, -0, 1.0, 1E5, 1e400, 0.1]", b"[NaN, -Infinity]", b'{"a": 1, "a": 2}', b'"\\ud800\\u0000"', b"\xef\xbb\xbf{}",
     b"1" * 4000, b"18446744073709551616", b"1" * 5000, b"{", b"01", b'"\x01"', b"\xff", b"[" * 100_000, b"'a'"],
)  # fmt: skip
def test_bodies_are_parsed_as_by_python(body):
    """The same values or the same errors."""

    def outcome(load: Any) -> tuple[str, str]:
        try:
            value = load(body)
        except (ValueError, RecursionError) as error:
            return type(error).__name__, str(error)
        return type(value).__name__, repr(value)

    assert outcome(parsed) == outcome(json.loads)
