"""Programs of sglang's frontend language, through its RuntimeEndpoint, against a real server process."""

from __future__ import annotations

import random

import pytest

from shoal.shop.task import ask_colour, ask_price

sgl = pytest.importorskip("sglang")


@pytest.fixture(scope="module")
def backend(server):
    from sglang.lang.chat_template import ChatTemplate, register_chat_template

    register_chat_template(
        ChatTemplate(
            name="shop",
            default_system_prompt=None,
            role_prefix_and_suffix={
                "system": ("<|system|>", "<|end|>"),
                "user": ("<|user|>", "<|end|>"),
                "assistant": ("<|assistant|>", "<|eos|>"),
            },
        )
    )
    return sgl.RuntimeEndpoint(server.url, chat_template_name="shop")


@sgl.function
def answer(s, prices, question):
    s += sgl.system(prices)
    s += sgl.user(question)
    s += sgl.assistant(sgl.gen("answer", max_tokens=32, temperature=0))


def test_a_program(backend, prices):
    question = ask_price(random.Random(1), prices, json=True)
    state = answer.run(prices=prices.text, question=question.text, backend=backend)
    assert state["answer"] == question.answer
    assert state.get_meta_info("answer")["nfe"] >= 1


def test_the_default_temperature_of_one_is_taken(backend, prices):
    """sglang's own default; `shop` is sure enough to be right all the same."""

    @sgl.function
    def drawn(s, question):
        s += sgl.system(prices.text) + sgl.user(question)
        s += sgl.assistant(sgl.gen("answer", max_tokens=8))

    question = ask_price(random.Random(2), prices, json=False)
    assert drawn.run(question=question.text, backend=backend)["answer"] == question.answer


def test_run_batch_caches_the_common_prefix_and_answers_in_order(backend, prices, client):
    rng = random.Random(3)
    questions = [ask_price(rng, prices, json=False) for _ in range(8)]

    @sgl.function
    def ask(s, question):
        s += sgl.system(prices.text)
        s += sgl.user(question)
        s += sgl.assistant(sgl.gen("answer", max_tokens=8, temperature=0))

    client.post("/flush_cache").raise_for_status()
    states = ask.run_batch([{"question": q.text} for q in questions], backend=backend, num_threads=4)
    assert [state["answer"] for state in states] == [q.answer for q in questions]
    assert all(state.get_meta_info("answer")["cached_tokens"] > 0 for state in states)


def test_streaming(backend, prices):
    question = ask_colour(random.Random(4), prices, json=True)
    state = answer.run(prices=prices.text, question=question.text, backend=backend, stream=True)
    pieces = list(state.text_iter("answer"))
    assert "".join(pieces) == question.answer


def test_fork_and_join(backend, prices):
    rng = random.Random(5)
    questions = [ask_price(rng, prices, json=False) for _ in range(3)]

    @sgl.function
    def forked(s):
        s += sgl.system(prices.text)
        branches = s.fork(len(questions))
        for branch, question in zip(branches, questions, strict=True):
            branch += sgl.user(question.text)
            branch += sgl.assistant(sgl.gen("answer", max_tokens=8, temperature=0))
        branches.join()
        s["answers"] = [branch["answer"] for branch in branches]

    assert forked.run(backend=backend)["answers"] == [q.answer for q in questions]


def test_stop_and_turns(backend, prices):
    rng = random.Random(6)
    first, second = ask_colour(rng, prices, json=True), ask_price(rng, prices, json=False)

    @sgl.function
    def turns(s):
        s += sgl.system(prices.text) + sgl.user(first.text)
        s += sgl.assistant(sgl.gen("first", max_tokens=32, temperature=0, stop="]"))
        s += sgl.user(second.text)
        s += sgl.assistant(sgl.gen("second", max_tokens=8, temperature=0))

    state = turns.run(backend=backend)
    assert state["first"] == first.answer.partition("]")[0]
    assert state["second"]


def test_flush_and_server_info(backend):
    backend.flush_cache()
    assert backend.get_server_info()["model_path"] == "shop"


def test_select_is_refused_with_words_not_answered_with_made_up_numbers(backend):
    """Its scores are log probabilities of an autoregressive model."""
    import requests

    reply = requests.post(
        f"{backend.base_url}/generate",
        json={"text": ["a b", "a c"], "sampling_params": {"max_new_tokens": 0, "temperature": 0},
              "return_logprob": True, "return_text_in_logprobs": True, "logprob_start_len": 0},
        timeout=30,
    )  # fmt: skip
    assert reply.status_code == 400
    assert "log probabilities" in reply.json()["error"]["message"]
