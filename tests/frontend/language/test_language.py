"""What the constructs do: text, tokens, roles, variables, branches, select; on an engine."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import pytest

import shoal as sgl
from shoal.frontend import EngineBackend
from shoal.frontend.program.operations import Read
from shoal.frontend.program.tape import Tape
from shoal.runtime.request.sampling_params import SamplingParams
from shoal.shop.task import chat, make_list, make_question


@sgl.function
def ask(s, prices, question):
    s += sgl.system(prices)
    s += sgl.user(question)
    s += sgl.assistant(sgl.gen("answer", max_tokens=16))


def test_a_conversation_has_the_tokens_of_the_chat_template(shop, prices):
    rng = random.Random(1)
    turns = [(q.text, q.answer) for q in (make_question(rng, prices) for _ in range(2))]
    question = make_question(rng, prices)

    @sgl.function
    def talk(s):
        s += sgl.system(prices.text)
        for asked, answered in turns:
            s += sgl.user(asked) + sgl.assistant(answered)
        s += sgl.user(question.text) + sgl.assistant_begin()
        s += sgl.gen("answer", max_tokens=16)

    state = talk.run(backend=shop)
    messages = chat(prices, turns, question.text)
    prompt = shop.encode(messages)
    direct = shop.generate(messages, SamplingParams(max_new_tokens=16))
    assert state.tokens() == (*prompt, *direct.token_ids)
    assert state["answer"] == direct.text == question.answer
    assert state.messages() == messages
    assert state.text().endswith(f"<|user|>{question.text}<|end|><|assistant|>{question.answer}")


def test_tokens_never_shift(shop, prices):
    """What a generation has added keeps its tokens, and a later text is encoded on its own."""

    @sgl.function
    def program(s):
        s += sgl.system(prices.text) + sgl.user("List all red things.")
        s += sgl.assistant_begin() + sgl.gen("first", max_tokens=16, ignore_eos=True)
        s["at"] = s.tokens()
        s += sgl.assistant_end()
        s += sgl.user("How much is the " + prices.items[0].name + "?") + sgl.assistant(sgl.gen("b", 8))

    state = program.run(backend=shop)
    assert state.tokens()[: len(state["at"])] == state["at"]
    assert len(state["at"]) == len(shop.encode(prices.text)) + 2 + 1 + 5 + 1 + 1 + 16


def test_text_and_lists_and_plain_prompts(tiny):
    """Literal pieces in a row are one text; None and lists are fine; a state without roles is plain text."""

    @sgl.function
    def program(s):
        s += "ab"
        s += ["cd", None, sgl.gen("x", max_tokens=8), "ef" + sgl.gen("y", max_tokens=8) + "g"]

    state = program.run(backend=tiny)
    first = tiny.generate("abcd", SamplingParams(max_new_tokens=8))
    assert state["x"] == first.text
    second = tiny.generate(
        [*tiny.encode("abcd"), *first.token_ids, *tiny.encode("ef")], SamplingParams(max_new_tokens=8)
    )
    assert state["y"] == second.text
    assert state.text() == "abcd" + first.text + "ef" + second.text + "g"
    assert state.messages() == []


def test_stop_strings_are_cut_and_the_rest_is_encoded_anew(tiny):
    whole = tiny.generate("abcab", SamplingParams(max_new_tokens=16, ignore_eos=True))
    stop = whole.text[3:5]

    @sgl.function
    def program(s):
        s += "abcab" + sgl.gen("x", max_tokens=16, stop=stop, ignore_eos=True)

    state = program.run(backend=tiny)
    cut = whole.text[: whole.text.index(stop)]
    assert state["x"] == cut
    assert state.tokens() == tuple(tiny.encode("abcab" + cut))
    assert state.get_meta_info("x")["finish_reason"]["matched"] == stop


def test_settings_of_the_run_are_defaults_and_a_rule_of_a_gen_replaces_theirs(tiny):
    @sgl.function
    def program(s):
        s += "abc" + sgl.gen("x", max_tokens=16)
        s += sgl.gen("y", max_tokens=8, threshold=0.01)

    state = program.run(backend=tiny, steps=16, block_length=8, ignore_eos=True)
    assert state.get_meta_info("x")["nfe"] == 16
    assert state.get_meta_info("y")["nfe"] == 1


def test_n_answers_dtype_and_choices(shop, prices):
    item = prices.items[0]

    @sgl.function
    def program(s):
        s += sgl.system(prices.text) + sgl.user(f"How much is the {item.name}?")
        s += sgl.assistant_begin() + sgl.gen("several", max_tokens=8, n=3, temperature=0.1, seed=5)
        s += sgl.assistant_end() + sgl.user(f"How much is the {item.name}?")
        s += sgl.assistant(sgl.gen_int("number", max_tokens=8))
        s += sgl.user(f"How much is the {item.name}?") + sgl.assistant(
            sgl.gen("which", choices=["10", str(item.price)])
        )

    state = program.run(backend=shop)
    assert state["several"] == [str(item.price)] * 3
    assert len(state.get_meta_info("several")) == 3
    assert state["number"] == str(item.price) == state["which"]
    assert [m["content"] for m in state.messages()[2::2]] == [str(item.price)] * 3


@pytest.mark.parametrize(
    "method",
    [sgl.token_length_normalized, sgl.greedy_token_selection, sgl.unconditional_likelihood_normalized, sgl.one_shot],
    ids=repr,
)
def test_select_finds_what_the_model_would_say(shop, method):
    rng, right = random.Random(9), 0
    prices = make_list(rng, 12, held_out=True)
    for _ in range(4):
        question = make_question(rng, prices, rng.choice(("price", "cheaper", "colour")), False)
        wrong = {make_question(rng, prices, question.kind, False).answer for _ in range(4)} - {question.answer}

        @sgl.function
        def program(s, question=question, wrong=wrong):
            s += sgl.system(prices.text) + sgl.user(question.text)
            choices = sorted([*wrong, question.answer])
            s += sgl.assistant(sgl.select("choice", choices, choices_method=method))

        state = program.run(backend=shop)
        right += state["choice"] == question.answer
        figures = state.get_meta_info("choice")
        assert figures["values"].index(max(figures["values"])) == figures["choices"].index(state["choice"])
    assert right == 4


def test_select_goes_on_in_the_text(tiny):
    @sgl.function
    def program(s):
        s += "abc" + sgl.select("x", ["de", "f"]) + "g" + sgl.gen("y", max_tokens=8)

    state = program.run(backend=tiny)
    scored = tiny.score("abc", ["de", "f"])
    assert state["x"] == ["de", "f"][scored.best]
    assert state.get_meta_info("x")["values"] == pytest.approx([choice.mean for choice in scored.choices])
    assert state["y"] == tiny.generate("abc" + state["x"] + "g", SamplingParams(max_new_tokens=8)).text


def test_forks_join_and_copy(tiny):
    @sgl.function
    def program(s):
        s += "abcdefghijklmnopqrst" + sgl.gen("before", max_tokens=8)
        forks = s.fork(3)
        forks += ["a", "b", "c"]
        forks += sgl.gen("inside", max_tokens=8)
        assert [fork["before"] for fork in forks] == [s["before"]] * 3
        forks.join()
        s += "z" + sgl.gen("after", max_tokens=8)
        with s.copy() as branch:
            branch += "q" + sgl.gen("only there", max_tokens=4)
            s["kept"] = branch["only there"]

    state = program.run(backend=EngineBackend(tiny, cache_mode="none"))
    prompt = [*tiny.encode("abcdefghijklmnopqrst"), *tiny.encode(state["before"])]
    params = SamplingParams(max_new_tokens=8)
    prompts = [[*prompt, *tiny.encode(letter)] for letter in "abc"]
    assert state["inside"] == [o.text for o in tiny.generate(prompts, params, cache_mode="none")]
    assert state.text() == "abcdefghijklmnopqrst" + state["before"] + "z" + state["after"]
    assert "only there" not in state
    assert state["kept"]


def test_variables_and_joins(tiny):
    """A variable that the parent had at the fork keeps the parent's value, whatever branches do; new ones are lists."""

    @sgl.function
    def program(s):
        s += "abc"
        s["count"] = s["other"] = 0
        forks = s.fork(2)
        for number, fork in enumerate(forks):
            fork["count"] = fork["count"] + 1 + number
            fork["mine"] = number
            assert fork["count"] == 1 + number
        s["other"] = 1
        forks.join()

    state = program.run(backend=tiny)
    assert (state["count"], state["other"], state["mine"]) == (0, 1, [0, 1])


def test_a_branch_takes_nothing_more_once_it_is_joined(tiny, monkeypatch):
    """Not even from another thread that comes between: the parent would wait, in the thread of all programs, for a
    variable that this very thread has to set."""
    read = Tape.read
    tried: list[Read] = []

    def append_behind(tape: Tape, operation: Any) -> None:
        read(tape, operation)
        if isinstance(operation, Read) and not tried:
            tried.append(operation)
            with pytest.raises(sgl.ProgramEndedError):
                branches[0].append(sgl.gen("x", max_tokens=4))

    state = sgl.ProgramState(Tape(EngineBackend(tiny), {}))
    state += "abc"
    branches = state.fork(2)
    branches[1].append("d" + sgl.gen("x", max_tokens=4))
    monkeypatch.setattr(Tape, "read", append_behind)
    branches.join()
    assert tried
    assert len(state["x"]) == 1


def test_forks_of_forks(tiny):
    @sgl.function
    def program(s):
        s += "abcdefghijklmnopqrst"
        outer = s.fork(2)
        outer += ["x", "y"]
        for branch in outer:
            inner = branch.fork(2)
            inner += ["1", "2"]
            inner += sgl.gen("leaf", max_tokens=4)
            inner.join()
            branch += "." + sgl.gen("twig", max_tokens=4)
        outer.join()

    state = program.run(backend=EngineBackend(tiny, cache_mode="none"))
    params = SamplingParams(max_new_tokens=4)
    for number, letter in enumerate("xy"):
        prompts = ["abcdefghijklmnopqrst" + letter + digit for digit in "12"] + ["abcdefghijklmnopqrst" + letter + "."]
        *leaves, twig = [output.text for output in tiny.generate(prompts, params, cache_mode="none")]
        assert state["leaf"][number] == leaves
        assert state["twig"][number] == twig


def test_concatenate_and_append_keeps_the_branches_tokens(tiny):
    @sgl.function
    def program(s):
        s += "abc"
        forks = s.fork(2)
        forks += ["d", "e"]
        forks += sgl.gen("x", max_tokens=4)
        s["parts"] = [fork.text() for fork in forks]
        forks.join("concate_and_append")
        s += "z"

    state = program.run(backend=tiny)
    assert state.text() == "abc" + "".join(part[3:] for part in state["parts"]) + "z"
    assert "x" not in state


def test_scopes_set_var_and_contains(tiny):
    @sgl.function
    def program(s):
        with s.user():
            s += "ab"
            with s.var_scope("scope"):
                s += "cd" + sgl.gen("x", max_tokens=4)
        s["mine"] = 3
        assert "mine" in s
        assert "y" not in s

    state = program.run(backend=tiny)
    assert state["scope"] == "cd" + state["x"]
    assert state.get_var("mine") == 3
    assert state.messages() == [{"role": "user", "content": "ab" + state["scope"]}]


def test_bind_cache_and_trace(shop, prices):
    bound = ask.bind(prices=prices.text)
    prefix = len(shop.encode(f"<|system|>{prices.text}<|end|><|user|>"))
    shop.flush_cache()
    assert bound.cache(shop) == prefix
    state = bound.run(question=f"How much is the {prices.items[0].name}?", backend=shop)
    assert state["answer"] == str(prices.items[0].price)
    assert state.usage.tokens_reused > 0
    assert bound.trace().argument == "question"
    assert ask.trace().argument == "prices"


def test_default_backend_and_server_info(sharing):
    sharing.flush_cache()
    sgl.set_default_backend(sharing)

    @sgl.function
    def program(s):
        s += "abc" + sgl.gen("x", max_tokens=4)

    assert program()["x"] == sharing.generate("abc", SamplingParams(max_new_tokens=4)).text
    assert sgl.get_server_info()["page_size"] == 4
    sharing.generate("abcdefgh", SamplingParams(max_new_tokens=4))
    assert sharing.cache_snapshot()["num_tokens"] == 8
    sgl.flush_cache()
    assert sharing.cache_snapshot()["num_tokens"] == 0


def test_importing_the_frontend_is_light():
    """Neither torch nor triton nor numpy, nor an HTTP client before one is needed; the same for names of shoal."""
    code = "import sys, shoal.frontend, shoal; shoal.gen, shoal.function, shoal.RuntimeEndpoint; print(*sys.modules)"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "shoal.frontend" in names
    assert {"torch", "triton", "numpy", "transformers", "sglang", "httpx"} & set(names) == set()
