"""A conversation: every turn's prompt begins with the turns before it, and so do its tokens.

python examples/multi_turn_chat.py [URL of a server; the bundled model in this process without one]
"""

from __future__ import annotations

import random

from common import backend, saving

from shoal import assistant, function, gen, system, user
from shoal.shop.task import make_list, make_question


@function
def talk(s, prices, questions):
    s += system(prices)
    for number, question in enumerate(questions):
        s += user(question)
        s += assistant(gen(f"answer {number}", max_tokens=32))


def main() -> None:
    """Five turns; the text is printed as it is committed."""
    rng = random.Random(3)
    prices = make_list(rng, 30, held_out=True)
    questions = [make_question(rng, prices, json=False) for _ in range(5)]
    with backend() as where:
        state = talk.run(prices.text, [question.text for question in questions], backend=where, stream=True)
        for number, question in enumerate(questions):
            print(f"{question.text} ", end="")
            for piece in state.text_iter(f"answer {number}"):
                print(piece, end="", flush=True)
            print()
        state.sync()
    saving(state.usage)


if __name__ == "__main__":
    main()
