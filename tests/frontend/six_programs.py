"""Six well-known programs, written for sglang: `sgl` is sglang or shoal, nothing else differs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


def six_programs(sgl: Any) -> SimpleNamespace:
    """The programs in the language that `sgl` offers."""

    @sgl.function
    def few_shot_qa(s, prices, examples, question):
        s += sgl.system(prices)
        for asked, answered in examples:
            s += sgl.user(asked)
            s += sgl.assistant(answered)
        s += sgl.user(question)
        s += sgl.assistant(sgl.gen("answer", max_tokens=16, temperature=0))

    @sgl.function
    def tree_of_thought(s, prices, names):
        s += sgl.system(prices)
        forks = s.fork(len(names))
        for fork, name in zip(forks, names, strict=True):
            fork += sgl.user(f"How much is the {name}?")
            fork += sgl.assistant(sgl.gen("price", max_tokens=8, temperature=0))
        found = [int(fork["price"]) for fork in forks]
        cheapest = names[found.index(min(found))]
        other = next(name for name in names if name != cheapest)
        s += sgl.user(f"Which is cheaper, the {other} or the {cheapest}?")
        s += sgl.assistant(sgl.gen("verdict", max_tokens=8, temperature=0))
        s["found"] = found

    @sgl.function
    def multi_turn_chat(s, prices, questions):
        s += sgl.system(prices)
        for index, question in enumerate(questions):
            with s.user():
                s += question
            s += sgl.assistant_begin()
            s += sgl.gen(f"answer_{index}", max_tokens=16, temperature=0)
            s += sgl.assistant_end()

    @sgl.function
    def json_by_skeleton(s, prices, one, two):
        s += sgl.system(prices)
        s += sgl.user(f"What do the {one} and the {two} cost together? Answer in JSON.")
        s += sgl.assistant(
            '{"prices": ['
            + sgl.gen("one", max_tokens=4, temperature=0, stop=",")
            + ","
            + sgl.gen("two", max_tokens=4, temperature=0, stop="]")
            + '], "total":'
            + sgl.gen("total", max_tokens=4, temperature=0, stop="}")
            + "}"
        )

    @sgl.function
    def expert_panel(s, prices, one, two):
        s += sgl.system(prices)
        experts = s.fork(2)
        experts += lambda index: sgl.user(f"How much is the {(one, two)[index]}?")
        experts += sgl.assistant(sgl.gen("opinion", max_tokens=8, temperature=0))
        experts.join()
        s += sgl.user(f"Which is cheaper, the {one} or the {two}?")
        s += sgl.assistant(sgl.select("verdict", choices=[f"the {one}", f"the {two}"]))

    @sgl.function
    def self_consistency(s, prices, question, samples):
        s += sgl.system(prices)
        s += sgl.user(question)
        forks = s.fork(samples)
        forks += sgl.assistant_begin()
        forks += sgl.gen("sample", max_tokens=8, temperature=0.3)
        forks += sgl.assistant_end()
        answers = [fork["sample"] for fork in forks]
        s += sgl.assistant(max(sorted(set(answers)), key=answers.count))
        s["answers"] = answers

    return SimpleNamespace(
        few_shot_qa=few_shot_qa, tree_of_thought=tree_of_thought, multi_turn_chat=multi_turn_chat,
        json_by_skeleton=json_by_skeleton, expert_panel=expert_panel, self_consistency=self_consistency,
    )  # fmt: skip
