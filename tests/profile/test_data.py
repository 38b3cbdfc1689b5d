"""Data files: groups, digests, and errors that name the line."""

from __future__ import annotations

import json

import pytest

from shoal.profile.data import data_digest, load_groups
from shoal.runtime.errors import ConfigError
from shoal.runtime.text.tokenizer import Tokenizer
from shoal.shop import data as shop_data
from shoal.shop import vocabulary
from shoal.shop.evaluate import render


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_rows_of_every_form(tmp_path, llada):
    tokenizer = Tokenizer.load(llada)
    path = write(
        tmp_path / "data.jsonl",
        {"prompt": "abc", "answer": "d", "kind": "k", "group": "g"},
        "",
        {"tokens": [5, 6, 7], "group": "g"},
        {"messages": [{"role": "user", "content": "ab"}]},
    )
    groups = load_groups(path, tokenizer)
    assert list(groups) == ["g", "row 4"]
    first, second = groups["g"]
    assert first.tokens == tuple(tokenizer.encode("abc"))
    assert (first.answer, first.kind) == ("d", "k")
    assert (second.tokens, second.answer, second.kind) == ((5, 6, 7), None, "all")
    assert groups["row 4"][0].tokens == tuple(tokenizer.apply_chat_template([{"role": "user", "content": "ab"}]))


def test_the_digest_is_of_the_content(tmp_path):
    one, same = write(tmp_path / "a", {"prompt": "a"}), write(tmp_path / "b", {"prompt": "a"})
    assert data_digest(one) == data_digest(same) != data_digest(write(tmp_path / "c", {"prompt": "b"}))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2 .* is not JSON"),
        ("[1]", "line 2 .* must be a JSON object"),
        ('{"prompt": "a", "tokens": [1]}', "exactly one of messages, prompt, tokens"),
        ('{"answer": "a"}', "exactly one of"),
        ('{"prompt": "a", "colour": 1}', "'colour'"),
        ('{"prompt": "a", "answer": 4}', "answer must be text"),
        ('{"tokens": [1, -2]}', "list of token ids"),
        ('{"tokens": []}', "is empty"),
        ('{"messages": "hello"}', "can't be tokenized"),
    ],
)
def test_wrong_lines_are_named(tmp_path, llada, line, words):
    path = write(tmp_path / "data.jsonl", {"prompt": "a"}, line)
    with pytest.raises(ConfigError, match=words) as caught:
        load_groups(path, Tokenizer.load(llada))
    assert caught.value.field == "data"


def test_files_that_are_none(tmp_path):
    with pytest.raises(ConfigError, match="can't be read"):
        load_groups(tmp_path / "missing", None)
    with pytest.raises(ConfigError, match="no rows"):
        load_groups(write(tmp_path / "empty", ""), None)
    with pytest.raises(ConfigError, match="no tokenizer"):
        load_groups(write(tmp_path / "text", {"prompt": "a"}), None)


def test_rows_for_shop(tmp_path):
    path = tmp_path / "shop.jsonl"
    shop_data.main(["--out", str(path), "--groups", "6", "--questions", "8"])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 48
    lengths = [len(vocabulary.encode(render(row["messages"]))) for row in rows]
    assert max(lengths) <= 640 - 32
    assert max(lengths) > 560  # ratios of nearly 0.9 need long prompts
    for name in {row["group"] for row in rows}:
        group = [row for row in rows if row["group"] == name]
        assert len({json.dumps(row["messages"][:-1]) for row in group}) == 1
        assert {row["kind"] for row in group} == {"price", "total", "cheaper", "colour"}
    again = tmp_path / "again.jsonl"
    shop_data.main(["--out", str(again), "--groups", "6", "--questions", "8"])
    assert again.read_bytes() == path.read_bytes()
