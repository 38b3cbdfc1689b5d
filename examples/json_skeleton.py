"""JSON by skeleton: keys and punctuation are fixed, the values are holes that are filled together.

python examples/json_skeleton.py [URL of a server; the bundled model in this process without one]
"""

from __future__ import annotations

import json
import random

from common import backend, saving

from shoal import assistant, function, gen, json_skeleton, system, user
from shoal.shop.task import make_list


@function
def total(s, prices, one, two):
    s += system(prices)
    s += user(f"What do the {one} and the {two} cost together? Answer in JSON.")
    s += assistant(
        json_skeleton(
            {
                "prices": [gen("one", max_tokens=2, dtype=int), gen("two", max_tokens=2, dtype=int)],
                "total": gen("sum", max_tokens=3, dtype=int),
            },
            name="answer",
        )
    )


def main() -> None:
    """Six totals."""
    rng = random.Random(4)
    prices = make_list(rng, 40, held_out=True)
    pairs = [[item.name for item in rng.sample(prices.items, 2)] for _ in range(6)]
    with backend() as where:
        states = total.bind(prices=prices.text).run_batch([{"one": a, "two": b} for a, b in pairs], backend=where)
        for (one, two), state in zip(pairs, states, strict=True):
            answer = state["answer"]
            right = answer["total"] == sum(answer["prices"])
            print(f"{one} + {two}: {json.dumps(answer)} {'adds up' if right else 'does not add up'}")
    passes = sum(state.get_meta_info("answer")["nfe"] for state in states)
    print(f"{passes / len(pairs):.1f} forward passes for each object of three values")
    saving(states.usage)


if __name__ == "__main__":
    main()
