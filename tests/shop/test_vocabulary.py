"""The vocabulary: exact round trips, and the published tokenizer beside the fast encoder of training."""

from __future__ import annotations

import random
import re
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from shoal.runtime.model.hub import bundled_model_folder
from shoal.shop import vocabulary
from shoal.shop.evaluate import render
from shoal.shop.task import KINDS, MAX_ITEMS, MAX_PER_COLOUR, NOUNS, chat, make_list, make_question

UNKNOWN_ID = vocabulary.ids()[vocabulary.UNKNOWN]


@cache
def load():
    return AutoTokenizer.from_pretrained(bundled_model_folder())


@pytest.fixture(scope="module")
def published():
    return load()


def random_chat(seed: int) -> list[dict[str, str]]:
    rng = random.Random(f"chat-{seed}")
    prices = make_list(rng, rng.randint(2, MAX_ITEMS), held_out=seed % 2 == 0)
    turns = [make_question(rng, prices) for _ in range(rng.randint(0, 4))]
    return chat(prices, [(q.text, q.answer) for q in turns], make_question(rng, prices).text)


def test_tokens_are_256_and_distinct():
    tokens = vocabulary.tokens()
    assert len(tokens) == len(set(tokens)) == vocabulary.VOCAB_SIZE == 256
    assert tokens[0] == "<|eos|>"
    assert tokens[1] == "<|mask|>"
    assert list(vocabulary.ids().values()) == list(range(256))


@pytest.mark.parametrize("seed", range(25))
def test_encode_is_the_published_tokenizer(published, seed):
    text = render(random_chat(seed))
    ids = vocabulary.encode(text)
    assert ids == published(text, add_special_tokens=False)["input_ids"] == published(text)["input_ids"]
    assert UNKNOWN_ID not in ids
    assert "".join(vocabulary.tokens()[i] for i in ids) == text == published.decode(ids)


@pytest.mark.parametrize("seed", range(10))
def test_chat_template_is_render(published, seed):
    messages = random_chat(seed)
    text = published.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == render(messages)
    ids = published.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == vocabulary.encode(text)
    without = published.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
    assert without + "<|assistant|>" == text


def test_chat_template_refuses_other_roles(published):
    with pytest.raises(Exception, match="role must be"):
        published.apply_chat_template([{"role": "tool", "content": "none"}], tokenize=False)


def test_published_special_tokens(published):
    assert (published.eos_token_id, published.pad_token_id, published.mask_token_id) == (0, 0, 1)
    assert published.unk_token_id == UNKNOWN_ID
    assert published.model_max_length == 640


# Pieces of the vocabulary and of what lies outside it: other words, capitals, digits, marks, letters beyond ASCII, and
# the beginnings of special tokens.
PIECES = st.lists(
    st.one_of(
        st.sampled_from([t for t in vocabulary.tokens() if not t.startswith("<|reserved_")]),
        st.sampled_from(["zebra", "Red", "  ", "\t", "\r\n", "é", "½", "数", "#", "<|", "|>", "<|mask", "<", "7", "_"]),
    ),
    max_size=30,
).map("".join)


@given(PIECES)
def test_encode_is_the_published_tokenizer_on_any_text(text):
    ids = vocabulary.encode(text)
    assert ids == load()(text)["input_ids"]
    pieces = re.findall("|".join(re.escape(s) for s in vocabulary.SPECIAL) + "|" + vocabulary.PIECE, text)
    assert "".join(pieces) == text
    assert ids == [vocabulary.ids().get(piece, UNKNOWN_ID) for piece in pieces]


def test_decode_stops_at_eos():
    ids = vocabulary.encode("the red pear<|eos|> blue<|eos|>")
    assert vocabulary.decode(ids) == "the red pear"
    assert vocabulary.decode(vocabulary.encode("the red pear")) == "the red pear"


def test_answers_with_their_eos_fit_32_tokens():
    """The longest answer of each kind: names are two tokens, numbers one a digit, whatever was drawn."""
    rng = random.Random("longest")
    longest: dict[str, int] = {}
    for index in range(1500):
        prices = make_list(rng, rng.choice((2, 30, MAX_ITEMS)))
        question = make_question(rng, prices, KINDS[index % 4])
        name = question.kind + "/json" * question.json
        longest[name] = max(longest.get(name, 0), len(vocabulary.encode(question.answer + "<|eos|>")))
    full = '{"items": [' + ", ".join(f'"{noun}"' for noun in NOUNS[:MAX_PER_COLOUR]) + "]}<|eos|>"
    longest["colour/json"] = max(longest["colour/json"], len(vocabulary.encode(full)))
    assert len(longest) == 8
    assert max(longest.values()) <= 32, longest


def test_lists_of_all_sizes_fit_the_model():
    """70 items, three earlier turns of the longest kinds, a question and a canvas of 32 stay under 640 tokens."""
    rng = random.Random("fits")
    for _ in range(20):
        prices = make_list(rng, MAX_ITEMS)
        turns = [make_question(rng, prices, "colour", True) for _ in range(3)]
        question = make_question(rng, prices, "total", True)
        text = render(chat(prices, [(q.text, q.answer) for q in turns], question.text))
        assert len(vocabulary.encode(text)) + 32 <= 640
