"""Grammars of running requests, over the tokens of one model."""

from __future__ import annotations

from collections.abc import Callable

from ..grammar.state import GrammarState, TokenSets
from ..grammar.vocabulary import Vocabulary
from ..request.forward import AddRequest


class Grammars:
    """Makes the states of requests with a grammar.

    Args:
        vocabulary: loads the model's tokens, for the first of them.
    """

    def __init__(self, vocabulary: Callable[[], Vocabulary] | None):
        self._vocabulary = vocabulary
        self._sets: TokenSets | None = None

    def open(self, message: AddRequest) -> GrammarState | None:
        """The state of a request, behind the tokens that it has committed; None without a grammar."""
        if message.grammar is None:
            return None
        if self._sets is None:
            assert self._vocabulary is not None
            self._sets = TokenSets(self._vocabulary())
        state = GrammarState(message.grammar, self._sets, message.stop_ids)
        for token in message.committed.tolist():
            state.take(token)
        return state
