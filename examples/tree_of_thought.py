"""Tree of thought: branches look prices up side by side, the trunk compares what they found.

python examples/tree_of_thought.py [URL of a server; the bundled model in this process without one]
"""

from __future__ import annotations

import random

from common import backend, saving

from shoal import assistant, function, gen, system, user
from shoal.shop.task import make_list


@function
def cheapest(s, prices, names):
    s += system(prices)
    branches = s.fork(len(names))
    for branch, name in zip(branches, names, strict=True):
        branch += user(f"How much is the {name}?")
        branch += assistant(gen("price", max_tokens=8))
    found = {name: int(branch["price"]) for branch, name in zip(branches, names, strict=True)}
    first, second = sorted(names, key=found.__getitem__)[:2]
    s += user(f"Which is cheaper, the {second} or the {first}?")
    s += assistant(gen("verdict", max_tokens=8))
    s["found"] = found


def main() -> None:
    """Find the cheapest of six things."""
    rng = random.Random(2)
    prices = make_list(rng, 50, held_out=True)
    names = [item.name for item in rng.sample(prices.items, 6)]
    with backend() as where:
        state = cheapest.run(prices.text, names, backend=where)
        for name, price in state["found"].items():
            print(f"{name:<20} {price}")
        print("cheapest:", state["verdict"])
    saving(state.usage)


if __name__ == "__main__":
    main()
