"""Every row of the table of request fields, at every place where clients can put it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from shoal.runtime.http import field_table, schemas
from shoal.runtime.http.api_error import ApiError
from shoal.runtime.http.field_table import (
    ABORT,
    CHAT,
    COMPLETIONS,
    COUNT_TOKENS,
    CUSTOM,
    DETOKENIZE,
    FIELDS,
    GENERATE,
    INSIDE,
    KWARGS,
    LOOKUP,
    MESSAGE,
    MESSAGES,
    PLACES,
    PROFILE,
    RESPONSES,
    SAMPLING,
    SCORE,
    STREAM_OPTIONS,
    TOKENIZE,
)  # fmt: skip
from shoal.runtime.http.fields import SERVED, accepts, check_fields, is_misplaced

from . import field_tables
from .generated_tables import split

NOTHING: tuple[Any, ...] = (None, [], {}, "")
OBJECTS = ("sampling_params", "custom_params", "chat_template_kwargs", "stream_options", "metadata")
SAMPLES: dict[str, Any] = {
    "text": "red", "input_ids": [5], "prompt": "red", "messages": [{"role": "user", "content": "red"}], "tokens": [5],
    "canvas": [-1, 5, -1], "shared_prefix": 1, "choices": [[5]], "method": "one_shot", "sampling_params": {"n": 2},
    "custom_params": {"steps": 1}, "chat_template_kwargs": {"steps": 1}, "add_special_tokens": False, "role": "user",
    "content": "red", "echo": True, "max_new_tokens": 4, "max_tokens": 4, "max_completion_tokens": 4,
    "block_length": 4, "steps": 1, "threshold": 0.5, "factor": 1.0, "strategy": "entropy", "temperature": 0.5,
    "top_p": 1.0, "top_k": -1, "min_p": 0.0, "seed": 3, "sampling_seed": 3, "stop": ["."], "stop_token_ids": [7],
    "ignore_eos": True, "n": 2, "rid": "sample", "stream": True, "stream_mode": "text",
    "stream_options": {"include_usage": True},
    "include_usage": True, "continuous_usage_stats": True, "cache_mode": "dual", "cache_salt": "a", "extra_key": "b",
    "priority": 1, "timeout_s": 60, "skip_special_tokens": False, "abort_all": True,
    "parts": [{"text": "red"}], "split_special_tokens": True, "frequency_penalty": 0.5, "presence_penalty": 0.5,
    "repetition_penalty": 1.1, "logit_bias": {"5": 2}, "min_tokens": 1, "min_new_tokens": 1, "alg_temp": 0, "eps": 0.01,
    "schedule": "linear", "ranking": "sampled", "logits_eos_inf": True, "confidence_eos_eot_inf": True,
    "eos_penalty": 1.5, "return_logprob": True, "logprob_start_len": -1, "return_text_in_logprobs": True,
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["red"]}}},
    "json_schema": {"const": [1]}, "regex": "[0-9]", "choice": ["red"], "structured_outputs": {"choice": ["red"]},
    "guided_json": '{"const": 1}', "guided_regex": "[0-9]", "guided_choice": ["red"],
    "alg": "maskgit_plus", "remasking": "low_confidence", "conf_alg": "entropy", "cfg_scale": 0, "mask_id": 1,
    "mask_token_id": 1, "gen_length": 4,
    "logprobs": True, "top_logprobs": 0, "top_logprobs_num": 0,
    "input": "red", "instructions": "red", "system": "red", "max_output_tokens": 4,
    "stop_sequences": ["."], "suffix": "blue", "tool_choice": "auto", "parallel_tool_calls": False,
    "chat_template": "{{ messages[0].content }}",
    "add_generation_prompt": True, "continue_final_message": True, "name": "a", "reasoning_content": "b",
    "tool_call_id": "c", "store": False, "user": "d", "metadata": {"e": "f"}, "entropy_bound": 0.1,
    "threshold_decay": 0.3, "kl_threshold": 0.01, "kl_history": 2, "canvas_window": 4, "refresh_schedule": "settled",
    "full_refresh_every": 2, "refresh_entropy": 0.5,
}  # fmt: skip
"""A value that is right, for every field that something honours (start_profile's have tests of their own)."""
OTHERS: dict[tuple[str, str], Any] = {
    (RESPONSES, "text"): {"format": {"type": "text"}}, (MESSAGES, "tool_choice"): {"type": "auto"},
    (COUNT_TOKENS, "tool_choice"): {"type": "auto"}, (COMPLETIONS, "logprobs"): 2,
}  # fmt: skip
"""The same where a place has another type."""
AT = {
    SAMPLING: "sampling_params.", CUSTOM: "sampling_params.custom_params.", MESSAGE: "messages[0].",
    KWARGS: "chat_template_kwargs.", STREAM_OPTIONS: "stream_options.",
}  # fmt: skip
"""What stands before the names of a place's fields in errors."""
OF_OTHER_TEMPLATES = ("tools", "tool_calls")
"""The chat template of shop takes none: tests/runtime/http/test_tools.py."""


def body(place: str, extra: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Route and body with `extra` at a place."""
    route = INSIDE.get(place, place)
    bases: dict[str, dict[str, Any]] = {
        GENERATE: {"text": "red", "sampling_params": {"max_new_tokens": 4}},
        COMPLETIONS: {"prompt": "red", "max_tokens": 4},
        CHAT: {"messages": [{"role": "user", "content": "red"}], "max_tokens": 4},
        RESPONSES: {"input": "red", "max_output_tokens": 4},
        MESSAGES: {"messages": [{"role": "user", "content": "red"}], "max_tokens": 4},
        COUNT_TOKENS: {"messages": [{"role": "user", "content": "red"}]},
        SCORE: {"text": "red", "choices": [[5]]},
        LOOKUP: {"text": "red"},
        TOKENIZE: {"prompt": "red"},
        DETOKENIZE: {"tokens": [5]},
        ABORT: {"rid": "nobody"},
        PROFILE: {"num_steps": 1},
    }
    base = bases[route]
    instead = {"input_ids": "text", "max_completion_tokens": "max_tokens", "canvas": "sampling_params",
               "messages": "prompt", "parts": "prompt", "max_new_tokens": "sampling_params"}  # fmt: skip
    if route == TOKENIZE and any(name in extra for name in schemas.ChatRendering.model_fields):
        base = {"messages": bases[CHAT]["messages"]}
    for name, other in instead.items():
        if place == route and name in extra and name in SERVED[place]:
            base.pop(other, None)
    if place == SAMPLING:
        base["sampling_params"] |= extra
    elif place == CUSTOM:
        base["sampling_params"]["custom_params"] = extra
    elif place == KWARGS:
        base["chat_template_kwargs"] = extra
    elif place == MESSAGE:
        base["messages"][0] |= extra
    elif place == STREAM_OPTIONS:
        base |= {"stream": True, "stream_options": extra}
    else:
        base |= extra
    return route, base


def error_of(reply: Any) -> dict[str, Any]:
    """The error of a reply, in either form."""
    found: dict[str, Any] = reply.json()["error"]
    return found


def other_value(field: field_table.Field) -> Any:
    """A value that is neither neutral nor empty."""
    return next(value for value in (17, True, "17") if not any(value == neutral for neutral in field.neutral))


# The table itself


def test_rows_are_unique_and_name_what_exists():
    assert len(field_table._ROWS) == len(FIELDS) > 180
    for field in FIELDS.values():
        assert set(field.served) <= set(PLACES), field.name
        assert all(FIELDS[name].served for name in field.use), field.name
        assert not (field.any_value and (field.neutral or field.use)), field.name


def test_every_field_of_the_schemas_is_a_row():
    bodies: dict[str, type[schemas.Body]] = {
        GENERATE: schemas.GenerateBody, COMPLETIONS: schemas.CompletionBody, CHAT: schemas.ChatBody,
        SCORE: schemas.ScoreBody, TOKENIZE: schemas.TokenizeBody, DETOKENIZE: schemas.DetokenizeBody,
        ABORT: schemas.AbortBody, PROFILE: schemas.ProfileBody, MESSAGE: schemas.ChatMessage,
        STREAM_OPTIONS: schemas.StreamOptions, RESPONSES: schemas.ResponseBody, MESSAGES: schemas.MessagesBody,
        COUNT_TOKENS: schemas.CountBody,
    }  # fmt: skip
    for place, kind in bodies.items():
        assert set(kind.model_fields) <= {*SERVED[place], "model"}, place


def test_every_field_of_openai_s_client_is_a_row():
    pytest.importorskip("openai")
    from openai.types import completion_create_params
    from openai.types.chat import ChatCompletionMessageParam
    from openai.types.chat import completion_create_params as chat_create_params
    from openai.types.responses import response_create_params

    for kind in (
        completion_create_params.CompletionCreateParamsBase, chat_create_params.CompletionCreateParamsBase,
        response_create_params.ResponseCreateParamsBase,
    ):  # fmt: skip
        names = get_type_hints(kind)
        assert len(names) > 15
        assert set(names) - set(FIELDS) == set(), kind
    for kind in get_args(ChatCompletionMessageParam):
        assert set(get_type_hints(kind)) - set(FIELDS) == set(), kind


def test_every_field_of_anthropic_s_client_is_a_row():
    pytest.importorskip("anthropic")
    from anthropic.types import message_count_tokens_params, message_create_params

    for kind in (
        message_create_params.MessageCreateParamsBase, message_count_tokens_params.MessageCountTokensParams,
    ):  # fmt: skip
        names = get_type_hints(kind)
        assert len(names) > 8
        assert set(names) - set(FIELDS) == set(), kind


def test_every_extra_parameter_of_vllm_is_a_row():
    """Its own fields of completions and chats, beyond OpenAI's."""
    names = {
        "add_generation_prompt", "add_special_tokens", "allowed_token_ids", "bad_words", "cache_salt", "chat_template",
        "chat_template_kwargs", "continue_final_message", "documents", "echo", "guided_choice", "guided_grammar",
        "guided_json", "guided_regex", "guided_whitespace_pattern", "ignore_eos", "include_reasoning",
        "include_stop_str_in_output", "kv_transfer_params", "length_penalty", "logits_processors", "min_p",
        "min_tokens", "mm_processor_kwargs", "priority", "prompt_embeds", "prompt_logprobs", "repetition_penalty",
        "request_id", "return_token_ids", "return_tokens_as_token_ids", "skip_special_tokens",
        "spaces_between_special_tokens", "stop_token_ids", "structured_outputs", "top_k", "truncate_prompt_tokens",
        "use_beam_search", "vllm_xargs",
    }  # fmt: skip
    assert names - set(FIELDS) == set()


def test_every_field_of_sglang_s_schemas_is_a_row():
    """Read as text: importing them takes the CUDA engine."""
    sglang = pytest.importorskip("sglang")
    folder = Path(inspect.getfile(sglang)).parent / "srt"
    openai = (folder / "entrypoints/openai/protocol.py").read_text(encoding="utf-8")
    native = (folder / "managers/io_struct.py").read_text(encoding="utf-8")
    sampling = (folder / "sampling/sampling_params.py").read_text(encoding="utf-8")
    names = set(re.findall(r"^        (\w+): ", sampling, re.MULTILINE))
    for text, kind in ((openai, "CompletionRequest"), (openai, "ChatCompletionRequest"), (native, "GenerateReqInput")):
        found = re.search(rf"class {kind}\b.*?:\n(.*?)(?=\n(?:class |@dataclass))", text, re.DOTALL)
        assert found is not None
        names |= set(re.findall(r"^    (\w+):", found[1], re.MULTILINE))
    assert len(names) > 60
    assert names - set(FIELDS) == set()


def test_the_tables_in_the_docs_are_the_code_s():
    between = split("fields.md")[1]
    assert between == field_tables.tables(), "python -m tests.runtime.http.field_tables writes them anew"


# The rule


@pytest.mark.parametrize("place", PLACES)
def test_a_place_honours_accepts_or_refuses_each_field_by_the_table(place):
    for field in FIELDS.values():
        for nothing in NOTHING:
            check_fields(place, {field.name: nothing})
        if place in field.served:
            check_fields(place, {field.name: object()})
            continue
        if not is_misplaced(field, place):
            for neutral in field.neutral:
                check_fields(place, {field.name: neutral})
        if accepts(field, place, other_value(field)):
            assert field.any_value
            continue
        with pytest.raises(ApiError) as caught:
            check_fields(place, {field.name: other_value(field)})
        assert (caught.value.status, caught.value.param) == (400, field.name)
        assert caught.value.message.startswith(f"{field.name} is ")
        assert "leave it out" in caught.value.message


@pytest.mark.parametrize(
    ("place", "name", "near"),
    [
        (GENERATE, "treshold", "threshold"), (CHAT, "treshold", "threshold"), (COMPLETIONS, "maxTokens", "max_tokens"),
        (SCORE, "extrakey", "extra_key"), (SAMPLING, "max_new_token", "max_new_tokens"), (KWARGS, "step", "steps"),
        (CUSTOM, "stategy", "strategy"), (CHAT, "temprature", "temperature"), (TOKENIZE, "prompts", "prompt"),
        (GENERATE, "cache-salt", "cache_salt"), (ABORT, "abortAll", "abort_all"),
    ],
)  # fmt: skip
def test_misspelt_names_are_refused_with_the_right_one(place, name, near):
    with pytest.raises(ApiError, match=f"{name} is no field of {re.escape(place)}; did you mean {near}\\?") as caught:
        check_fields(place, {name: 1})
    assert caught.value.param == name


def test_unknown_names_like_none_of_ours_are_accepted_and_logged_once_but_not_among_decoding_options(caplog):
    for place in (GENERATE, COMPLETIONS, CHAT, TOKENIZE):
        for _ in range(2):
            check_fields(place, {"x_trace_of_tests": {"a": 1}, "quiet_of_tests": False})
        assert sum("x_trace_of_tests" in line and place in line for line in caplog.messages) == 1
    assert not any("quiet_of_tests" in line for line in caplog.messages)
    for place in (SAMPLING, SCORE):
        with pytest.raises(ApiError, match="x_trace_of_tests is no field of"):
            check_fields(place, {"x_trace_of_tests": 1})


# The same over HTTP


@pytest.mark.parametrize(
    ("sent", "param", "near"),
    [
        ({"sampling_params": {"max_tokens": 4}}, "sampling_params.max_tokens", "max_new_tokens says so here"),
        ({"text": ["red"], "sampling_params": [{"tempature": 1}]}, "sampling_params[0].tempature", "temperature?"),
        ({"sampling_params": {"custom_params": {"step": 4}}}, "sampling_params.custom_params.step", "steps?"),
        ({"sampling_params": {"custom_params": 5}}, "sampling_params.custom_params", "an object"),
        ({"sampling_params": {"cache_salt": 5}}, "sampling_params.cache_salt", ""),
    ],
)  # fmt: skip
def test_a_field_inside_another_is_named_with_its_place(client, sent, param, near):
    reply = client.post("/generate", json={"text": "red", **sent})
    assert (reply.status_code, error_of(reply)["param"]) == (400, param), reply.text
    assert error_of(reply)["message"].startswith(f"{param} is ")
    assert near in error_of(reply)["message"]


@pytest.mark.parametrize(
    ("route", "sent", "words"),
    [
        (CHAT, {"messages": []}, "messages is []; it must have at least one message"),
        (TOKENIZE, {"messages": []}, "messages is []; it must have at least one message"),
        (MESSAGES, {"messages": [], "max_tokens": 4}, "messages is []; it must have at least one message"),
        (COUNT_TOKENS, {"messages": []}, "messages is []; it must have at least one message"),
        (RESPONSES, {"input": []}, "input is []; it must have at least one entry"),
        (RESPONSES, {"input": ""}, 'input is ""; it must have at least one character'),
    ],
)
def test_what_is_empty_must_have_something(client, route, sent, words):
    reply = client.post(route, json=sent)
    assert reply.status_code == 400, reply.text
    assert words in error_of(reply)["message"]


@pytest.mark.parametrize("place", [place for place in PLACES if place != PROFILE])
def test_what_asks_for_nothing_is_accepted(client, place):
    """All at once, with what routers and clients of other servers send beside."""
    extra = {
        field.name: next(iter(field.neutral), "17" if field.any_value else None)
        for field in FIELDS.values()
        if place not in field.served and not is_misplaced(field, place)
    }
    route, sent = body(place, extra)
    reply = client.post(route, json=sent)
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize("place", PLACES)
def test_what_can_not_be_had_is_refused(client, place):
    for field in FIELDS.values():
        value = other_value(field)
        if place in field.served or accepts(field, place, value):
            continue
        route, sent = body(place, {field.name: value})
        reply = client.post(route, json=sent)
        assert (reply.status_code, error_of(reply)["param"]) == (400, AT.get(place, "") + field.name), reply.text
        assert error_of(reply)["message"].startswith(AT.get(place, "") + field.name)


@pytest.mark.parametrize("place", PLACES)
def test_what_is_honoured_is_looked_at(client, place):
    """A value of a wrong type is refused by name: so the route reads the field."""
    for name in SERVED[place]:
        wrong = {"wrong": 1} if (place, name) != (RESPONSES, "text") and name not in OBJECTS else 17
        route, sent = body(place, {name: wrong})
        reply = client.post(route, json=sent)
        assert reply.status_code == 400, (name, reply.text)
        assert name in error_of(reply)["message"], (name, reply.text)


@pytest.mark.parametrize("place", [place for place in PLACES if place != PROFILE])
def test_right_values_of_what_is_honoured_are_accepted(client, place):
    for name in SERVED[place]:
        if name in OF_OTHER_TEMPLATES:
            continue
        route, sent = body(place, {name: OTHERS.get((place, name), SAMPLES[name])})
        reply = client.post(route, json=sent)
        assert reply.status_code == 200, (name, reply.text)


@pytest.mark.parametrize(
    ("route", "content", "words"),
    [
        (GENERATE, b'{"text": "\xff"}', "it is no UTF-8: invalid start byte at byte 10"),
        (GENERATE, b'{"text": ' + b"[" * 5_000 + b"]" * 5_000 + b"}", "it is nested too deeply"),
        (GENERATE, b'{"x": ' + b"9" * 5000 + b"}", "it has a number of too many digits"),
        (GENERATE, b'{"text": 5}', "text is 5; it should be a valid string, or it should be a valid list"),
        (
            GENERATE,
            b'{"text": "red", "logprobs": 2}',
            "logprobs is 2, which is not supported: return_logprob says so here",
        ),
        (GENERATE, b'{"text": "red", "ignore_eos": 1}', "ignore_eos is 1; it should be a valid boolean"),
        (GENERATE, b'{"text": "red", "sampling_params": {"stop": [false]}}', "stop is false; it must be"),
        (GENERATE, b'{"text": "red", "sampling_params": {"ignore_eos": "x"}}', 'ignore_eos is "x"; it must be true'),
        (CHAT, b'{"messages": [{"content": "x"}]}', "messages[0].role is missing"),
        (CHAT, b'{"messages": [{"role": "user", "content": 5}]}', "messages[0].content is 5; it should be"),
        (CHAT, b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": -1}', "max_tokens is -1; it must be"),
        (COMPLETIONS, b'{"prompt": "x", "max_tokens": 16, "block_length": 0}', "block_length is 0; it must be"),
        (COMPLETIONS, b'{"prompt": "x", "best_of": true}', "leave it out or send 1"),
        (SCORE, b'{"text": "x", "choices": [true]}', "choices"),
        (SCORE, b'{"text": "x"}', "choices is missing"),
        (GENERATE, b'{"text": "x",}', "the body is no valid JSON: Expecting property name"),
        (GENERATE, b'{"text": "x", "steps": 4, "sampling_params": {"steps": 8}}', "steps is given twice: 4 and 8"),
        (
            CHAT,
            b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 4, "max_completion_tokens": 8}',
            "max_completion_tokens is 8 and max_tokens 4",
        ),
    ],
)
def test_messages_are_in_the_words_of_the_client(client, route, content, words):
    """JSON's values and the names that were sent, not Python's; and always the reason."""
    reply = client.post(route, content=content, headers={"content-type": "application/json"})
    assert reply.status_code == 400
    message = reply.json()["message"]
    assert words in message
    for foreign in ("None", "True", "False", "max_new_tokens", "prompts[", "parsing the body"):
        assert foreign not in message
