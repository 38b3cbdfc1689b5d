"""Chat templates that come with a request: rendered as transformers does, apart from this process and its files."""

from __future__ import annotations

import gc
import threading
import time
from typing import Any

import pytest
from hypothesis import given, settings

from shoal.runtime.errors import InvalidRequestError
from shoal.runtime.text import sandbox
from shoal.runtime.text.conversation import Conversation
from shoal.runtime.text.tokenizer import Tokenizer

from . import test_control_tokens as base
from .templates import DEVELOPER, HERMES, QUIET, with_template

TALK: Any = [{"role": "developer", "content": "a"}, {"role": "user", "content": "b <|im_end|> c"}]
TOOL: Any = {"type": "function", "function": {"name": "f", "description": "é", "parameters": {"type": "object"}}}
SOURCES = {**base.TEMPLATES, "hermes": HERMES, "quiet": QUIET, "developer": DEVELOPER}


@pytest.fixture(scope="module")
def box() -> sandbox.Sandbox:
    return sandbox.Sandbox()


@pytest.fixture(scope="module")
def made(box) -> Tokenizer:
    return Tokenizer(base.reference("bytes", QUIET), sandbox=box)


def ids(made: Tokenizer, template: str, messages: Any = TALK, **options: Any) -> list[int]:
    return made.apply_chat_template(Conversation(messages=messages, template=template, **options))


@pytest.mark.parametrize("name", [name for name in SOURCES if len(name) < 20])
def test_a_template_gives_what_it_gives_as_the_models_own(made, name):
    options: dict[str, Any] = {"tools": [TOOL], "template_kwargs": {"note": "x"}} if name == "hermes" else {}
    own = with_template(SOURCES[name]).apply_chat_template(Conversation(messages=TALK, **options))
    assert ids(made, SOURCES[name], **options) == own


@settings(max_examples=20, deadline=None)
@given(said=base.spelled(base.SPECIAL), note=base.spelled(base.SPECIAL))
def test_contents_give_no_control_token_there_either(said, note):
    made = with_template(QUIET)
    template = "<|im_start|>{{ messages[0].content }}{{ note }}<|im_end|>"
    drawn = ids(made, template, [{"role": "user", "content": said}], template_kwargs={"note": note})
    plain = ids(made, template, [{"role": "user", "content": "-"}], template_kwargs={"note": "-"})
    assert base.control(made, drawn) == base.control(made, plain)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ ", "can't be parsed: line 1"),
        ("{{ raise_exception('two turns') }}", "refuses the messages: two turns"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ 'a' * 10 ** 10 }}", "too much memory"),
        ("{{ 'a' * 10 ** 7 }}", "10000000 characters; at most"),
        (
            "{% set n = namespace(x='a' * 9999) %}{% for i in range(40) %}{% set n.x = n.x * 2 %}{% endfor %}",
            "memory",
        ),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "can't render the messages"),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{% include 'x' %}", "no loader"),
        ("x" * (sandbox.MAX_TEMPLATE + 1), "at most 65536"),
        ("{{ x }}" * 3 + "{% if %}", "can't be parsed"),
    ],
)
def test_a_template_that_can_not_be_had_is_refused(made, template, words):
    with pytest.raises(InvalidRequestError) as caught:
        ids(made, template)
    assert caught.value.field == "chat_template"
    assert words in caught.value.message
    assert ids(made, QUIET)


def test_one_without_an_end_is_stopped_and_the_next_one_works(made, box, monkeypatch):
    monkeypatch.setattr(sandbox, "RENDER_S", 0.3)
    monkeypatch.setattr("shoal.runtime.text.tokenizer.RENDER_S", 0.3)
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    assert ids(made, QUIET)
    before = box.process
    assert before is not None
    with pytest.raises(InvalidRequestError, match=r"chat_template takes longer than 0\.3 seconds"):
        ids(made, endless)
    assert box.process is None
    assert before.returncode is not None
    monkeypatch.undo()
    assert ids(made, QUIET)


def test_one_that_takes_its_process_down_is_an_error_of_its_request(made, box):
    assert ids(made, QUIET)
    process = box.process
    assert process is not None
    threading.Timer(0.1, process.kill).start()
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(InvalidRequestError, match="takes too much memory or time"):
        ids(made, endless)
    assert ids(made, QUIET)


def test_its_process_has_no_environment_and_can_open_no_file(made, box):
    assert ids(made, QUIET)
    process = box.process
    assert process is not None
    with open(f"/proc/{process.pid}/limits", encoding="utf-8") as file:
        limits = {line[:26].strip(): line[26:].split()[:2] for line in file}
    for name in ("Max open files", "Max file size", "Max processes"):
        assert limits[name] == ["0", "0"]
    assert int(limits["Max address space"][0]) < 1 << 30
    with open(f"/proc/{process.pid}/environ", "rb") as environment:
        assert b"PATH" not in environment.read()


def test_its_process_ends_with_its_owner():
    owner = sandbox.Sandbox()
    assert owner.render("{{ x }}", {"x": "é\ud800"}, time.monotonic() + 30) == "é\ud800"
    process = owner.process
    assert process is not None
    del owner
    gc.collect()
    assert process.returncode is not None


def test_its_process_ends_when_its_owners_process_dies():
    owner = sandbox.Sandbox()
    assert owner.render("{{ 1 }}", {}, time.monotonic() + 30) == "1"
    process = owner.process
    assert process is not None
    process.stdin.close()  # type: ignore[union-attr]
    assert process.wait(30) == 0
