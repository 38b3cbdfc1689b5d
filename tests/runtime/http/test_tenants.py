"""Tenants: a prefix is shared only among requests whose cache_salt and extra_key are both equal, on every route."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shoal.runtime.http.batch import tenant_key

from .process import chat_messages, chat_text

ANY_TEXT = st.text(alphabet=st.sampled_from("ab:|\\1é"), max_size=8) | st.text(max_size=8)


@given(ANY_TEXT, ANY_TEXT, ANY_TEXT, ANY_TEXT)
@example("abc", "foo", "3:abcfoo", "")
@example("", "x", "0:x", "")
@example("a|b", "", "a", "b")
@example("a\\", "b", "a\\|b", "")
@example("a", "", "", "a")
def test_no_two_pairs_make_the_same_key(salt, extra, other_salt, other_extra):
    same = tenant_key(salt, extra) == tenant_key(other_salt, other_extra)
    assert same == ((salt, extra) == (other_salt, other_extra))


def test_all_short_pairs_make_different_keys():
    texts = ["".join(word) for n in range(4) for word in itertools.product("|\\a", repeat=n)]
    pairs = list(itertools.product(texts, repeat=2))
    assert len({tenant_key(*pair) for pair in pairs}) == len(pairs)


def bodies(prices) -> dict[str, dict[str, Any]]:
    """A request for every route that computes a prompt; all have the same one."""
    text = chat_text(prices, "Which things are red?")
    return {
        "/generate": {"text": text, "sampling_params": {"max_new_tokens": 8}},
        "/score": {"text": text, "choices": ["red apple", "plum 30"]},
        "/v1/completions": {"prompt": text, "max_tokens": 8},
        "/v1/chat/completions": {"messages": chat_messages(prices, "Which things are red?"), "max_tokens": 8},
    }


def reused(client, route, body) -> int:
    """Token-layers that a request took from what others have computed."""
    reply = client.post(route, json=body)
    assert reply.status_code == 200, reply.text
    info = reply.json()
    info = info["choices"][0] if route.startswith("/v1") else info
    return info["meta_info"]["reused_token_layers"]


@pytest.mark.parametrize("route", ["/generate", "/score", "/v1/completions", "/v1/chat/completions"])
def test_what_a_tenant_computes_serves_no_other(client, prices, route):
    client.post("/flush_cache").raise_for_status()
    mine: dict[str, Any] = {"cache_salt": "abc", "extra_key": "foo"}
    body = bodies(prices)[route]
    reused(client, route, {**body, **mine})
    plain = bodies(prices)["/generate"]
    others: list[dict[str, Any]] = [{}, {"cache_salt": "abc"}, {"extra_key": "foo"}, {"cache_salt": "3:abcfoo"},
                                    {"cache_salt": "abc|foo"}, {"cache_salt": "foo", "extra_key": "abc"}]  # fmt: skip
    assert [reused(client, "/generate", {**plain, **other}) for other in others] == [0] * len(others)
    assert reused(client, "/generate", {**plain, **mine}) > 0
    client.post("/flush_cache").raise_for_status()


def test_a_score_is_ended_after_its_time_and_its_priority_is_checked(client, prices):
    body = {**bodies(prices)["/score"], "cache_mode": "none"}
    late = client.post("/score", json={**body, "choices": [[5] * 128], "timeout_s": 0.05})
    assert late.status_code == 504, late.text
    assert "timeout" in late.json()["type"].lower()
    for field, value in (("timeout_s", 0), ("timeout_s", 1e9), ("priority", 1 << 40)):
        reply = client.post("/score", json={**body, field: value})
        assert reply.status_code == 400
        assert field in reply.json()["message"]
    assert client.post("/score", json={**body, "timeout_s": 60, "priority": 3}).status_code == 200


@pytest.mark.parametrize("where", ["sampling_params", "custom_params"])
def test_an_extra_key_inside_of_other_fields_counts(client, prices, where):
    client.post("/flush_cache").raise_for_status()
    text = chat_text(prices, "Which things are red?")
    params: dict[str, Any] = {"max_new_tokens": 8}
    inside = params if where == "sampling_params" else params.setdefault("custom_params", {})
    inside["extra_key"] = "nested"
    reused(client, "/generate", {"text": text, "sampling_params": params})
    plain = {"text": text, "sampling_params": {"max_new_tokens": 8}}
    assert reused(client, "/generate", plain) == 0
    assert reused(client, "/generate", {**plain, "extra_key": "nested"}) > 0


def test_two_salts_in_one_request_are_refused(client):
    body = {"text": "red", "cache_salt": "a", "sampling_params": {"max_new_tokens": 8, "cache_salt": "b"}}
    reply = client.post("/generate", json=body)
    assert (reply.status_code, reply.json()["param"]) == (400, "cache_salt")
