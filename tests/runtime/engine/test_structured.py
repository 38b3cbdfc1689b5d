"""Text that must satisfy a schema, a regular expression or a choice: always whole, however it is decoded."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from shoal.runtime.engine.engine import Engine
from shoal.runtime.errors import InvalidRequestError
from shoal.runtime.request.input import GenerateInput
from shoal.runtime.request.sampling_params import SamplingParams

from ..grammar.schemas import SCHEMAS
from ..tiny import (
    EOS,
    assert_nothing_lost,
    by_hand,
    make_engine,
    open_requests,
    run_preempted,
    tokens,
    write_model,
    write_tokenizer,
)

MODES: tuple[Any, ...] = ("none", "prefix", "dual", "lm", "bicache")
WORDS = [*"0123456789", *'{}[]",:-. \\+', *"abcdefhilmnoqrtuxyz", "é", '":', '","', '"}', "true", "null", "E", "T", "Z"]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "n": {"type": "array", "items": {"type": "integer"}}},
    "required": ["name", "n"],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A tiny model whose tokens spell JSON."""
    return write_tokenizer(write_model(tmp_path_factory.mktemp("json") / "llada", "llada"), WORDS)


@pytest.fixture(scope="module")
def engine(model):
    with make_engine(model, max_running_requests=32, kv_cache_tokens=8192) as made:
        yield made
        assert_nothing_lost(made)


def satisfies(text: str, schema: Any) -> bool:
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))
    return True


def fewest(engine: Engine, schema: Any) -> int | None:
    """The smallest max_new_tokens by the error that names it; None for a schema that can't be had here."""
    try:
        engine.core.intake.specs(inputs(schema))
    except InvalidRequestError as error:
        limit: Any = error.limit
        return int(limit) if error.field == "max_new_tokens" else None
    return 1


def inputs(schema: Any) -> Any:
    return [GenerateInput(prompt=[5, 6], sampling=SamplingParams(max_new_tokens=1, json_schema=schema))]


@settings(
    max_examples=3, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, phases=[Phase.generate]
)
@given(schemas=st.lists(SCHEMAS, min_size=25, max_size=25), turn=st.integers(0, 11))
def test_random_schemas_are_satisfied(engine, schemas, turn):
    """In batches, by all rules and modes; half of them in the fewest tokens that are promised."""
    rules: list[dict[str, Any]] = [{"steps": 12}, {"threshold": 0.5}, {"steps": 20, "temperature": 1.5, "seed": turn}]
    known = [(schema, least) for schema in schemas if (least := fewest(engine, schema)) and least <= 64]
    assert len(known) > 8
    params = [
        SamplingParams(json_schema=schema, max_new_tokens=least if n % 2 else 64, **rules[(n + turn) % 3])
        for n, (schema, least) in enumerate(known)
    ]
    prompts = [tokens(9, n) for n in range(len(known))]
    outputs = engine.generate(prompts, params, cache_mode=MODES[turn % len(MODES)])
    for (schema, _), output in zip(known, outputs, strict=True):
        assert output.finish_reason == "stop"
        assert satisfies(output.text, schema)


def test_regular_expressions_and_choices(engine):
    for mode in MODES:
        outputs = engine.generate([tokens(9, n) for n in range(4)], [
            SamplingParams(regex=r"[a-c]{2,6}-\d+", max_new_tokens=12, threshold=0.3),
            SamplingParams(choice=["red", "ten", "tea"], max_new_tokens=12),
            SamplingParams(choice=["a,b"], max_new_tokens=4),
            SamplingParams(regex="(ab|é)*", max_new_tokens=7, temperature=2, seed=1),
        ], cache_mode=mode)  # fmt: skip
        assert re.fullmatch(r"[a-c]{2,6}-[0-9]+", outputs[0].text)
        assert outputs[1].text in ("ten", "tea", "red")
        assert outputs[2].text == "a,b"
        assert re.fullmatch("(ab|é)*", outputs[3].text)
        assert {output.finish_reason for output in outputs} == {"stop"}


@pytest.mark.parametrize("mode", ["none", "dual"])
def test_an_answer_depends_neither_on_its_batch_nor_on_being_preempted_and_streams_only_grow(engine, mode):
    params = SamplingParams(json_schema=SCHEMA, max_new_tokens=60, threshold=0.4, temperature=0.7, seed=5, logprobs=1)
    alone = engine.generate(tokens(9, 1), params, cache_mode=mode)
    assert satisfies(alone.text, SCHEMA)
    beside = engine.generate([tokens(9, n) for n in range(4)], [SamplingParams(max_new_tokens=40), params] * 2,
                             cache_mode=mode)  # fmt: skip
    assert (beside[1].token_ids, beside[1].logprobs) == (alone.token_ids, alone.logprobs)
    assert alone.nfe > 2
    shown = [output.text for output in engine.stream(tokens(9, 1), params, cache_mode=mode)]
    assert all(late.startswith(early) for early, late in itertools.pairwise(shown))
    assert shown[-1] == alone.text
    scheduler = by_hand(engine)
    greedy = SamplingParams(json_schema=SCHEMA, max_new_tokens=60, threshold=0.4)
    whole = engine.generate(tokens(9, 1), greedy, cache_mode=mode)
    (request,) = open_requests(engine, [tokens(9, 1)], greedy, mode)
    run_preempted(scheduler, request)
    assert (request.output().text, request.tally.preemptions) == (whole.text, 1)


def test_steps_bound_the_forwards(engine):
    """A quota commits so many tokens of the text a forward, from left to right."""
    output = engine.generate(
        tokens(9, 1), SamplingParams(regex="a{30}", max_new_tokens=32, block_length=32, steps=4), cache_mode="none"
    )
    assert (output.text, output.nfe) == ("a" * 30, 4)
    certain = engine.generate(tokens(9, 1), SamplingParams(regex="a{30}", max_new_tokens=32, block_length=32))
    assert (certain.text, certain.nfe) == ("a" * 30, 1)  # nothing else is possible


@pytest.mark.parametrize(
    ("options", "field", "words"),
    [
        ({"json_schema": SCHEMA, "max_new_tokens": 5}, "max_new_tokens", r"json_schema takes at least \d\d tokens"),
        (
            {"json_schema": {"properties": {"a": {"contains": {}}}}},
            "json_schema.properties.a.contains",
            "not supported",
        ),
        ({"json_schema": "{"}, "json_schema", "a JSON schema"),
        ({"json_schema": '{"const": NaN}'}, "json_schema", "a JSON schema"),
        ({"json_schema": {"const": "\ud800"}}, "json_schema", "surrogate"),
        ({"json_schema": {"const": "x" * 70_000}}, "json_schema", "65536"),
        ({"json_schema": {}, "regex": "a"}, "regex", "at most one"),
        ({"regex": "(a"}, "regex", r"without its \)"),
        ({"regex": "Ω+"}, "regex", "can't spell"),
        ({"choice": "red"}, "choice", "a list of strings"),
        ({"choice": ["a", 5]}, "choice", "a list of strings"),
        ({"regex": "a", "stop": "b"}, "stop", "can't be used with regex"),
        ({"regex": "a", "ignore_eos": True}, "ignore_eos", "can't be used with regex"),
        ({"regex": "a", "min_tokens": 2}, "min_tokens", "can't be used with regex"),
        ({"regex": "a", "steps": 2, "strategy": "origin"}, "strategy", "can't be used with regex"),
    ],
)
def test_what_can_not_be_honoured_is_refused_by_name(engine, options, field, words):
    with pytest.raises(InvalidRequestError, match=words) as caught:
        engine.generate(tokens(9, 1), SamplingParams(**options))
    assert caught.value.field == field


def test_a_canvas_and_a_model_without_a_tokenizer_refuse_it(engine, model):
    with pytest.raises(InvalidRequestError, match="regex can't be used with a canvas"):
        engine.generate(tokens(9, 1), SamplingParams(regex="a"), canvas=[-1, EOS])
    with (
        make_engine(model, load_format="dummy") as bare,
        pytest.raises(InvalidRequestError, match="without a tokenizer"),
    ):
        bare.generate(tokens(9, 1), SamplingParams(regex="a"))
