"""Random programs: the DSL does what the same calls made directly on the engine do, token for token."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shoal as sgl
from shoal.frontend import EngineBackend
from shoal.runtime.engine.engine import Engine
from shoal.runtime.request.sampling_params import SamplingParams

from ...runtime.tiny import CHARACTERS, assert_nothing_lost, make_engine, write_model

TEXT = st.text(alphabet=CHARACTERS, min_size=1, max_size=6)
CALL = st.fixed_dictionaries(
    {"max_tokens": st.integers(1, 9)},
    optional={"threshold": st.sampled_from([0.3, 0.7, 1.0]), "ignore_eos": st.booleans(),
              "stop": TEXT.map(lambda text: text[:2]), "temperature": st.just(0.7), "seed": st.integers(0, 9)},
)  # fmt: skip
STEP = st.one_of(
    st.tuples(st.just("text"), TEXT),
    st.tuples(st.just("gen"), CALL),
    st.tuples(st.just("select"), st.lists(TEXT, min_size=1, max_size=3, unique=True)),
    st.tuples(st.just("fill"), st.lists(st.tuples(TEXT, st.integers(1, 4)), min_size=1, max_size=3)),
)
STEPS = st.lists(STEP, max_size=4)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    with make_engine(write_model(tmp_path_factory.mktemp("models") / "llada", "llada"), check_invariants=False) as made:
        yield made
        assert_nothing_lost(made)


def append(s: Any, steps: list[Any], label: str) -> None:
    """The steps in the language."""
    for number, (kind, value) in enumerate(steps):
        name = f"{label}{number}"
        if kind == "text":
            s += value
        elif kind == "gen":
            s += sgl.gen(name, **value)
        elif kind == "select":
            s += sgl.select(name, value, choices_method=sgl.one_shot)
        else:
            parts = [[text, sgl.gen(f"{name}.{at}", max_tokens=size)] for at, (text, size) in enumerate(value)]
            s.fill(*parts, ".")


def by_hand(engine: Engine, tokens: list[int], steps: list[Any], label: str, out: dict[str, Any]) -> list[int]:
    """The steps as engine calls; texts in a row are encoded together, as they are in the language."""
    tokens, pending = list(tokens), ""
    for number, (kind, value) in enumerate(steps):
        name = f"{label}{number}"
        if kind == "text":
            pending += value
            continue
        tokens += engine.encode(pending) if pending else []
        pending = ""
        if kind == "gen":
            params = SamplingParams(**{("max_new_tokens" if k == "max_tokens" else k): v for k, v in value.items()})
            output = engine.generate(tokens, params, cache_mode="none")
            out[name] = output.text
            cut = isinstance(output.matched_stop, str)
            tokens += (engine.encode(output.text) if output.text else []) if cut else output.token_ids
        elif kind == "select":
            scored = engine.score(tokens, value, "one_shot", cache_mode="none")
            out[name] = value[scored.best]
            tokens += scored.choices[scored.best].token_ids
        else:
            template = [t for text, size in value for t in [*engine.encode(text), *[-1] * size]] + engine.encode(".")
            params = SamplingParams(max_new_tokens=len(template), block_length=len(template))
            output = engine.generate(tokens, params, canvas=template, cache_mode="none")
            out |= {f"{name}.{at}": hole.text for at, hole in enumerate(output.holes)}
            tokens += output.token_ids
    return tokens + (engine.encode(pending) if pending else [])


@given(TEXT, STEPS, st.lists(STEPS, max_size=3), STEPS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_program_agrees_with_engine_calls(engine, start, before, branches, after):
    """A beginning, branches of their own, and an end."""

    @sgl.function
    def program(s):
        s += start
        append(s, before, "b")
        if branches:
            forks = s.fork(len(branches))
            for number, (fork, steps) in enumerate(zip(forks, branches, strict=True)):
                append(fork, steps, f"f{number}.")
            s["tokens"] = [fork.tokens() for fork in forks]
            forks.join()
        append(s, after, "a")

    # A seed is drawn for a temperature where none is given: the same one, or the two could not agree.
    for steps in (before, after, *branches):
        for kind, value in steps:
            if kind == "gen" and "temperature" in value:
                value.setdefault("seed", 1)
    state = program.run(backend=EngineBackend(engine, cache_mode="none"))
    assert state.error() is None
    expected: dict[str, Any] = {}
    head = [("text", start), *before]
    # Numbered from the first step of `before`: the start is not one of the program's steps.
    shifted: dict[str, Any] = {}
    parent = by_hand(engine, [], head, "h", shifted)
    for name, value in shifted.items():
        number, dot, rest = name[1:].partition(".")
        expected[f"b{int(number) - 1}{dot}{rest}"] = value
    for index, steps in enumerate(branches):
        inside: dict[str, Any] = {}
        tokens = by_hand(engine, parent, steps, f"f{index}.", inside)
        assert state["tokens"][index] == tuple(tokens)
        expected |= {name: [value] for name, value in inside.items()}
    end = by_hand(engine, parent, after, "a", expected)
    if not branches:
        # Without a fork between them, texts of the two halves are one.
        whole: dict[str, Any] = {}
        end = by_hand(engine, [], [*head, *after], "w", whole)
        assert [state[name] for name in state._tape.variables] == list(whole.values())
    else:
        assert {name: state[name] for name in expected} == expected
        assert set(state._tape.variables) == set(expected) | {"tokens"}
    assert state.tokens() == tuple(end)


@given(st.lists(TEXT, min_size=1, max_size=6), CALL)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_batch_agrees_with_engine_calls(engine, texts, call):
    """Whatever is shared and in whatever order: with nothing reused, every entry is what it is alone."""
    call = {"seed": 1, **call}

    @sgl.function
    def program(s, text):
        s += "abcdefghijklmnopqrstuvwxyz" + text + sgl.gen("x", **call)

    states = program.run_batch([{"text": text} for text in texts], backend=EngineBackend(engine, cache_mode="none"))
    params = SamplingParams(**{("max_new_tokens" if k == "max_tokens" else k): v for k, v in call.items()})
    direct = [engine.generate("abcdefghijklmnopqrstuvwxyz" + text, params, cache_mode="none") for text in texts]
    assert [state["x"] for state in states] == [output.text for output in direct]
