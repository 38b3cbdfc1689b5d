"""What a program can get wrong: clear errors at the place that reads."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

import shoal as sgl
from shoal.frontend import driver

ANY: Any = lambda value: value  # noqa: E731 - hides a type from the type checker


def failing(s):
    s += "abc" + sgl.gen("good", max_tokens=4)
    s += sgl.gen("bad", max_tokens=9999)
    s += sgl.gen("behind", max_tokens=4)


def test_a_failed_call_raises_where_it_is_read_with_its_line(tiny):
    state = sgl.function(failing).run(backend=tiny)
    assert isinstance(state["good"], str)
    line = failing.__code__.co_firstlineno + 2
    for name in ("bad", "behind"):
        with pytest.raises(sgl.ProgramError) as caught:
            state[name]
        assert str(caught.value).startswith(f"{__file__}:{line} in failing: gen('bad') failed: ")
        assert "maximum of 160" in str(caught.value)
        assert caught.value.location.line == line
        assert isinstance(caught.value.__cause__, sgl.InvalidRequestError)
        assert caught.value.field == "max_new_tokens"
    for read in (state.text, state.messages, state.sync):
        with pytest.raises(sgl.ProgramError):
            read()
    error = state.error()
    assert isinstance(error, sgl.ProgramError)
    with pytest.raises(sgl.ProgramError):
        list(state.text_iter())


def test_a_fork_of_a_failed_state_and_a_join_with_a_failed_branch(tiny):
    @sgl.function
    def parent_fails(s):
        s += "abc" + sgl.gen("bad", max_tokens=9999)
        forks = s.fork(2)
        forks += sgl.gen("x", max_tokens=4)
        forks.join()

    @sgl.function
    def branch_fails(s):
        s += "abc"
        forks = s.fork(2)
        forks[0] += sgl.gen("x", max_tokens=4)
        forks[1] += sgl.gen("x", max_tokens=9999)
        assert isinstance(forks[0]["x"], str)
        forks.join()
        s += sgl.gen("y", max_tokens=4)

    for program, name in ((parent_fails, "x"), (branch_fails, "x"), (branch_fails, "y")):
        state = program.run(backend=tiny)
        with pytest.raises(sgl.ProgramError, match="9999"):
            state[name]


def test_unknown_variable(tiny):
    @sgl.function
    def program(s):
        s += "abc" + sgl.gen("x", max_tokens=4)
        s["y"] = 1

    state = program.run(backend=tiny)
    with pytest.raises(sgl.UnknownVariableError, match="unknown variable 'z'; variables of this state: 'x', 'y'"):
        state["z"]
    with pytest.raises(KeyError):
        state.get_meta_info("z")
    with pytest.raises(sgl.UnknownVariableError):
        list(state.text_iter("z"))


@pytest.mark.parametrize(
    "parts",
    [
        ["a", sgl.gen("x", 2), sgl.gen("x", 2)],
        ["a", sgl.gen("x", 2), "b", sgl.select("x", ["a"])],
        ["a", sgl.fill(sgl.gen("x", 2), "b", sgl.gen("x", 2))],
        ["a", sgl.fill("b", sgl.gen("x", 2), name="x")],
    ],
)
def test_duplicate_names(tiny, parts):
    @sgl.function
    def program(s):
        s += parts

    with pytest.raises(sgl.DuplicateNameError, match="has a variable 'x' already"):
        program.run(backend=tiny)


def test_a_branch_may_not_take_a_name_of_its_parent(tiny):
    @sgl.function
    def program(s):
        s += "a" + sgl.gen("x", 2)
        s.fork(2)[0] += sgl.gen("x", 2)

    with pytest.raises(sgl.DuplicateNameError):
        program.run(backend=tiny)


@pytest.mark.parametrize("use", [str, bool, "{}".format, lambda e: f"{e}", lambda e: f"{e + 'x'}"])
def test_gen_outside_a_function_is_no_text(use):
    with pytest.raises(sgl.ExpressionError, match=r"gen\('x'\).* inside a function"):
        use(sgl.gen("x", max_tokens=4))


def ended_state(backend):
    """What a program that has ended leaves to somebody who kept its state."""
    kept = []

    @sgl.function
    def program(s):
        s += "a"
        kept.append(s)

    program.run(backend=backend)
    return kept[0]


def test_appending_after_the_program_has_ended(tiny):
    state = ended_state(tiny)
    with pytest.raises(sgl.ProgramEndedError, match=r"gen\('x'\): the program of this state has ended"):
        state.append(sgl.gen("x", 4))
    assert state.text() == "a"


def test_a_fork_of_a_state_that_has_ended_leaves_nothing_waiting(tiny):
    """Branches that wait for their parent to come to the fork would wait for ever."""
    state = ended_state(tiny)
    before = asyncio.all_tasks(driver.loop())
    with pytest.raises(sgl.ProgramEndedError, match=r"fork\(2\): the program of this state has ended"):
        state.fork(2)
    driver.run(asyncio.sleep(0))
    assert asyncio.all_tasks(driver.loop()) <= before


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: sgl.select("x", []), sgl.ExpressionError, "choices is []"),
        (lambda: sgl.select("x"), sgl.ExpressionError, "choices is None"),
        (lambda: sgl.select("x", "abc"), sgl.ExpressionError, "choices is 'abc'"),
        (lambda: sgl.select("x", ["a", ""]), sgl.ExpressionError, "choices[1] is ''"),
        (lambda: sgl.select("x", ["a", "a"]), sgl.ExpressionError, "each only once"),
        (lambda: sgl.select("x", ["a"], temperature=0.5), sgl.UnsupportedError, "takes the best choice"),
        (lambda: sgl.select("x", ["a"], choices_method=ANY(len)), sgl.ExpressionError, "choices_method is"),
        (lambda: sgl.gen("", max_tokens=4), sgl.ExpressionError, "name is ''"),
        (lambda: sgl.gen(ANY(3)), sgl.ExpressionError, "name is 3"),
        (lambda: sgl.gen("x", n=0), sgl.ExpressionError, "n is 0"),
        (lambda: sgl.gen("x", dtype=list), sgl.ExpressionError, "dtype is"),
        (lambda: sgl.gen("x", top_p="high"), sgl.InvalidRequestError, "top_p is 'high'; it must be a number"),
        (lambda: sgl.gen("x", stop_regex="a+"), sgl.UnsupportedError, "stop_regex is 'a+'; shoal can't honour it"),
        (lambda: sgl.frontend.image("a.png"), sgl.UnsupportedError, "image('a.png') can't be had"),
        (lambda: sgl.frontend.video("a.mp4", 4), sgl.UnsupportedError, "video('a.mp4') can't be had"),
        (lambda: sgl.frontend.separate_reasoning(sgl.gen("x")), sgl.UnsupportedError, "separate_reasoning"),
        (lambda: sgl.gen("x", return_logprob=True), sgl.UnsupportedError, "return_logprob"),
        (lambda: sgl.gen("x", colour="red"), sgl.InvalidRequestError, "unknown setting 'colour'; known: "),
        (lambda: sgl.gen("x", treshold=0.5), sgl.InvalidRequestError, "'treshold'; did you mean threshold?"),
        (lambda: sgl.gen_int("x", step=3), sgl.InvalidRequestError, "'step'; did you mean steps?"),
        (lambda: sgl.SamplingParams(treshold=0.5), sgl.InvalidRequestError, "did you mean threshold?"),  # type: ignore[call-arg]
        (lambda: sgl.Engine("shop", block_lenght=8), sgl.ConfigError, "did you mean block_length?"),
    ],
)
def test_bad_expressions(make, kind, words):
    with pytest.raises(kind) as caught:
        make()
    assert words in str(caught.value)


def test_neutral_settings_of_sglang_are_accepted():
    sgl.gen("x", max_tokens=4, top_p=1.0, top_k=-1, min_p=0.0, frequency_penalty=0.0, presence_penalty=0,
            regex=None, json_schema=None, min_tokens=0, return_logprob=False)  # fmt: skip


def test_cuts_of_the_distribution_are_accepted_where_they_change_nothing(tiny):
    @sgl.function
    def program(s):
        s += "abc" + sgl.gen("plain", max_tokens=4, ignore_eos=True)

    @sgl.function
    def cut(s):
        s += "abc" + sgl.gen("cut", max_tokens=4, ignore_eos=True, top_p=0.95, min_p=0.1)

    assert cut.run(backend=tiny, top_k=5)["cut"] == program.run(backend=tiny)["plain"]


def test_texts_that_must_match(tiny):
    @sgl.function
    def program(s):
        s += "abc" + sgl.gen("word", max_tokens=8, regex="[a-c]{3}") + sgl.gen("one", max_tokens=8, choice=["xy", "z"])

    state = program.run(backend=tiny)
    assert re.fullmatch("[a-c]{3}", state["word"])
    assert state["one"] in ("xy", "z")


def append_number(s):
    s += 3


def append_gen_with_a_bad_setting(s):
    s += "a" + sgl.gen("x", max_tokens=4, temperature=-1)


def gen_first(s):
    s += sgl.gen("x", max_tokens=4)


def end_of_another_role(s):
    s += sgl.user_begin() + "a" + sgl.assistant_end()


def role_in_a_role(s):
    s += sgl.user_begin() + sgl.user("a")


@pytest.mark.parametrize(
    ("func", "words"),
    [
        (append_number, "3 can't be appended"),
        (append_gen_with_a_bad_setting, "temperature is -1"),
        (gen_first, "has nothing before it"),
        (end_of_another_role, "assistant_end() inside a user message"),
        (role_in_a_role, "user_begin() inside a user message"),
        (lambda s: s.fork(0), "size is 0"),
        (lambda s: s.fork(2, position_ids_offset=[1]), "position_ids_offset"),
        (lambda s: s.fork(2).join("mix"), "mode is 'mix'"),
        (lambda s: s.fork(2).__iadd__(["a"]), "1 expressions for 2 branches"),
    ],
)
def test_bad_programs(tiny, func, words):
    with pytest.raises(sgl.ShoalError) as caught:
        sgl.function(func).run(backend=tiny).sync()
    assert words in str(caught.value)


def test_bad_runs(tiny):
    @sgl.function
    def program(s, x):
        s += "a" + x

    with pytest.raises(sgl.FrontendError, match="must be named s"):
        sgl.function(lambda state: None)
    with pytest.raises(sgl.NoBackendError, match="no backend"):
        program.run("x")
    with pytest.raises(sgl.NoBackendError, match="backend is 3"):
        program.run("x", backend=3)
    with pytest.raises(TypeError, match="missing a required argument: 'x'"):
        program.run(backend=tiny)
    with pytest.raises(TypeError, match="'y'"):
        program.run("a", y=2, backend=tiny)
    with pytest.raises(sgl.InvalidRequestError, match=r"no argument 'temprature'.*did you mean temperature"):
        program.run("a", temprature=0.5, backend=tiny)
    with pytest.raises(sgl.FrontendError, match="batch_kwargs is 'ab'"):
        program.run_batch("ab", backend=tiny)
    with pytest.raises(sgl.FrontendError, match=r"batch_kwargs\[1\] is {'y': 1}"):
        program.run_batch([{"x": "a"}, {"y": 1}], backend=tiny)
    with pytest.raises(sgl.FrontendError, match="num_threads is 0"):
        program.run_batch([{"x": "a"}], backend=tiny, num_threads=0)


def test_what_the_function_raises_is_raised_and_in_a_batch_kept(tiny):
    @sgl.function
    def program(s, x):
        s += "a" + sgl.gen("y", max_tokens=4)
        if x:
            raise RuntimeError("my own")
        s += sgl.gen("z", max_tokens=4)

    with pytest.raises(RuntimeError, match="my own"):
        program.run(x=True, backend=tiny)
    good, bad = program.run_batch([{"x": False}, {"x": True}], backend=tiny)
    assert good["z"] is not None
    assert good.error() is None
    assert bad["y"] == good["y"]
    with pytest.raises(RuntimeError, match="my own"):
        bad["z"]
    assert isinstance(bad.error(), RuntimeError)
