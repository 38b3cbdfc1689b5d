"""Holes: four questions stand in one canvas with their answers left open, and all four are filled together.

    python examples/holes.py [URL of a server; the bundled model in this process without one]

No autoregressive language can do this: the first answer is filled in with the last question already in sight.
"""

from __future__ import annotations

import random

from common import backend, saving

from shoal import assistant, assistant_begin, assistant_end, function, gen, system, user
from shoal.shop.task import make_list


@function
def together(s, prices, names):
    s += system(prices)
    s += user(f"How much is the {names[0]}?") + assistant_begin()
    turns = [
        [assistant_end(), user(f"How much is the {name}?"), assistant_begin(), gen(name, max_tokens=4)]
        for name in names[1:]
    ]
    s.fill(gen(names[0], max_tokens=4), *turns)
    s += assistant_end()


@function
def one_by_one(s, prices, names):
    s += system(prices)
    for name in names:
        s += user(f"How much is the {name}?") + assistant(gen(name, max_tokens=4))


def main() -> None:
    """Four prices, both ways."""
    rng = random.Random(6)
    prices = make_list(rng, 40, held_out=True)
    names = [item.name for item in rng.sample(prices.items, 4)]
    with backend() as where:
        for program in (one_by_one, together):
            state = program.run(prices.text, names, backend=where)
            answers = ", ".join(f"{name} {state[name]}" for name in names)
            print(f"{program.__name__:<10} {answers}: {state.usage.nfe} forward passes")
            saving(state.usage)


if __name__ == "__main__":
    main()
