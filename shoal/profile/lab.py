"""The engine's own parts, arranged for measurements: captures of any kind, true KVs, decoding at any depth.

The scheduler, the worker and its runner are those of serving. Only the planner differs: it is told of each request how
much it reuses, and stores nothing of the measured requests.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..radix_cache.depth_profile import DepthProfile
from ..radix_cache.node import Namespace
from ..radix_cache.tree import RadixTree
from ..runtime.config import CacheMode, EngineConfig
from ..runtime.engine.build import Parts, build_parts
from ..runtime.errors import ConfigError, EngineError
from ..runtime.request.endings import Endings
from ..runtime.request.forward import AddRequest, Forward, ForwardItem, Release
from ..runtime.request.grant import Pages
from ..runtime.request.output import RequestOutput
from ..runtime.request.request import Request
from ..runtime.request.resolve import resolved
from ..runtime.request.sampling_params import SamplingParams
from ..runtime.request.spec import RequestSpec
from ..runtime.scheduler.reuse import ReusePlanner
from ..runtime.text.stream import TextStream
from ..runtime.worker.build import BuildExecutor, build_worker
from ..runtime.worker.drift import cached_layer, cosine, relative_error, uncached_pass

Tokens = Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request to measure, and in mode `bicache` what it reuses.

    Attributes:
        prompt: token ids.
        sampling: decoding parameters.
        mode: cache mode.
        salt, capture: the prefixes that it may reuse: those of `Lab.capture` with the same two.
        depth: layers that it reuses of them.
        interval: NFE between its prefix refreshes; 0: once per request.
        cut: most tokens that it reuses; None: as many as there are.
        margin: tokens before the place where prompts part that it computes itself.
    """

    prompt: Tokens
    sampling: SamplingParams
    mode: CacheMode
    salt: str = ""
    capture: str = "first"
    depth: int = 0
    interval: int = 0
    cut: int | None = None
    margin: int = 0


class MeasuringPlanner(ReusePlanner):
    """Each request reuses what its `Asked` says; none stores anything, except in mode `lm`."""

    stores = False

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.asked: dict[str, Asked] = {}

    def profile(self, request: Request) -> DepthProfile:
        """The depth and the capture that were asked for."""
        asked = self.asked[request.rid]
        return _constant(asked.depth, self.memory.config.num_layers, asked.capture)

    def trees(self, request: Request) -> tuple[RadixTree, DepthProfile] | None:
        """As in serving, to the depth that was asked for."""
        trees = super().trees(request)
        if trees is None or self.asked[request.rid].mode != "bicache":
            return trees
        return trees[0], self.profile(request)

    def interval(self, request: Request, whole: int) -> int | None:
        """The interval that was asked for."""
        return self.asked[request.rid].interval or None

    def reusable(self, request: Request, cached: int) -> int:
        """As in serving, with the margin and at most the cut that were asked for."""
        asked = self.asked[request.rid]
        self.reuse_margin = asked.margin
        most = super().reusable(request, cached)
        return most if asked.cut is None else min(asked.cut, most)


@lru_cache
def _constant(depth: int, num_layers: int, capture: str) -> DepthProfile:
    return DepthProfile.constant(depth, num_layers, capture=capture)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A capture to make: one forward over `tokens` and `canvas` masks, of which it keeps the first `length` tokens."""

    salt: str
    kind: str
    tokens: Tokens
    length: int
    canvas: int = 0


@dataclass(frozen=True, slots=True)
class Captured:
    """A prefix in the tree: tokens, and where its keys and values are (int64 [bands, pages])."""

    tokens: int
    page_table: Tensor


@dataclass(frozen=True, slots=True)
class LayerDrift:
    """Cached against true keys and values in one layer; `worst` is the largest relative error of a page."""

    cosine_k: float
    cosine_v: float
    error_k: float
    error_v: float
    worst: float


class Lab:
    """One model and its pools.

    Args:
        config: of the engine; its profile and cache mode are ignored.
        depths: depths that prefixes can be resumed at (whole bands; the model's number of layers may be among them).
        build_executor: see `build_worker`.
    """

    def __init__(self, config: EngineConfig, depths: Sequence[int], build_executor: BuildExecutor | None = None):
        layers = depths[-1]
        rows = tuple((index / 1000, depth) for index, depth in enumerate(sorted({*depths, layers})))
        config = replace(config, schedule_policy="fcfs")  # nothing is cached but captures: no order finds more
        worker = build_worker(config, DepthProfile(layers, rows), build_executor)
        self.parts: Parts = build_parts(config, planner=MeasuringPlanner, worker=worker)
        self.scheduler = self.parts.scheduler
        self.memory = self.scheduler.memory
        self._worker = self.parts.worker
        self._ids = itertools.count()
        self._pinned: list[tuple[np.ndarray[Any, Any], Namespace]] = []
        device_config = config.for_device(self.parts.decoder.device.type)
        assert device_config.max_refresh_tokens is not None
        self._most_tokens, self._most_requests = device_config.max_refresh_tokens, config.max_running_requests
        self.max_tokens = self.parts.facts.max_tokens

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return self.parts.decoder.num_layers

    # Decoding

    def decode(self, asked: Sequence[Asked]) -> list[RequestOutput]:
        """Answers in order; as many requests run together as the configuration and the memory allow."""
        planner, facts = self.scheduler.planner, self.parts.facts
        assert isinstance(planner, MeasuringPlanner)
        endings = Endings(facts, self.parts.tokenizer)
        requests = []
        for one in asked:
            sampling, ends = endings.of(resolved(one.sampling, facts))
            spec = RequestSpec(
                rid=f"profile-{next(self._ids)}", prompt=np.array(one.prompt, np.int64), sampling=sampling,
                cache_mode=one.mode, cache_salt=one.salt, seed=0, stream=False, stop_ids=ends,
                block_length=sampling.block_length or facts.block_length,
            )  # fmt: skip
            requests.append(Request(spec, TextStream(self.parts.tokenizer)))
            planner.asked[spec.rid] = one
        for request in requests:
            self.scheduler.add(request)
        while self.scheduler.has_work:
            self.scheduler.step()
        planner.asked.clear()
        outputs = [request.output() for request in requests]
        for output in outputs:
            if output.error is not None:
                raise output.error
        return outputs

    # Captures

    def capture(self, wanted: Sequence[Wanted]) -> list[Captured]:
        """Put prefixes into the tree, whole pages and all layers of each, with boundary states at every depth.

        They stay until `forget`. Raises ConfigError when the pool is too small.
        """
        captured: list[Captured] = []
        for part in self._fitting(wanted):
            taken: list[tuple[Wanted, Pages, Pages]] = []
            try:
                for one in part:
                    taken.append((one, *self._reserve(one)))
                self._forward([(self._item(one, boundary), one, kv) for one, kv, boundary in taken])
                for one, kv, boundary in taken:
                    captured.append(self._keep(one, kv, boundary))
            finally:
                for _, kv, boundary in taken:
                    self.memory.kv.release(kv)
                    self.memory.boundary.release(boundary)
        return captured

    def _fitting(self, wanted: Sequence[Wanted]) -> Iterator[list[Wanted]]:
        """Parts that fit one forward's token budget and its canvas slots; of one capture at least."""
        part: list[Wanted] = []
        tokens = 0
        for one in wanted:
            total = len(one.tokens) + one.canvas
            if part and (tokens + total > self._most_tokens or len(part) == self._most_requests):
                yield part
                part, tokens = [], 0
            part.append(one)
            tokens += total
        if part:
            yield part

    def _reserve(self, one: Wanted) -> tuple[Pages, Pages]:
        """KV and boundary pages of a capture."""
        config, total = self.memory.config, len(one.tokens) + one.canvas
        kept = one.length // config.page_size
        reserved = self.memory.reserve(
            config.num_bands * self.memory.pages_for(total), kept * len(config.boundary_depths)
        )
        if reserved is None:
            message = f"kv_cache_tokens: a sequence of {total} tokens does not fit beside what is measured"
            raise ConfigError(message, field="kv_cache_tokens", limit=f"more than {total}")
        return reserved

    def _states(self, one: Wanted, boundary: Pages) -> dict[int, Pages]:
        """Boundary pages by depth."""
        kept = one.length // self.memory.config.page_size
        depths = self.memory.config.boundary_depths
        return {depth: boundary[i * kept : (i + 1) * kept] for i, depth in enumerate(depths)}

    def _item(self, one: Wanted, boundary: Pages) -> ForwardItem:
        total = len(one.tokens) + one.canvas
        captures = tuple((depth, 0, ids) for depth, ids in self._states(one, boundary).items() if len(ids))
        return ForwardItem(f"capture-{next(self._ids)}", 0, total, total, total, total, join=0, captures=captures)

    def _forward(self, taken: Sequence[tuple[ForwardItem, Wanted, Pages]]) -> None:
        for item, one, kv in taken:
            self._worker.add(
                AddRequest(
                    rid=item.rid, prompt=np.array(one.tokens, np.int64), canvas_length=one.canvas,
                    sampling=SamplingParams(max_new_tokens=one.canvas), seed=0, block_length=one.canvas,
                    page_table=kv.reshape(self.memory.config.num_bands, -1),
                )
            )  # fmt: skip
        results = self._worker.forward(Forward(tuple(item for item, _, _ in taken)))
        self._worker.release(Release(tuple(item.rid for item, _, _ in taken)))
        for result in results:
            if result.error is not None:
                raise EngineError(f"a forward failed: {result.error}")

    def _keep(self, one: Wanted, kv: Pages, boundary: Pages) -> Captured:
        memory, config = self.memory, self.memory.config
        kept = one.length // config.page_size
        table = kv.reshape(config.num_bands, -1)[:, :kept]
        tokens, namespace = np.array(one.tokens[: kept * config.page_size], np.int32), Namespace(one.salt, one.kind)
        memory.tree.capture(
            tokens, namespace, depth=config.num_layers, ratio=1.0, kv_pages=table,
            boundary_pages=self._states(one, boundary),
        )  # fmt: skip
        memory.tree.pin(tokens, namespace)
        self._pinned.append((tokens, namespace))
        return Captured(len(tokens), torch.from_numpy(table.astype(np.int64)).to(self.parts.decoder.device))

    def forget(self) -> None:
        """Drop every capture, and check that no page was lost."""
        while self._pinned:
            self.memory.tree.unpin(*self._pinned.pop())
        self.memory.flush()
        self.scheduler.check()

    # Drift

    def drift(self, tokens: Tokens, canvas: int, captures: Sequence[Captured], length: int) -> list[list[LayerDrift]]:
        """For each capture and layer, how far its first `length` tokens are from the true keys and values.

        The true ones are those of an uncached forward over `tokens` and `canvas` masks. One layer is held at a time.
        """
        decoder, pool = self.parts.decoder, self._worker.executor.kv
        mask = decoder.config.mask_token_id
        ids = torch.tensor([*tokens, *[mask] * canvas], dtype=torch.int64, device=decoder.device)
        numbers: list[Tensor] = []

        def visit(layer: int, k: Tensor, v: Tensor) -> None:
            for captured in captures:
                pairs = list(zip(cached_layer(pool, captured.page_table, layer, length), (k, v), strict=True))
                cosines = [cosine(old, new[:length]).mean() for old, new in pairs]
                whole = [relative_error(old, new[:length], length)[0] for old, new in pairs]
                pages = [relative_error(old, new[:length], pool.page_size).max() for old, new in pairs]
                numbers.append(torch.stack((*cosines, *whole, torch.maximum(*pages))))

        uncached_pass(decoder, ids, visit)
        if not numbers:
            return []
        found = torch.stack(numbers).view(decoder.num_layers, len(captures), -1).transpose(0, 1).tolist()
        return [[LayerDrift(*layer) for layer in layers] for layers in found]
