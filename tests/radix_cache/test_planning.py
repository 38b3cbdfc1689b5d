"""Planning: who of the waiting requests shares with whom."""

import random

from shoal.radix_cache.planning import plan_sharing
from shoal.radix_cache.tree import Namespace


def test_followers_name_the_earliest_leader_of_the_longest_prefix():
    system = [1, 2, 3, 4]
    other = Namespace("other")
    plans = plan_sharing(
        [
            ([*system, 5, 6, 7, 8], Namespace()),
            ([*system, 9, 9], Namespace()),
            ([*system, 5, 6, 0, 0], Namespace()),
            ([*system, 5, 6, 0, 0], Namespace()),
            (system, other),
            ([7], Namespace()),
        ],
        page_size=2,
    )
    assert plans == [(-1, 0), (0, 4), (0, 6), (2, 8), (-1, 0), (-1, 0)]


def test_against_all_pairs():
    draw = random.Random(5)
    prompts = [
        ([draw.randrange(2) for _ in range(draw.randrange(12))], Namespace(str(draw.randrange(2)))) for _ in range(120)
    ]
    for index, plan in enumerate(plan_sharing(prompts, page_size=2)):
        tokens, namespace = prompts[index]
        shared = []
        for earlier, space in prompts[:index]:
            same = 0
            while (
                same < min(len(earlier), len(tokens)) // 2 * 2 and earlier[same : same + 2] == tokens[same : same + 2]
            ):
                same += 2
            shared.append(same if space == namespace else 0)
        longest = max(shared, default=0)
        assert plan.shared_tokens == longest
        assert plan.leader == (shared.index(longest) if longest else -1)
