"""A scheduler under everything at once: random requests, aborts, time-outs, pins, flushes, failures, driven by hand.

Time is a counter, chance a seed: a scenario is the same on every machine. After every step pages and trees are counted
anew, and what is in the pages is looked at: keys and values of layer 0 depend on token and position alone, so a page of
other tokens gives itself away.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shoal.radix_cache.eviction_policy import EVICTION_POLICIES
from shoal.radix_cache.node import Namespace
from shoal.radix_cache.tree import RadixTree
from shoal.runtime.config import CacheMode
from shoal.runtime.engine.engine import Engine
from shoal.runtime.errors import CacheInUseError, InvalidRequestError, QueueFullError
from shoal.runtime.request.forward import Forward, Grow
from shoal.runtime.request.output import RequestOutput
from shoal.runtime.request.request import Request
from shoal.runtime.request.sampling_params import SamplingParams

from ..tiny import VOCABULARY, by_hand, make_engine, open_requests, tokens, worker_of, write_profile

MODES: tuple[CacheMode, ...] = ("none", "prefix", "dual", "lm", "bicache", "bicache", "bicache")
EXACT = ("none", "prefix", "dual")  # nothing reused across requests
TABLES = ([[0.0, 4]], [[0.2, 2], [0.45, 4]], [[0.25, 2], [0.5, 4], [0.75, 99]], [[0.0, 99]])
TARGET_MS = 4000
TOKEN_S = 0.01
"""Of a forward, where there is a target: a quarter of it holds 100 tokens."""
HOLES = ([-1] * 3 + [9, 10] + [-1] * 3, [11] * 9 + [-1] * 4 + [12] * 3, [-1] * 8)


def options_of(chooser: random.Random, folder: Path, layers: int, path: Path) -> dict[str, Any]:
    """Options of an engine, pools apart."""
    table = [[ratio, min(depth, layers)] for ratio, depth in chooser.choice(TABLES)]
    profile = write_profile(path, layers, table, chooser.choice([None, 1, 3, 5]))
    return {
        "depth_profile": profile, "page_size": chooser.choice([1, 4, 4, 16]), "reuse_margin": chooser.choice([0, 3, 8]),
        "max_steps_per_message": chooser.choice([1, 1, 3]), "max_refresh_tokens": chooser.choice([1, 60, 400]),
    }  # fmt: skip


def first_layer(engine: Engine) -> Tensor:
    """Keys and values of layer 0 [2, positions, vocabulary, kv_heads, head_dim]."""
    decoder = engine.core.parts.decoder
    length = decoder.config.max_position_embeddings
    seen: list[Tensor] = []

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.append(torch.stack([k, v]))
        return torch.zeros_like(q)

    ids = torch.arange(VOCABULARY).repeat(length)
    positions = torch.arange(length).repeat_interleave(VOCABULARY)
    decoder.layer(0, decoder.embed(ids), positions, attend)
    return seen[0].view(2, length, VOCABULARY, *seen[0].shape[2:])


class Stress:
    """One scenario. `run` drives it to its end; `ends` has every request with its terminal output."""

    def __init__(self, seed: int, folder: Path, layers: int, path: Path, clock: list[float]):
        self.chooser = chooser = random.Random(f"stress-{seed}")
        self.options = options_of(chooser, folder, layers, path)
        if seed % 3 == 2:
            self.options["target_first_text_ms"] = TARGET_MS
        room = chooser.choice([100, 180, 400])
        self.engine = make_engine(
            folder, kv_cache_tokens=max(room, 64), max_running_requests=chooser.choice([1, 2, 4, 8]),
            schedule_policy=chooser.choice(["lpm", "fcfs", "dfs-weight"]), max_queued_requests=10,
            eviction_policy=chooser.choice(list(EVICTION_POLICIES)), seed=seed,
            audit_rate=chooser.choice([0.0, 1.0]), audit_tolerance=chooser.choice([0.02, 0.1]), **self.options,
        )  # fmt: skip
        self.grows = seed % 2 == 1
        self.growths = 0
        self.reference = first_layer(self.engine)
        self.scheduler = by_hand(self.engine)
        self.memory = self.scheduler.memory
        self.clock = clock
        self.families = [tokens(40, 100 + family) for family in range(3)]
        self.alive: dict[str, Request] = {}
        self.seen: dict[str, RequestOutput] = {}
        self.ends: list[tuple[Request, RequestOutput]] = []
        self.refused = self.flushes = self.failures = 0
        self.pinned: list[tuple[list[int], Namespace]] = []
        worker = worker_of(self.engine)
        worker.executor.kv.data.fill_(torch.nan)  # what is read without having been written shows
        plain = worker.executor.runner.forward

        def forward(entries: Any) -> Any:
            if chooser.random() < 0.02:
                self.failures += 1
                raise RuntimeError("a broken kernel")
            return plain(entries)

        worker.executor.runner.forward = forward
        self.refreshes = 0
        run_message, budget = worker.forward, self.options["max_refresh_tokens"]

        def within_budget(message: Forward) -> Any:
            if self.scheduler.counters.refresh_forwards > self.refreshes or self._finals():
                self.refreshes = self.scheduler.counters.refresh_forwards
                tokens = sum(item.stop - item.join for item in message.items)
                assert tokens <= budget or len(message.items) == 1, "a refresh holds too much"
            else:
                wide = [item.stop - item.start for item in message.items if item.stop > item.block_stop]
                assert sum(wide) <= budget or len(wide) == 1, "a block step holds too much"
            if "target_first_text_ms" in self.options:
                clock[0] += TOKEN_S * sum(item.stop - item.join for item in message.items)
            return run_message(message)

        worker.forward = within_budget
        lengthen = worker.grow

        def grow(message: Grow) -> None:
            self.growths += 1
            lengthen(message)

        worker.grow = grow

    def _finals(self) -> bool:
        """Whether passes over finished sequences are in flight."""
        return self.scheduler._in_flight is not None and self.scheduler._in_flight.finals

    # What happens to it

    def run(self, steps: int) -> None:
        """So many random steps, then on to the end."""
        happenings = [(0.45, self.ask), (0.12, self.abort), (0.05, self.pin), (0.04, self.unpin), (0.03, self.flush)]
        for _ in range(steps):
            for chance, happen in happenings:
                if self.chooser.random() < chance:
                    happen()
                    self.check()
            self.step()
        for _ in range(3000):
            if not self.scheduler.has_work:
                break
            self.step()
        assert not self.alive, "not everybody ended"
        while self.pinned:
            self.unpin()

    def step(self) -> None:
        self.clock[0] += 1.0
        stored, contents = self._gone(), self._contents()
        for output in self.scheduler.step():
            self.take(output)
        if stored == self._gone():
            for key, page in self._contents().items():
                assert np.array_equal(contents.get(key, page), page), "a cached page was written again"
        self.check()

    def ask(self) -> None:
        """A request of any kind."""
        chooser = self.chooser
        prompt = chooser.choice(self.families)[: chooser.choice([1, 3, 15, 16, 17, 24, 33, 40])]
        prompt = prompt + tokens(chooser.choice([0, 0, 2, 9, 20]), chooser.randrange(4))
        sampling = SamplingParams(
            max_new_tokens=chooser.choice([0, 8, 16, 24]), ignore_eos=chooser.random() < 0.5,
            seed=chooser.randrange(3), temperature=chooser.choice([0.0, 0.0, 0.9]),
            strategy=chooser.choice(["low_confidence", "entropy", "random"]),
            stop=chooser.choice([(), (), ("e", "qx")]), threshold=chooser.choice([0.2, 0.6, 1.0]),
        )  # fmt: skip
        mode, salt = chooser.choice(MODES), chooser.choice(["", "", "a"])
        if self.grows and chooser.random() < 0.8:
            sampling = replace(
                sampling, max_new_tokens=chooser.choice([16, 24, 40]), canvas_window=chooser.choice([0, 3, 8, 16]),
                refresh_schedule="settled" if mode != "none" and chooser.random() < 0.7 else None,
                full_refresh_every=chooser.choice([None, 2]), refresh_entropy=chooser.choice([None, None, 1.5]),
            )  # fmt: skip
        canvas = targets = None
        kind = chooser.random()
        if kind < 0.2:
            canvas = [chooser.choice(HOLES)]
            sampling = SamplingParams(threshold=0.6, seed=1)
        elif kind < 0.3:
            canvas, targets = [[-1, 7, -1, -1, -1, -1, -1, -1]], [[(0, 5), (2, 6)]]
        shared = chooser.choice([0, 0, len(prompt)])
        (request,) = open_requests(
            self.engine, [prompt], sampling if targets is None else None, mode, salt, canvas, shared_prefix=shared,
            targets=targets, priority=chooser.choice([0, 0, 1, 2]),
            timeout_s=chooser.choice([None, None, None, 4.5, 20.5]), stream=chooser.random() < 0.7,
        )  # fmt: skip
        try:
            self.scheduler.add(request)
        except QueueFullError:
            self.refused += 1
            return
        self.alive[request.rid] = request
        if chooser.random() < 0.1:
            try:
                self.scheduler.add(request)
            except InvalidRequestError:
                return
            raise AssertionError("a rid was taken twice")

    def abort(self) -> None:
        if self.alive:
            output = self.scheduler.abort(self.chooser.choice(sorted(self.alive)))
            assert output is not None
            assert output.finished
            self.take(output)
        assert self.scheduler.abort("nobody") is None

    def pin(self) -> None:
        prompt = self.chooser.choice(self.families)[: self.chooser.choice([8, 16, 40])]
        namespace = Namespace(self.chooser.choice(["", "a"]), "first")
        if len(self.pinned) < 2 and self.memory.tree.pin(prompt, namespace):
            self.pinned.append((prompt, namespace))

    def unpin(self) -> None:
        if self.pinned:
            self.memory.tree.unpin(*self.pinned.pop())

    def flush(self) -> None:
        locks = self.memory.tree.num_locks + self.memory.lm_tree.num_locks
        try:
            self.memory.flush()
        except CacheInUseError:
            assert locks
            return
        assert not locks
        self.flushes += 1
        self.pinned.clear()
        assert self.memory.tree.num_nodes == self.memory.lm_tree.num_nodes == 0

    # What must hold

    def take(self, output: RequestOutput) -> None:
        """An output: of a request that has not ended, and no less than the one before."""
        request = self.alive[output.rid]
        before = self.seen.get(output.rid)
        if before is not None:
            assert output.text.startswith(before.text)
            assert output.token_ids[: len(before.token_ids)] == before.token_ids
        self.seen[output.rid] = output
        if output.finished:
            self.ends.append((self.alive.pop(output.rid), output))
        else:
            assert request.spec.stream

    def check(self) -> None:
        """Accounts, and what stands in the pages that somebody may read."""
        self.scheduler.check()
        memory, size = self.memory, self.memory.config.page_size
        running = list(self.scheduler._running.values())
        grants = [request.grant for request in running if request.grant is not None]
        assert len(grants) == len(running)
        own = np.concatenate([grant.own_kv for grant in grants]) if grants else np.empty(0, np.int32)
        assert len(np.unique(own)) == len(own), "a page has two owners"
        for tree, path, ids in self._nodes():
            assert len(path) % size == 0, tree
            self._reads(path, ids[0], len(path) // size - ids.shape[1])
        for request, grant in zip(running, grants, strict=True):
            assert grant.cut % size == 0
            assert grant.depth <= memory.profile.depth(grant.cut / grant.tokens) or (request.spec.cache_mode == "lm")
            held = grant.page_table.shape[1]
            assert 0 <= memory.pages_for(request.extent) - held <= memory.pages_for(request.spec.block_length)
            if request.started:
                self._reads(request.prompt.tolist()[: len(request.prompt) // size * size], grant.page_table[0], 0)

    def _reads(self, path: list[int], ids: Any, first: int) -> None:
        """Pages `ids` hold layer 0 of tokens `path` from page `first` on."""
        size = self.memory.config.page_size
        at = np.arange(first * size, len(path))
        expected = self.reference[:, at, np.array(path, np.int64)[at]]
        ids = torch.from_numpy(np.asarray(ids, np.int64)[: len(at) // size])
        held = worker_of(self.engine).executor.kv.data[ids, 0].transpose(0, 1).flatten(1, 2)
        torch.testing.assert_close(held, expected, rtol=1e-4, atol=1e-5)

    def _nodes(self) -> list[tuple[RadixTree, list[int], Any]]:
        """(tree, tokens from the root to its end, KV pages [bands, pages]) of every node that holds pages."""
        found = []
        for tree in (self.memory.tree, self.memory.lm_tree):
            paths: dict[int, list[int]] = {}
            for node in tree.nodes():
                above = paths.get(id(node.parent), [])
                paths[id(node)] = path = above + node.token_ids.tolist()
                if node.level and node.kv is not None:
                    found.append((tree, path, node.kv))
        return found

    def _gone(self) -> list[int]:
        trees = (self.memory.tree, self.memory.lm_tree)
        return [tree.events.totals[kind] for tree in trees for kind in ("trimmed", "evicted")]

    def _contents(self) -> dict[int, Any]:
        """Content of every page that a tree holds, in layers that there are: the last band may be short."""
        data, config = worker_of(self.engine).executor.kv.data, self.memory.config
        found = {}
        for _, _, kv in self._nodes():
            for band, ids in enumerate(kv):
                layers = min(config.layers_per_band, config.num_layers - band * config.layers_per_band)
                contents = data[torch.from_numpy(ids.astype(np.int64)), :layers]
                for page, content in zip(ids.tolist(), contents, strict=True):
                    assert not content.isnan().any(), "a cached page was never written"
                    found[page] = content.numpy()
        return found
