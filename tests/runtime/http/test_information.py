"""Request ids, flushing, information, tokens and metrics, of the shared server."""

from __future__ import annotations

import random
import threading

from shoal.shop.task import ask_price

from .process import SLOW, chat_text, metric_values, wait_idle, wait_load


def test_request_ids(client):
    body = {"text": "red", "sampling_params": {"max_new_tokens": 8}}
    by_header = client.post("/generate", json=body, headers={"X-Request-ID": "abc-1"})
    assert by_header.headers["x-request-id"] == by_header.json()["meta_info"]["id"] == "abc-1"
    by_body = client.post("/generate", json={**body, "rid": "abc-2"}, headers={"X-Request-ID": "abc-1"})
    assert by_body.headers["x-request-id"] == by_body.json()["meta_info"]["id"] == "abc-2"
    several = client.post("/generate", json={**body, "text": ["red", "blue"], "rid": ["x", "y"]}).json()
    assert [one["meta_info"]["id"] for one in several] == ["x", "y"]
    drawn = client.post("/generate", json={**body, "rid": "z", "n": 2}).json()
    assert [one["meta_info"]["id"] for one in drawn] == ["z.0", "z.1"]
    chat = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "red"}], "max_tokens": 8},
                       headers={"x-request-id": "abc-3"})  # fmt: skip
    assert chat.json()["id"] == "chatcmpl-abc-3"
    odd = client.post("/generate", json=body, headers={"x-request-id": "two words"})
    assert odd.headers["x-request-id"] != "two words"


def test_an_id_in_use_is_refused_and_abort_ends_all_of_a_request(client):
    body = {**SLOW, "rid": "group", "text": ["red", "blue"], "n": 2}
    replies = []
    thread = threading.Thread(target=lambda: replies.append(client.post("/generate", json=body)))
    thread.start()
    wait_load(client, 4)
    assert client.post("/generate", json={"text": "red", "rid": "group"}).status_code == 400
    assert client.post("/abort_request", json={"rid": "group"}).json() == {"aborted": 4}
    thread.join(60)
    assert [one["meta_info"]["finish_reason"]["type"] for one in replies[0].json()] == ["abort"] * 4
    assert client.post("/abort_request", json={"rid": "group"}).json() == {"aborted": 0}
    assert client.post("/abort_request", json={}).status_code == 400
    wait_idle(client)


def test_flush_refuses_while_requests_run_and_waits_when_asked(client, prices):
    text = chat_text(prices, "Which things are red?")
    client.post("/generate", json={"text": text, "max_new_tokens": 8}).raise_for_status()
    assert client.get("/cache").json()["num_nodes"] > 0
    slow = {**SLOW, "rid": "holds"}
    thread = threading.Thread(target=client.post, args=("/generate",), kwargs={"json": slow})
    thread.start()
    wait_load(client, 1)
    refused = client.post("/flush_cache")
    assert refused.status_code == 400
    assert client.get("/cache").json()["num_nodes"] > 0
    threading.Timer(0.5, client.post, ("/abort_request",), {"json": {"rid": "holds"}}).start()
    assert client.post("/flush_cache?timeout=60").status_code == 200
    thread.join(60)
    assert client.get("/cache").json()["num_nodes"] == 0
    assert client.post("/flush_cache").text == "Cache flushed.\n"
    assert client.post("/flush_cache?timeout=-1").status_code == 400
    assert client.post("/flush_cache?timeout=soon").status_code == 400


def test_information_has_what_clients_read(client):
    for path in ("/model_info", "/get_model_info"):
        info = client.get(path).json()
        assert info["model_path"] == "shop"
        assert info["is_generation"] is True
        assert info["tokenizer_path"].endswith("model")
        assert info["stop_token_ids"] == [info["eos_token_id"]] == [0]
    for path in ("/server_info", "/get_server_info"):
        info = client.get(path).json()
        assert info["page_size"] == 16
        assert info["tp_size"] == info["dp_size"] == 1
        assert info["served_model_name"] == info["model_path"] == "shop"
        assert info["internal_states"][0]["memory_usage"]["token_capacity"] == 16384
    assert client.get("/get_load").json()[0].keys() == {"dp_rank", "num_reqs", "num_waiting_reqs", "num_tokens"}
    assert client.get("/v1/loads").json()["loads"][0]["num_total_reqs"] == 0
    schema = client.get("/openapi.json").json()
    assert {"/generate", "/v1/completions", "/v1/chat/completions"} <= set(schema["paths"])
    assert "swagger" in client.get("/docs").text.lower()


def test_tokenize_and_detokenize(client, prices):
    text = chat_text(prices, "Which things are red?")
    ids = client.post("/tokenize", json={"prompt": text}).json()
    assert ids["count"] == len(ids["tokens"])
    messages = [{"role": "system", "content": prices.text}, {"role": "user", "content": "Which things are red?"}]
    assert client.post("/tokenize", json={"messages": messages}).json()["tokens"] == ids["tokens"]
    many = client.post("/tokenize", json={"prompt": ["red", text]}).json()
    assert many["tokens"][1] == ids["tokens"]
    assert many["count"] == [1, ids["count"]]
    back = client.post("/detokenize", json={"tokens": ids["tokens"], "skip_special_tokens": False}).json()["text"]
    assert back == text
    plain = client.post("/detokenize", json={"tokens": [ids["tokens"], many["tokens"][0]]}).json()["text"]
    assert plain[1] == "red"
    assert "<|" not in plain[0]
    for path, body in (("/tokenize", {}), ("/tokenize", {"prompt": "a", "messages": []}), ("/tokenize", {"prompt": 5}),
                       ("/detokenize", {"tokens": [999]}), ("/detokenize", {"tokens": ["a"]}),
                       ("/detokenize", {"tokens": [[1], 2]}), ("/tokenize", {"prompt": ["a"] * 65})):  # fmt: skip
        assert client.post(path, json=body).status_code == 400, body


def test_metrics_count_what_happened(client, prices):
    wait_idle(client)
    before = metric_values(client)
    question = ask_price(random.Random(1), prices, json=False)
    for _ in range(2):
        client.post("/generate", json={"text": chat_text(prices, question.text), "cache_salt": "metrics",
                                       "sampling_params": {"max_new_tokens": 8}})  # fmt: skip
    after = metric_values(client)

    def grew(name, labels='{model_name="shop"}'):
        return after[f"shoal:{name}{labels}"] - before.get(f"shoal:{name}{labels}", 0)

    assert grew("num_requests_total") == 2
    assert grew("generation_tokens_total") == 4
    assert grew("prefix_cache_hits_total") == 1
    assert grew("cached_tokens_total") > 50
    assert grew("reused_token_layers_total") == grew("cached_tokens_total") * 8
    assert grew("nfe_total") >= 2
    assert grew("prefix_refreshes_total") >= 2
    ended = '{model_name="shop",outcome="stop"}'
    assert grew("e2e_request_latency_seconds_count", ended) == grew("time_to_first_token_seconds_count", ended) == 2
    assert grew("http_requests_total", '{route="/generate",status="200"}') == 2
    assert after['shoal:pages{held="requests",model_name="shop",pool="kv"}'] == 0


def test_metrics_are_the_sums_of_the_replies_by_outcome(client, prices):
    """Answers in all modes, one that times out, an aborted one, and what is refused: each counts where it ended."""
    wait_idle(client)
    before = metric_values(client)
    question = ask_price(random.Random(2), prices, json=False)
    modes = ("none", "prefix", "dual", "lm", "bicache")
    bodies = [
        {"text": chat_text(prices, question.text), "cache_mode": mode, "cache_salt": "sums",
         "sampling_params": {"max_new_tokens": 16, "ignore_eos": ignore}}
        for mode in modes for ignore in (False, True)
    ]  # fmt: skip
    replies = [client.post("/generate", json=body).json() for body in bodies]
    long = {"text": "red", "ignore_eos": True, "cache_mode": "none", "max_new_tokens": 384, "steps": 384}
    assert client.post("/generate", json={**long, "timeout_s": 0.2}).status_code == 504
    running = threading.Thread(target=client.post, args=("/generate",), kwargs={"json": {**long, "rid": "sums-abort"}})
    running.start()
    wait_load(client, 1)
    assert metric_values(client)['shoal:num_running_reqs{model_name="shop"}'] <= 1
    client.post("/abort_request", json={"rid": "sums-abort"}).raise_for_status()
    running.join(60)
    refused = [
        ("/generate", {"text": "red", "max_new_tokens": 100_000}),
        ("/generate", {"input_ids": [9] * 1000, "max_new_tokens": 64}),
        ("/v1/completions", {"prompt": "red", "max_tokens": 100_000}),
        ("/generate", {"text": "red", "steps": -1}),
    ]
    assert [client.post(path, json=body).status_code for path, body in refused] == [400] * len(refused)
    assert client.post("/tokenize", json={}).status_code == 400  # asks for no answer
    wait_idle(client)
    after = metric_values(client)

    def grew(name: str, **labels: str) -> float:
        pairs = ",".join(f'{key}="{value}"' for key, value in sorted({"model_name": "shop", **labels}.items()))
        key = f"shoal:{name}{{{pairs}}}"
        return after.get(key, 0) - before.get(key, 0)

    infos = [reply["meta_info"] for reply in replies]
    reasons = [info["finish_reason"]["type"] for info in infos]
    assert set(reasons) == {"stop", "length"}
    for reason in ("stop", "length"):
        answered = [info for info, why in zip(infos, reasons, strict=True) if why == reason]
        assert grew("finished_requests_total", reason=reason) == len(answered)
        for name, field in (("nfe_per_request", "nfe"), ("prompt_tokens_histogram", "prompt_tokens"),
                            ("generation_tokens_histogram", "completion_tokens")):  # fmt: skip
            assert grew(f"{name}_count", outcome=reason) == len(answered)
            assert grew(f"{name}_sum", outcome=reason) == sum(info[field] for info in answered)
        assert grew("e2e_request_latency_seconds_count", outcome=reason) == len(answered)
    assert grew("cached_tokens_total") == sum(info["cached_tokens"] for info in infos)
    assert grew("num_timed_out_requests_total") == grew("e2e_request_latency_seconds_count", outcome="timeout") == 1
    assert grew("num_aborted_requests_total") == grew("e2e_request_latency_seconds_count", outcome="abort") == 1
    assert grew("num_refused_requests_total") == len(refused)
    assert grew("e2e_request_latency_seconds_count", outcome="error") == grew("num_failed_requests_total") == 0
    assert grew("num_requests_total") == len(bodies) + 2
    for name in ("gen_throughput", "input_throughput"):
        assert after[f'shoal:{name}{{model_name="shop"}}'] == 0


def test_prompts_times_n_are_limited(client):
    reply = client.post("/generate", json={"text": ["red"] * 17, "n": 4, "max_new_tokens": 0})
    assert reply.status_code == 400
    assert "68 answers; this server gives at most 64" in reply.json()["message"]


def test_health_generate(client):
    assert client.get("/health_generate").json() == {"status": "up"}
