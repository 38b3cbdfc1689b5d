"""Expert panel: branches give their opinions, `select` lets the model decide between given answers.

python examples/expert_panel.py [URL of a server; the bundled model in this process without one]
"""

from __future__ import annotations

import random

from common import backend, saving

from shoal import assistant, function, gen, select, system, user
from shoal.shop.task import make_list


@function
def panel(s, prices, one, two):
    s += system(prices)
    experts = s.fork(2)
    experts += lambda index: user(f"How much is the {(one, two)[index]}?")
    experts += assistant(gen("opinion", max_tokens=8))
    experts.join()
    s += user(f"Which is cheaper, the {one} or the {two}?")
    s += assistant(select("verdict", choices=[f"the {one}", f"the {two}"]))


def main() -> None:
    """Two experts, one verdict."""
    rng = random.Random(5)
    prices = make_list(rng, 40, held_out=True)
    one, two = (item.name for item in rng.sample(prices.items, 2))
    with backend() as where:
        state = panel.run(prices.text, one, two, backend=where)
        for name, opinion in zip((one, two), state["opinion"], strict=True):
            print(f"{name:<20} {opinion}")
        scores = state.get_meta_info("verdict")["values"]
        print(f"cheaper: {state['verdict']} (mean pseudo-log-likelihood {max(scores):.3f} against {min(scores):.3f})")
    saving(state.usage)


if __name__ == "__main__":
    main()
