"""Planning with a tree that holds no pages: which waiting requests would share a prefix?"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy.typing as npt

from .config import TreeConfig
from .namespace import Namespace
from .tree import RadixTree


class SharingPlan(NamedTuple):
    """What waiting request i shares with the requests before it in the queue.

    Attributes:
        leader: index of the earliest request that holds the longest prefix shared with i; -1 when none does.
        shared_tokens: length of that prefix, whole pages.
    """

    leader: int
    shared_tokens: int


def plan_sharing(prompts: Sequence[tuple[npt.ArrayLike, Namespace]], page_size: int) -> list[SharingPlan]:
    """For each waiting (tokens, namespace), in queue order, the request to wait for and what it would save.

    A scheduler that lets `leader` go first can serve the followers from its capture. Linear in the tokens.
    """
    tree = RadixTree(TreeConfig(page_size=page_size, num_layers=1, layers_per_band=1), event_limit=0)
    stored_by: dict[int, int] = {}
    plans = []
    for index, (tokens, namespace) in enumerate(prompts):
        match = tree.match(tokens, namespace, touch=False)
        leader = -1
        node = match.node
        if node is not None:
            # A split makes a new upper part; the lower one, its first child, keeps who stored both.
            while id(node) not in stored_by:
                node = next(iter(node.children.values()))
            leader = stored_by[id(node)]
        plans.append(SharingPlan(leader, match.num_tokens))
        if tree.capture(tokens, namespace, depth=1, ratio=1.0).new_tokens:
            stored = tree.match(tokens, namespace, touch=False).node
            assert stored is not None
            stored_by[id(stored)] = index
    return plans
