"""Tool calls in answers: found, left as text where malformed, and never taken back while an answer grows."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.runtime.text.tool_calls import CLOSE, OPEN, ToolCall, beginning_of_call, read_answer

NAMES = frozenset({"weather", "add"})
ROME = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
SUM = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": [2.5, null]}}</tool_call>'
CALLS = (ToolCall("weather", '{"city": "Rome"}'), ToolCall("add", '{"a": 1, "b": [2.5, null]}'))
MALFORMED = [
    "<tool_call>", "</tool_call>", "<tool_call></tool_call>", "<tool_call>no JSON</tool_call>",
    '<tool_call>{"name": "weather", "arguments": {"city": "Ro', '<tool_call>{"name": "weather"</tool_call>',
    '<tool_call>{"name": "other", "arguments": {}}</tool_call>', '<tool_call>["weather", {}]</tool_call>',
    '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>', '<tool_call>{"name": 5, "arguments": {}}',
    '<tool_call>{"name": "weather", "arguments": {"x": NaN}}</tool_call>', "<tool_call>" + "[" * 2000,
    '<tool_call>{"name": "weather", "arguments": "no JSON"}</tool_call>', "<tool", " and\n",
    '<tool_call>{"name": "weather", "arguments": {"x": 1e999}}</tool_call>',
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "rest", "calls"),
    [
        (ROME, "", CALLS[:1]),
        (ROME + "\n" + SUM, "", CALLS),
        ("I look.\n\n" + ROME, "I look.", CALLS[:1]),
        ("I look. " + ROME + " Then. " + SUM + "\n", "I look.  Then.", CALLS),
        (ROME.removesuffix(CLOSE), "", CALLS[:1]),
        (
            '<tool_call>{"name": "add", "arguments": {"a": "\\ud800é"}}</tool_call>',
            "",
            (ToolCall("add", '{"a": "\\ud800\\u00e9"}'),),
        ),
        ('<tool_call>{"name": "weather"}</tool_call>', "", (ToolCall("weather", "{}"),)),
        ('<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>', "", (ToolCall("add", '{"a": 1}'),)),
        ("<tool_call> what? " + ROME, "<tool_call> what?", CALLS[:1]),
        ("no call \n", "no call \n", ()),
        *((text, text, ()) for text in MALFORMED),
    ],
)
def test_answers(text, rest, calls):
    assert read_answer(text, NAMES, True) == (rest, calls)


pieces = st.lists(st.sampled_from([ROME, SUM, *MALFORMED, "\n", " ", "é", "<"]) | st.text(max_size=3), max_size=6)


@settings(deadline=None)
@given(text=pieces.map("".join), step=st.integers(1, 9))
def test_what_was_shown_is_never_taken_back_however_an_answer_comes(text, step):
    shown, calls = "", tuple[ToolCall, ...]()
    for end in [*range(0, len(text), step), len(text)]:
        answer = read_answer(text[:end], NAMES, False)
        assert answer.text.startswith(shown)
        assert answer.calls[: len(calls)] == calls
        shown, calls = answer
    final = read_answer(text, NAMES, True)
    assert final.text.startswith(shown)
    assert final.calls[: len(calls)] == calls
    assert OPEN not in shown or OPEN in final.text
    for call in final.calls:
        assert call.name in NAMES
        assert isinstance(json.loads(call.arguments), dict)


@given(text=pieces.map("".join))
def test_nothing_but_calls_and_blanks_is_left_out(text):
    answer = read_answer(text, NAMES, True)
    if not answer.calls:
        assert answer.text == text
    left = text
    for known in (ROME, SUM):
        left = left.replace(known, "")
    assert len("".join(answer.text.split())) <= len("".join(text.split()))
    if not any(word in left for word in (OPEN[:2], CLOSE[:2])):
        assert "".join(answer.text.split()) == "".join(left.split())


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ('{"city": "Rome"}}\n', '{"city": "Rome"}'),
        ('\n {"city": "Rome"} and more', '{"city": "Rome"}'),
        ('{"city": "Ro', '{"city": "Ro'),
        ("Rome\n</tool_call>", "Rome\n"),
        ("", ""),
    ],
)
def test_a_forced_call_always_comes(text, arguments):
    """OpenAI's API says of arguments that they may be invalid JSON."""
    assert read_answer(text, NAMES, False, "weather") == ("", ())
    assert read_answer(text, NAMES, True, "weather") == ("", (ToolCall("weather", arguments),))


def test_what_a_forced_call_begins_with_is_read_as_that_call():
    whole = beginning_of_call("weather") + '{"city": "Rome"}}' + CLOSE
    assert read_answer(whole, NAMES, True) == ("", CALLS[:1])
