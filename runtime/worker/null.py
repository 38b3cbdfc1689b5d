"""A worker without a model, which commits made-up tokens at once: it measures the cost of everything but the model."""

from __future__ import annotations

import logging
import time

import numpy as np

from ..config import EngineConfig
from ..model.hub import resolve_model_folder
from ..model.registry import load_config
from ..model.settings import default_block_length, load_profile
from ..request.facts import Facts
from ..request.forward import AddRequest, Forward, ForwardItem, Grow, MarkedResult, Marks, Release, StepResult
from .facts import make_facts

logger = logging.getLogger(__name__)
_MOST_SETS = 64


class NullWorker:
    """Answers every message as the worker does, at once or after a delay. Token ids count up, without ends and mask.

    Args:
        facts: of the model that it replaces.
        tokens: commits per request and forward, from the left.
        delay_s: seconds that a forward takes.
    """

    def __init__(self, facts: Facts, tokens: int, delay_s: float = 0.0):
        model = facts.model
        self._vocabulary = model.vocab_size
        self._special = frozenset((*facts.stop_ids(), model.mask_token_id, model.pad_token_id))
        self._ids: dict[frozenset[int], list[int]] = {}
        self._ids_of: dict[str, list[int]] = {}
        self._tokens = tokens
        self._delay_s = delay_s
        self._next: dict[str, int] = {}
        self._templates: dict[str, list[int]] = {}
        self._marked: set[str] = set()
        self._layers = model.num_layers

    def add(self, message: AddRequest) -> None:
        """Record where the canvas begins."""
        self._next[message.rid] = len(message.prompt) + len(message.committed)
        self._ids_of[message.rid] = self._without(message.stop_ids)
        if message.marks:
            self._marked.add(message.rid)
        if message.canvas is not None:
            masks = (np.flatnonzero(message.canvas < 0) + len(message.prompt)).tolist()
            self._templates[message.rid] = masks

    def grow(self, message: Grow) -> None:
        """It has no page tables."""

    def release(self, message: Release) -> None:
        """Forget requests."""
        for rid in message.rids:
            self._next.pop(rid, None)
            self._ids_of.pop(rid, None)
            self._templates.pop(rid, None)
            self._marked.discard(rid)

    def forward(self, message: Forward) -> list[StepResult]:
        """Commit the next masks of every item's block."""
        if self._delay_s:
            time.sleep(self._delay_s)
        results = [self._step(item, message.parts()[0][1]) for item in message.items]
        following = {item.rid: item for item in message.then}
        for result in results:
            if result.rid in following:
                more = self._step(following[result.rid], message.max_steps - 1)
                result.positions += more.positions
                result.tokens += more.tokens
                result.nfe += more.nfe if more.tokens else 0
                result.token_layers += more.token_layers if more.tokens else 0
        return [self._with_marks(result) if result.rid in self._marked else result for result in results]

    def _with_marks(self, plain: StepResult) -> MarkedResult:
        passes = [1 + number // self._tokens for number in range(len(plain.tokens))]
        marks = Marks([1.0] * len(passes), passes)
        return MarkedResult(plain.rid, plain.positions, plain.tokens, plain.nfe, plain.token_layers, marks=marks)

    def _step(self, item: ForwardItem, max_steps: int) -> StepResult:
        cost = item.token_layers(self._layers)
        if item.targets is not None:
            return StepResult(item.rid, nfe=1, token_layers=cost, scores=[0.0] * len(item.targets))
        positions = self._positions(item, self._tokens * max_steps)
        steps = max(1, -(-len(positions) // self._tokens))
        ids = self._ids_of[item.rid]
        tokens = [ids[position % len(ids)] for position in positions]
        return StepResult(item.rid, positions, tokens, steps, steps * cost)

    def _without(self, stop_ids: frozenset[int]) -> list[int]:
        """The tokens that it commits where these end a text."""
        if stop_ids not in self._ids:
            if len(self._ids) >= _MOST_SETS:
                self._ids.clear()
            out = stop_ids | self._special
            self._ids[stop_ids] = [token for token in range(self._vocabulary) if token not in out]
        return self._ids[stop_ids]

    def _positions(self, item: ForwardItem, count: int) -> list[int]:
        """The next `count` masks of the item's block."""
        masks = self._templates.get(item.rid)
        if masks is not None:
            chosen = [position for position in masks if position < item.block_stop][:count]
            del masks[: len(chosen)]
            return chosen
        at = self._next[item.rid]
        self._next[item.rid] = stop = max(at, min(at + count, item.block_stop))
        return list(range(at, stop))


def build_null_worker(config: EngineConfig, tokens: int, delay_s: float = 0.0) -> tuple[NullWorker, Facts]:
    """A null worker, and the facts of the model that it replaces. Reads no weights."""
    config = config.for_device("cpu")
    folder = resolve_model_folder(config.model_path)
    model = load_config(folder, config.mask_token_id)
    profile = load_profile(config, folder, model, check_model=False)
    block_length = config.block_length or default_block_length(folder)
    facts = make_facts(config, folder, model, profile, block_length, device="none", dtype="float32", itemsize=4)
    return NullWorker(facts, tokens, delay_s), facts
