"""Which replica a prompt goes to, without Ray."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.serve_ray import choice
from shoal.serve_ray.choice import Holdings, PrefixChooser, packed, unpacked

HASHES = list(range(100, 110))
NAMES = ("a", "b", "c", "d")
LOADS = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 30), min_size=1)
HELD = st.dictionaries(st.sampled_from(NAMES), st.sets(st.integers(100, 109)))


def chooser(held, balance_abs=4, balance_rel=2.0) -> PrefixChooser:
    made = PrefixChooser(balance_abs, balance_rel)
    made.update({name: packed(sorted(hashes)) for name, hashes in held.items()})
    return made


def longest(hashes) -> int:
    return max((each - 99 for each in hashes), default=0)


@given(HELD, LOADS, st.integers(0, 5), st.floats(1, 3))
@settings(max_examples=200)
def test_the_longest_prefix_wins_among_those_that_are_not_overloaded(held, loads, balance_abs, balance_rel):
    order = chooser(held, balance_abs, balance_rel).order(loads, HASHES)
    assert sorted(order) == sorted(loads)
    least = min(loads.values())
    fit = {n for n, load in loads.items() if load <= least + balance_abs or load <= least * balance_rel}
    best = max(longest(held.get(name, ())) for name in fit)
    assert order[0] in fit
    assert longest(held.get(order[0], ())) == best
    assert loads[order[0]] == min(loads[name] for name in fit if longest(held.get(name, ())) == best)
    assert set(order[: len(fit)]) == fit  # overloaded ones come last


@given(st.lists(st.tuples(st.sampled_from(("report", "routed", "gone")), st.sampled_from(NAMES), st.sets(
    st.integers(100, 109)))), LOADS)  # fmt: skip
def test_any_sequence_of_reports_leaves_an_order_of_exactly_the_candidates(events, loads):
    held: dict[str, set[int]] = {}
    made = chooser(held)
    for kind, name, hashes in events:
        if kind == "routed":
            made.routed(name, sorted(hashes))
            continue
        held = {**held, name: hashes} if kind == "report" else {n: h for n, h in held.items() if n != name}
        made.update({n: packed(sorted(h)) for n, h in held.items()})
    assert sorted(made.order(loads, HASHES)) == sorted(loads)


def test_equal_replicas_take_turns():
    made = chooser({})
    firsts = [made.order({"a": 1, "b": 1, "c": 1}, [])[0] for _ in range(6)]
    assert sorted(firsts) == ["a", "a", "b", "b", "c", "c"]


def test_a_prefix_goes_back_to_its_replica_before_any_summary_names_it():
    made = chooser({"a": (), "b": ()})
    first = made.order({"a": 0, "b": 0}, HASHES)[0]
    made.routed(first, HASHES)
    assert {made.order({"a": 0, "b": 0}, HASHES)[0] for _ in range(4)} == {first}
    other = made.order({"a": 0, "b": 0}, [1, 2, 3])[0]
    assert other != first  # which holds fewer prefixes


def test_a_summary_that_lacks_a_prefix_ends_what_was_expected_before_the_one_before_it():
    holdings = Holdings()
    holdings.expect(HASHES)
    holdings.report(packed([1]))
    assert holdings.matched(HASHES) == 10  # it may have been made before the request came
    holdings.report(packed([1]))  # the same one: no news
    assert holdings.matched(HASHES) == 10
    holdings.report(packed([2]))
    assert holdings.matched(HASHES) == 0
    holdings.report(packed(HASHES[:4]))
    assert holdings.matched(HASHES) == 4


def test_what_a_replica_is_expected_to_hold_is_bounded(monkeypatch):
    monkeypatch.setattr(choice, "MAX_EXPECTED", 5)
    holdings = Holdings()
    holdings.expect(HASHES)
    assert list(holdings.fresh) == HASHES[-5:]
    assert holdings.matched(HASHES[:5]) == 0


@given(st.lists(st.integers(0, 2**64 - 1)), st.binary(max_size=40))
def test_hashes_travel_as_bytes(hashes, noise):
    assert unpacked(packed(hashes)) == hashes
    assert len(unpacked(noise)) in (0, len(noise) // 8)
