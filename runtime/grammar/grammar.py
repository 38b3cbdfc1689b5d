"""A compiled grammar: an automaton, and how many tokens each of its states is away from acceptance."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .automaton import FAR, START, Automaton, distances, edges_of
from .errors import GrammarError
from .expression import Expression
from .vocabulary import Vocabulary

_MAX_TOKENS = 20_000_000
"""Transitions by tokens that are looked at: some seconds."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a text may be. Plain data, so that it can cross processes.

    From a state at distance n > 0 some token leads to one at distance n - 1 at most; so a text that may still have n
    tokens can always be completed.

    Attributes:
        key: equal for equal grammars alone.
        table, classes: see Automaton.
        distance: int32 [states], tokens that complete a text; 0: it is complete. An upper bound of the fewest.
    """

    key: str
    table: npt.NDArray[np.int16]
    classes: npt.NDArray[np.uint8]
    distance: npt.NDArray[np.int32]

    @classmethod
    def of(cls, expression: Expression, vocabulary: Vocabulary) -> Grammar:
        """That of an expression. Raises GrammarError: too large, unsatisfiable, or the vocabulary can't spell it."""
        automaton = Automaton.of(expression)
        distance = _distances(automaton, vocabulary)
        digest = hashlib.blake2b(digest_size=16)
        for part in (automaton.table, automaton.classes, distance):
            digest.update(part.tobytes())
        return cls(digest.hexdigest(), automaton.table, automaton.classes, distance)

    @property
    def automaton(self) -> Automaton:
        """Its automaton."""
        return Automaton(self.table, self.classes, self.distance == 0)

    @property
    def least_tokens(self) -> int:
        """Tokens that suffice for a whole text, the one that ends it included."""
        return int(self.distance[START]) + 1


def _distances(automaton: Automaton, vocabulary: Vocabulary) -> npt.NDArray[np.int32]:
    """int32 [states]: tokens to acceptance along a shortest byte string, or along any where the vocabulary has none.

    Shortest strings alone keep the work small: inside a text of free length only few tokens lead to its end.
    """
    in_bytes = distances(*edges_of(automaton.table), automaton.accepting)
    distance = _in_tokens(automaton, vocabulary, in_bytes)
    if distance[START] == FAR:
        distance = _in_tokens(automaton, vocabulary, None)
    if distance[START] == FAR:
        raise GrammarError("this model's tokens can't spell any text that satisfies it")
    return distance


def _in_tokens(
    automaton: Automaton, vocabulary: Vocabulary, toward: npt.NDArray[np.int32] | None
) -> npt.NDArray[np.int32]:
    edges, work = [], 0
    for state in range(1, len(automaton.table)):
        ids, states = vocabulary.walk(automaton, state, toward)
        edges.append(np.unique(states))
        work += len(ids)
        if work > _MAX_TOKENS:
            raise GrammarError("it is too large: too many tokens of this model's vocabulary fit its states")
    sources = np.repeat(np.arange(1, len(automaton.table)), [len(targets) for targets in edges])
    return distances(sources, np.concatenate([np.empty(0, np.int64), *edges]), automaton.accepting)
