"""Rows that ask, masks, and the batches of a step."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from shoal.text import words
from shoal.text.asks import Draft, masked
from shoal.text.corpus import END
from shoal.text.evaluate import FACTS, LOOKUP_NAMES, LOOKUP_WORDS, lookup_rows
from shoal.text.masks import BLOCK, canvas_mask, text_mask
from shoal.text.network import MASK
from shoal.text.rows import KINDS, Chats, Steps


@pytest.mark.parametrize("kind", ["lookup", "quote", "gap", "classify"])
@pytest.mark.parametrize("length", [512, 1024])
def test_a_row_that_asks_is_exactly_as_long_as_asked_for_and_hides_its_answer(asker, kind, length):
    random = np.random.default_rng(5)
    for _ in range(20):
        row = asker.row(random, kind, length)
        assert len(row.tokens) == len(row.masked) == len(row.weight) == length
        assert row.masked.any()
        assert not row.masked[0]
        assert (row.weight[row.masked] > 0).all()


def test_the_answer_to_a_look_up_stands_in_the_text_before_the_question(asker, tokenizer):
    random = np.random.default_rng(6)
    for _ in range(30):
        draft = asker.lookup(random, 512)
        begin, end = draft.answers[-1]
        answer = tokenizer.decode(draft.tokens[begin:end], skip_special_tokens=True)
        value = re.sub(r"\.$", "", answer.strip()).split(" ")[-1]
        assert value in tokenizer.decode(draft.tokens[: draft.answers[0][0]])


def test_a_quoted_sentence_is_one_of_the_text_and_a_missing_word_is_not_in_the_question(asker, tokenizer):
    random = np.random.default_rng(7)
    for _ in range(10):
        draft = asker.quote(random, 512)
        begin, end = draft.answers[0]
        text = tokenizer.decode(draft.tokens[:begin])
        assert text.count(tokenizer.decode(draft.tokens[begin:end]).strip()) >= 1
        draft = asker.gap(random, 512)
        assert "____" in tokenizer.decode(draft.tokens[: draft.answers[0][0]])


def test_the_evaluation_s_names_words_and_thing_are_in_no_training_row():
    made_up = [*words.NAMES, *words.VALUES, *words.PLACES, *words.THINGS]
    assert not {w.lower() for w in [*LOOKUP_NAMES, *LOOKUP_WORDS, "password"]} & {w.lower() for w in made_up}
    templates = [*words.FACTS, *words.STATEMENTS, *words.QUESTIONS]
    assert not [t for t in templates if "remember" in t.lower() or "password" in t.lower()]
    assert len(set(words.NAMES)) == len(words.NAMES)
    assert len(set(words.VALUES)) == len(words.VALUES)


def test_the_rest_of_a_row_is_the_last_answer_s_canvas_at_a_low_weight():
    draft = Draft()
    draft.add([20, 21, 22])
    draft.add([30, 31], answer=True)
    for seed in range(40):
        row = masked(np.random.default_rng(seed), draft, 12)
        assert row.tokens.tolist() == [20, 21, 22, 30, 31] + [END] * 7
        assert row.masked[3:].any()
        assert row.weight[6:].max() < 0.1 < row.weight[3]


def test_a_draft_that_is_too_long_loses_its_beginning():
    draft = Draft(list(range(100, 120)))
    draft.add([7, 8], answer=True)
    row = masked(np.random.default_rng(0), draft, 10)
    assert row.tokens.tolist() == [*range(112, 120), 7, 8]


def test_text_is_masked_anywhere_or_in_a_suffix_and_never_at_its_first_token():
    random = np.random.default_rng(1)
    suffixes = 0
    for _ in range(200):
        mask, weight = text_mask(random, 512, random.random())
        assert not mask[0]
        assert 0.7 <= weight <= 2.0
        first = int(mask.argmax())
        suffixes += first > 100
    assert 40 < suffixes < 140


def test_a_canvas_always_hides_something_and_blocks_hide_all_behind_them():
    random = np.random.default_rng(2)
    for _ in range(200):
        mask, _ = canvas_mask(random, 100)
        assert mask.any()
        if not mask.all() and mask[-1] and not mask[: int(mask.argmax())].any():
            start = int(mask.argmax())
            assert mask[start + BLOCK :].all() or mask[start:].mean() < 1
    assert canvas_mask(random, 1)[0].tolist() == [True]


def test_steps_depend_on_seed_and_number_alone_and_point_at_the_state_before_a_target(base, data):
    steps = Steps(data, base / "tokenizer.json", seed=3, steps=10, tokens_per_step=4096)
    again = Steps(data, base / "tokenizer.json", seed=3, steps=10, tokens_per_step=4096)
    for number, length in ((4, 512), (5, 1024)):
        batch = steps[number]
        for one, two in zip(batch, again[number], strict=True):
            assert torch.equal(one, two)
        assert batch.tokens.shape == (4096 // length, length)
        counted = batch.weight > 0
        assert (batch.tokens.flatten()[batch.where[counted] + 1] == MASK).all()
        assert (batch.targets[counted] != MASK).all()
        assert set(batch.kind.tolist()) <= set(range(len(KINDS)))
    assert not torch.equal(steps[4].tokens, steps[6].tokens)


def test_chats_are_joined_to_the_length_and_their_answers_masked(tmp_path):
    tokens = np.full((3, 512), 40, np.uint16)
    tokens[:, 410:] = END
    np.savez(tmp_path / "chats.npz", tokens=tokens, begin=np.array([400, 400, 400]))
    chats = Chats.load([tmp_path / "chats.npz"])
    for seed in range(20):
        row = chats.row(np.random.default_rng(seed), 1024)
        assert len(row.tokens) == 1024
        hidden = row.masked.reshape(2, 512)
        assert not hidden[:, :400].any()
        assert hidden.any(1).all()
        assert row.weight.reshape(2, 512)[:, 411:].max() < 0.1


def test_look_up_rows_ask_for_one_of_six_facts_and_donors_share_the_prefix(data, tokenizer):
    stored = np.load(data / "held.npz")
    documents = np.stack([stored["tokens"][o : o + 1800] for o in stored["offsets"][:-1]]).astype(np.int64)
    rows = lookup_rows(documents, tokenizer, 512, 0.5)
    assert rows["tokens"].shape == rows["donors"].shape == (len(documents), 512)
    assert ((rows["tokens"] == MASK).sum(1) == 1).all()
    assert torch.equal(rows["tokens"][:, :256], rows["donors"][:, :256])
    assert (rows["answers"] != rows["other"]).all()
    for tokens, answer in zip(rows["tokens"].tolist(), rows["answers"].tolist(), strict=True):
        assert answer in tokens[:256]
        assert tokenizer.decode(tokens[:256]).count("The password of") == FACTS
