"""A model's tokens as byte strings, walked through an automaton all at once."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..text.token_bytes import load_token_bytes
from .automaton import DEAD, Automaton

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens sorted by their bytes.

    Attributes:
        ids: int64 [tokens].
        data: uint8, the bytes of all tokens one after another; offsets, lengths: int64 [tokens], where each lies.
        first: int64 [257]; tokens that begin with byte b are first[b] to first[b + 1].
    """

    ids: Ints
    data: npt.NDArray[np.uint8]
    offsets: Ints
    lengths: Ints
    first: Ints

    @classmethod
    def of(cls, tokens: Mapping[int, bytes]) -> Vocabulary:
        """From the bytes of each token, none of them empty."""
        ordered = sorted((data, token) for token, data in tokens.items())
        lengths = np.array([len(data) for data, _ in ordered], np.int64)
        data = np.frombuffer(b"".join(data for data, _ in ordered), np.uint8)
        offsets = np.cumsum(lengths) - lengths
        first = np.searchsorted(data[offsets] if len(offsets) else data, np.arange(257))
        return cls(np.array([token for _, token in ordered], np.int64), data, offsets, lengths, first)

    @classmethod
    def load(cls, folder: str | Path, width: int, out: Container[int] = ()) -> Vocabulary:
        """That of a model folder's tokenizer, as far as the model has logits (ids below `width`), without `out`.

        Raises ModelLoadError.
        """
        found = load_token_bytes(folder)
        return cls.of({token: data for token, data in found.items() if token < width and token not in out})

    def walk(self, automaton: Automaton, state: int, toward: npt.NDArray[np.int32] | None = None) -> tuple[Ints, Ints]:
        """(ids, states behind them) of all tokens that the automaton takes in `state`.

        With `toward`, int32 [states], only of those whose every byte leads from a state to one with a smaller number.
        """
        table, classes = automaton.table, automaton.classes
        begins = np.flatnonzero(_steps(table, toward, np.full(256, state), classes) != DEAD)
        spans = [np.arange(self.first[byte], self.first[byte + 1]) for byte in begins]
        which = np.concatenate(spans) if spans else np.empty(0, np.int64)
        states = np.full(len(which), state, np.int64)
        done_ids, done_states, at = [self.ids[:0]], [self.ids[:0]], 0
        while len(which):
            states = _steps(table, toward, states, classes[self.data[self.offsets[which] + at]])
            alive = states != DEAD
            which, states, at = which[alive], states[alive], at + 1
            whole = self.lengths[which] == at
            done_ids.append(self.ids[which[whole]])
            done_states.append(states[whole])
            which, states = which[~whole], states[~whole]
        return np.concatenate(done_ids), np.concatenate(done_states)


def _steps(
    table: npt.NDArray[np.int16], toward: npt.NDArray[np.int32] | None, states: Ints, classes: npt.NDArray[np.uint8]
) -> Ints:
    after = table[states, classes].astype(np.int64)
    return after if toward is None else np.where(toward[after] < toward[states], after, DEAD)
