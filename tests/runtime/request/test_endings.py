"""What ends a text: every stop id of a model's files, of its tokenizer and of its chat template."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal import SamplingParams
from shoal.runtime.engine.engine import Engine
from shoal.runtime.errors import InvalidRequestError, ModelLoadError
from shoal.runtime.request.endings import Endings
from shoal.runtime.request.forward import AddRequest, Forward, ForwardItem
from shoal.runtime.worker.null import NullWorker

from ..tiny import EOS, make_engine, tokens, write_model
from ..worker.cuda_path import cuda_executor

PROMPT = tokens(12, seed=3)
GREEDY = SamplingParams(max_new_tokens=32, threshold=0.01)


def change(folder: Path, file: str, **values: Any) -> None:
    path = folder / file
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**old, **values}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path, "llada", shards=1)


def whole_answer(folder: Path) -> tuple[int, ...]:
    """The tokens that the model puts on its canvas, whatever ends texts."""
    with make_engine(folder) as engine:
        params = SamplingParams(max_new_tokens=32, threshold=0.01, ignore_eos=True)
        return engine.generate(PROMPT, params).token_ids


def source(folder: Path, name: str, token: int) -> None:
    """Let one of the sources name `token` as an end."""
    spelled = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    word = next((entry["content"] for entry in spelled if entry["id"] == token), None)
    if name == "config":
        change(folder, "config.json", eos_token_id=[EOS, token])
    elif name == "config, first":
        change(folder, "config.json", eos_token_id=[token, EOS])
    elif name == "generation_config":
        change(folder, "generation_config.json", eos_token_id=token)
    elif name == "generation_config, a list":
        change(folder, "generation_config.json", eos_token_id=[EOS, token])
    elif name == "eos_token":
        change(folder, "tokenizer_config.json", eos_token=word)
    else:
        end = "{{ '" + str(word) + "' }}"
        template = "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}" + end + "{% endfor %}assistant:"
        change(folder, "tokenizer_config.json", chat_template=template)


@pytest.mark.parametrize("device", ["cpu", "cuda worker"])
@pytest.mark.parametrize("name", ["config", "config, first", "generation_config", "generation_config, a list"])
def test_every_end_of_the_files_ends_a_text(folder: Path, name: str, device: str) -> None:
    answer = whole_answer(folder)
    at = next(i for i in range(4, 32) if answer[i] not in answer[:i])
    source(folder, name, answer[at])
    with make_engine(folder, executor=None if device == "cpu" else cuda_executor) as engine:
        output = engine.generate(PROMPT, GREEDY)
        assert (output.finish_reason, output.matched_stop) == ("stop", answer[at])
        assert output.token_ids == answer[:at]
        assert output.nfe < 4  # the blocks behind it are not decoded
        assert engine.core.parts.facts.stop_ids() == tuple(sorted({EOS, answer[at]}))


@pytest.mark.parametrize("name", ["eos_token", "the chat template's end of a turn"])
def test_ends_of_the_tokenizer(folder: Path, name: str) -> None:
    special = 2  # <bos>
    source(folder, name, special)
    with make_engine(folder) as engine:
        assert engine.tokenizer is not None
        assert special in engine.tokenizer.end_ids()
        params, ids = endings_of(engine).of(GREEDY)
        assert params is GREEDY
        assert ids == {EOS, special}


def endings_of(engine: Engine) -> Endings:
    return Endings(engine.core.parts.facts, engine.core.parts.tokenizer)


def test_a_stop_string_that_is_a_special_token_is_that_token(folder: Path) -> None:
    with make_engine(folder) as engine:
        endings = endings_of(engine)
        asked = SamplingParams(max_new_tokens=8, stop=("<bos>", "ab", " <bos>", "<bos>a", "<bo"))
        params, ids = endings.of(asked)
        assert ids == {EOS, 2}
        assert params.stop == ("ab", " <bos>", "<bos>a", "<bo")
        # As any stop string it counts with ignore_eos.
        _, ids = endings.of(SamplingParams(max_new_tokens=8, stop="<bos>", ignore_eos=True, stop_token_ids=[7]))
        assert ids == {2}


def test_the_text_ends_at_such_a_stop_string(folder: Path) -> None:
    answer = whole_answer(folder)
    token = next(token for token in answer[4:] if token not in answer[:4] and EOS < token < 60)
    # Let an ordinary token of the answer be a special one.
    values = json.loads((folder / "tokenizer.json").read_text())
    word = next(word for word, known in values["model"]["vocab"].items() if known == token)
    values["added_tokens"].append({**values["added_tokens"][0], "id": token, "content": word})
    (folder / "tokenizer.json").write_text(json.dumps(values))
    with make_engine(folder) as engine:
        params = SamplingParams(max_new_tokens=32, threshold=0.01, stop=word, ignore_eos=True)
        output = engine.generate(PROMPT, params)
    assert (output.finish_reason, output.matched_stop) == ("stop", token)
    assert output.token_ids == answer[: answer.index(token)]


@pytest.mark.parametrize("value", ["3", [3, 64], -1, [True], 1.5])
def test_ends_that_are_no_tokens_are_refused(folder: Path, value: Any) -> None:
    change(folder, "generation_config.json", eos_token_id=value)
    with pytest.raises(ModelLoadError, match=r"eos_token_id in generation_config\.json"):
        make_engine(folder)


def test_more_ends_than_the_device_takes(folder: Path) -> None:
    with make_engine(folder) as engine:
        facts, tokenizer = replace(engine.core.parts.facts, max_stop_ids=4), engine.core.parts.tokenizer
    endings = Endings(facts, tokenizer)
    endings.of(SamplingParams(max_new_tokens=8, stop_token_ids=[7, 8, 9]))
    with pytest.raises(InvalidRequestError, match="on this device it may have at most 3"):
        endings.of(SamplingParams(max_new_tokens=8, stop_token_ids=[7, 8, 9, 10]))


def test_the_null_worker_commits_none_of_them(folder: Path) -> None:
    with make_engine(folder) as engine:
        worker = NullWorker(engine.core.parts.facts, tokens=64)
    table = np.zeros((3, 40), np.int32)
    worker.add(
        AddRequest(
            rid="r", prompt=np.array(PROMPT), canvas_length=64, sampling=GREEDY, seed=0, block_length=8,
            page_table=table, stop_ids=frozenset((EOS, 9, 11)),
        )
    )  # fmt: skip
    item = ForwardItem("r", 0, 76, 76, 12, 76, 0)
    (result,) = worker.forward(Forward((item,)))
    assert len(result.tokens) == 64
    assert not {EOS, 9, 11} & set(result.tokens)
