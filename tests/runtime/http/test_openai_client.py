"""The openai package against a real server process."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import openai
import pytest

from shoal.shop.task import ask_colour, ask_price

from .process import ServerProcess, chat_messages, chat_text


@pytest.fixture
def api(server: ServerProcess):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="EMPTY", max_retries=0) as api:
        yield api


def test_models(api):
    (model,) = api.models.list().data
    assert model.id == "shop"
    assert model.owned_by == "shoal"
    assert api.models.retrieve("shop").model_extra["max_model_len"] == 640
    with pytest.raises(openai.NotFoundError) as caught:
        api.models.retrieve("gpt-5")
    assert caught.value.code == "model_not_found"


def test_chat_completion(api, prices):
    question = ask_price(random.Random(1), prices, json=True)
    reply = api.chat.completions.create(
        model="shop", messages=chat_messages(prices, question.text), max_completion_tokens=32, temperature=0, seed=1
    )
    (choice,) = reply.choices
    assert choice.message.content == question.answer
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert choice.model_extra["meta_info"]["nfe"] >= 1
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    again = api.chat.completions.create(
        model="shop", messages=chat_messages(prices, question.text), max_tokens=32, temperature=0
    )
    assert again.usage.prompt_tokens_details.cached_tokens > 0


def test_chat_content_may_be_text_parts(api, prices):
    question = ask_price(random.Random(2), prices, json=False)
    messages = chat_messages(prices, question.text)
    whole = api.chat.completions.create(model="shop", messages=messages, max_tokens=8)
    parts = [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in messages]
    split = api.chat.completions.create(model="shop", messages=parts, max_tokens=8)
    assert split.choices[0].message.content == whole.choices[0].message.content == question.answer
    assert split.usage.prompt_tokens == whole.usage.prompt_tokens


def test_chat_stream_with_usage(api, prices):
    question = ask_colour(random.Random(3), prices, json=True)
    stream = api.chat.completions.create(
        model="shop", messages=chat_messages(prices, question.text), max_tokens=32, stream=True,
        stream_options={"include_usage": True}, extra_body={"steps": 32, "block_length": 8, "cache_mode": "none"},
    )  # fmt: skip
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == question.answer
    assert len(chunks) > 4
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 0
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_knobs_of_chats_also_in_chat_template_kwargs(api, prices):
    reply = api.chat.completions.create(
        model="shop", messages=chat_messages(prices, "List all red things."), max_tokens=16,
        extra_body={"chat_template_kwargs": {"steps": 6, "block_length": 8, "cache_mode": "none",
                                             "enable_thinking": False}, "ignore_eos": True},
    )  # fmt: skip
    info = reply.choices[0].model_extra["meta_info"]
    assert info["nfe"] == 6
    assert info["cache_mode"] == "none"


def test_completions(api, prices):
    question = ask_price(random.Random(4), prices, json=False)
    reply = api.completions.create(model="shop", prompt=chat_text(prices, question.text), max_tokens=8)
    assert reply.choices[0].text == question.answer
    assert reply.choices[0].finish_reason == "stop"
    short = api.completions.create(model="shop", prompt="red", extra_body={"ignore_eos": True})
    assert short.usage.completion_tokens == 16
    assert short.choices[0].finish_reason == "length"


def test_completions_of_several_prompts_with_n(api, prices):
    rng = random.Random(5)
    questions = [ask_price(rng, prices, json=False) for _ in range(2)]
    texts = [chat_text(prices, q.text) for q in questions]
    reply = api.completions.create(model="shop", prompt=texts, max_tokens=8, n=2)
    assert [c.index for c in reply.choices] == [0, 1, 2, 3]
    assert [c.text for c in reply.choices] == [q.answer for q in questions for _ in range(2)]
    lengths = [api.completions.create(model="shop", prompt=text, max_tokens=8).usage.prompt_tokens for text in texts]
    assert reply.usage.prompt_tokens == sum(lengths)


def test_completions_of_token_ids_and_echo(api, client, prices):
    text = chat_text(prices, "Which things are red?")
    ids = client.post("/tokenize", json={"prompt": text}).json()["tokens"]
    exact = {"cache_mode": "dual"}
    as_text = api.completions.create(model="shop", prompt=text, max_tokens=16, extra_body=exact)
    as_ids = api.completions.create(model="shop", prompt=ids, max_tokens=16, extra_body=exact)
    assert as_ids.choices[0].text == as_text.choices[0].text
    echoed = api.completions.create(model="shop", prompt=[ids], max_tokens=16, echo=True, extra_body=exact)
    assert echoed.choices[0].text == text + as_text.choices[0].text


def test_completion_stream(api, prices):
    question = ask_colour(random.Random(6), prices, json=False)
    stream = api.completions.create(
        model="shop", prompt=chat_text(prices, question.text), max_tokens=32, stream=True, echo=True,
        stream_options={"include_usage": True, "continuous_usage_stats": True},
        extra_body={"steps": 32, "block_length": 8, "cache_mode": "none"},
    )  # fmt: skip
    chunks = list(stream)
    text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
    assert text == chat_text(prices, question.text) + question.answer
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_stop(api, prices):
    question = ask_colour(random.Random(9), prices, json=True)
    reply = api.chat.completions.create(
        model="shop", messages=chat_messages(prices, question.text), max_tokens=32, stop=["items"]
    )
    assert reply.choices[0].message.content == question.answer.partition("items")[0]
    assert reply.choices[0].model_extra["matched_stop"] == "items"


async def test_async_clients_at_once_get_their_own_answers(server, prices):
    rng = random.Random(7)
    questions = [ask_price(rng, prices, json=False) for _ in range(12)]
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="EMPTY", max_retries=0) as api:

        async def ask(question):
            messages: Any = chat_messages(prices, question.text)
            if rng.random() < 0.5:
                reply = await api.chat.completions.create(model="shop", messages=messages, max_tokens=8)
                return reply.choices[0].message.content
            stream: Any = await api.chat.completions.create(model="shop", messages=messages, max_tokens=8, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        answers = await asyncio.gather(*map(ask, questions))
    assert answers == [q.answer for q in questions]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_logprobs": 3}, "logprobs is not true"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
        ({"frequency_penalty": "high"}, "frequency_penalty"),
        ({"logit_bias": {"5": "much"}}, "logit_bias"),
        ({"temperature": 0.7, "top_p": 2}, "top_p"),
        ({"max_tokens": 5000}, "640"),
        ({"messages": []}, "messages is []; it must have at least one message"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "chat_template.jinja) refuses the messages: role must be"),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "boss", "content": "x"}]},
            'messages[1].role is "boss"; it must be one of system, developer, user, assistant, tool',
        ),
        ({"messages": [{"role": "mask", "content": "x"}]}, 'messages[0].role is "mask"'),
        ({"messages": [{"role": "", "content": "x"}]}, 'messages[0].role is ""'),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            'messages[0].content[0].type is "image_url"',
        ),
        ({"messages": [{"role": "user"}]}, "content"),
        ({"messages": [{"content": "x"}]}, "role"),
        ({"n": 9}, "from 1 to 4"),
    ],
)
def test_chats_that_cannot_be_honoured_are_refused(api, options, words):
    messages = [{"role": "user", "content": "Which things are red?"}]
    with pytest.raises(openai.BadRequestError) as caught:
        api.chat.completions.create(**{"model": "shop", "messages": messages, **options})
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"logprobs": 1, "echo": True, "max_tokens": 1}, "log probabilities"),
        ({"suffix": "after", "stop": "x"}, "stop can't be used with suffix"),
        ({"suffix": "after", "max_tokens": 0}, "at least 1"),
        ({"suffix": "after", "max_tokens": 10**15}, "send max_tokens of at most"),
        ({"best_of": 3}, "best_of"),
        ({"prompt": [["red"]]}, "prompt"),
        ({"prompt": []}, "at least one"),
    ],
)
def test_completions_that_cannot_be_honoured_are_refused(api, options, words):
    with pytest.raises(openai.BadRequestError) as caught:
        api.completions.create(**{"model": "shop", "prompt": "red", **options})
    assert words in caught.value.message
