"""Questions made from plain documents, and a profile by them."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shoal.cli import app
from shoal.profile.choice import make_cells, unanswered_kinds
from shoal.profile.data import Row
from shoal.profile.questions import PIECE_TOKENS, make_questions
from shoal.radix_cache.depth_profile import DepthProfile
from shoal.runtime.errors import ConfigError
from shoal.runtime.text.tokenizer import Tokenizer
from shoal.text.network import Network
from shoal.text.publish import publish

from ..text.tiny import sentence, write_base


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("questions")
    base = write_base(root / "base")
    publish(Network.load_base(base), base, root / "model")
    return root / "model"


@pytest.fixture(scope="module")
def documents(tmp_path_factory) -> Path:
    rng = random.Random(1)
    path = tmp_path_factory.mktemp("questions") / "documents.txt"
    path.write_text("\n\n".join(" ".join(sentence(rng) for _ in range(5)) for _ in range(18)))
    return path


def test_every_question_is_answered_by_its_document(model, documents):
    tokenizer = Tokenizer.load(model)
    groups = make_questions(documents, tokenizer, seed=0)
    assert list(groups) == [f"piece {number}" for number in range(1, len(groups) + 1)]
    assert len(groups) >= 2
    for rows in groups.values():
        assert {row.kind for row in rows} == {"look-up", "quotation", "missing word"}
        assert sum(row.kind == "look-up" for row in rows) == 6
        for row in rows:
            prompt = tokenizer.decode(row.tokens)
            document, _, question = prompt.rpartition("\n\n")
            assert row.answer is not None
            assert row.is_right(document)
            if row.kind == "look-up":
                (who,) = re.findall(r"code word of (\w+)\?", question)
                assert f"The code word of {who} is {row.answer}." in document
            elif row.kind == "missing word":
                holed = re.search(r"here\? (.*?)(?:\n|$)", question)
                assert holed is not None
                assert holed[1].replace("____", row.answer) in document
        longest = max(len(row.tokens) for row in rows)
        assert PIECE_TOKENS // 2 < longest < 2 * PIECE_TOKENS
    assert groups == make_questions(documents, tokenizer, seed=0)
    assert groups != make_questions(documents, tokenizer, seed=1)


def test_an_answer_may_stand_in_a_sentence_of_its_own():
    row = Row((1,), "amber", "look-up", contains=True)
    assert row.is_right("The code word is\n Amber.")
    assert not row.is_right("It is copper.")
    assert not Row((1,), "amber", "look-up").is_right("The code word is amber.")
    assert Row((1,), None, "all").is_right("x") is None


def test_a_profile_of_documents_falls_back_on_agreement_where_the_model_answers_nothing(model, documents, tmp_path):
    out = tmp_path / "out"
    flags = ["--ratios", "0.8", "--depths", "3", "--layers-per-band", "1", "--captures", "first", "--intervals", "0"]
    flags += ["--margins", "0", "--groups", "1", "--questions", "3", "--max-new-tokens", "4", "--device", "cpu"]
    result = CliRunner().invoke(app, ["profile", str(model), "--data", str(documents), "--out", str(out), *flags])
    assert result.exit_code == 0, result.output
    assert "fewer than half rightly of: look-up, missing word, quotation" in " ".join(result.output.split())
    profile = DepthProfile.load(out / "depth_profile.json")
    assert profile.metric == "agreement of the text with mode none, worst kind"
    assert (out / "cells.csv").read_text().count("quotation") == 2


def test_kinds_that_mode_none_cannot_answer_are_named():
    def row(kind: str, right: bool) -> dict[str, object]:
        return {"kind": kind, "same": True, "edits": 0, "length": 1, "right": right, "right_none": right, "nfe": 1,
                "refreshes": 1, "ratio": 0.5}  # fmt: skip

    rows = [row("a", True), row("a", True), row("b", True), row("b", False), row("c", False), row("c", False)]
    layer = {"cosine_k": 1.0, "cosine_v": 1.0, "error_k": 0.0, "error_v": 0.0, "worst": 0.0}
    unit = {"ratio": 0.5, "drift": {"first": [[layer]]},
            "cells": [{"capture": "first", "depth": 1, "interval": 0, "rows": rows}]}  # fmt: skip
    assert unanswered_kinds(make_cells([unit])) == ["c"]


@pytest.mark.parametrize("content", ["", "Too short."])
def test_a_file_that_is_too_short_is_refused(model, tmp_path, content):
    path = tmp_path / "short.txt"
    path.write_text(content)
    with pytest.raises(ConfigError, match="at least 64 tokens") as caught:
        make_questions(path, Tokenizer.load(model), seed=0)
    assert caught.value.field == "data"


def test_documents_need_a_tokenizer_and_a_file_that_can_be_read(model, tmp_path):
    with pytest.raises(ConfigError, match="no tokenizer"):
        make_questions(tmp_path / "x.txt", None, seed=0)
    with pytest.raises(ConfigError, match="can't be read"):
        make_questions(tmp_path / "x.txt", Tokenizer.load(model), seed=0)
