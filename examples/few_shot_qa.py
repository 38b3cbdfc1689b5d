"""Few-shot question answering: a price list and two worked examples are shared by every question of a batch.

python examples/few_shot_qa.py [URL of a server; the bundled model in this process without one]
"""

from __future__ import annotations

import random

from common import backend, saving

from shoal import assistant, function, gen, system, user
from shoal.shop.task import make_list, make_question


@function
def answer(s, prices, examples, question):
    s += system(prices)
    for asked, answered in examples:
        s += user(asked) + assistant(answered)
    s += user(question)
    s += assistant(gen("answer", max_tokens=32))


def main() -> None:
    """Ask twelve questions about one list."""
    rng = random.Random(1)
    prices = make_list(rng, 40, held_out=True)
    examples = [(q.text, q.answer) for q in (make_question(rng, prices, kind) for kind in ("price", "total"))]
    questions = [make_question(rng, prices) for _ in range(12)]
    with backend() as where:
        states = answer.bind(prices=prices.text, examples=examples).run_batch(
            [{"question": question.text} for question in questions], backend=where
        )
        for question, state in zip(questions, states, strict=True):
            print(f"{question.text:<66} {state['answer']}")
    right = sum(state["answer"] == question.answer for question, state in zip(questions, states, strict=True))
    print(f"{right} of {len(questions)} right")
    saving(states.usage)


if __name__ == "__main__":
    main()
