"""How far a text has come in its grammar, and which tokens may come next."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import numpy as np

from .automaton import DEAD, START
from .grammar import Grammar
from .vocabulary import Ints, Vocabulary

_CACHED_TOKENS = 4 << 20


class TokenSets:
    """Tokens that grammars take in their states, as far as they were asked for; the latest are kept.

    Args:
        vocabulary: of the model.
    """

    def __init__(self, vocabulary: Vocabulary):
        self._vocabulary = vocabulary
        self._kept: OrderedDict[tuple[str, int], tuple[Ints, Ints]] = OrderedDict()
        self._held = 0

    def of(self, grammar: Grammar, state: int) -> tuple[Ints, Ints]:
        """(token ids, states behind them)."""
        key = grammar.key, state
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        found = self._kept[key] = self._vocabulary.walk(grammar.automaton, state)
        self._held += len(found[0])
        while self._held > _CACHED_TOKENS and len(self._kept) > 1:
            _, (dropped, _) = self._kept.popitem(last=False)
            self._held -= len(dropped)
        return found


class GrammarState:
    """The state of one text.

    Args:
        grammar: that it must satisfy.
        sets: of the model.
        ends: tokens that end it; they may stand behind a complete text alone.
    """

    def __init__(self, grammar: Grammar, sets: TokenSets, ends: Iterable[int]):
        self._grammar = grammar
        self._sets = sets
        self._ends = np.array(sorted(ends), np.int64)
        self._state = START

    def allowed(self, left: int) -> Ints:
        """Tokens that may come next where `left` positions are left, this one included; never none.

        Behind each of them the text can be completed, and ended, in the positions that are left then.
        """
        tokens, states = self._sets.of(self._grammar, self._state)
        distance = self._grammar.distance
        found = tokens[distance[states].astype(np.int64) + 2 <= left]
        return np.concatenate((found, self._ends)) if distance[self._state] == 0 else found

    def take(self, token: int) -> bool:
        """Go on with a token that is allowed; True if it ends the text."""
        if token in self._ends:
            return True
        tokens, states = self._sets.of(self._grammar, self._state)
        self._state = int(states[tokens == token][0]) if (tokens == token).any() else DEAD
        return False
