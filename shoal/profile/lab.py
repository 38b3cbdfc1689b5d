"""The engine's own parts, arranged for measurements: captures of any kind, true KVs, decoding at any depth.

The scheduler, the worker and its runner are those of serving. Only the planner differs: it is told how much to reuse,
and stores nothing of the measured requests.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..radix_cache.depth_profile import DepthProfile
from ..radix_cache.node import Namespace
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


class MeasuringPlanner(ReusePlanner):
    """Reuses at most `cut` tokens and stores nothing."""

    cut: int = 0
    stores = False

    def reusable(self, request: Request, cached: int) -> int:
        """As in serving, but never past `cut`."""
        return min(self.cut, super().reusable(request, cached))


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
        worker = build_worker(config, DepthProfile(layers, rows), build_executor)
        self.parts: Parts = build_parts(config, planner=MeasuringPlanner, worker=worker)
        self.scheduler = self.parts.scheduler
        self.memory = self.scheduler.memory
        self._worker = self.parts.worker
        self._ids = itertools.count()
        self.max_tokens = self.parts.facts.max_tokens

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return self.parts.decoder.num_layers

    @property
    def planner(self) -> MeasuringPlanner:
        """The planner, which takes the amount of reuse."""
        planner = self.scheduler.planner
        assert isinstance(planner, MeasuringPlanner)
        return planner

    # Decoding

    def decode(
        self, prompts: Sequence[Tokens], sampling: SamplingParams, mode: CacheMode, *, salt: str = "",
        capture: str = "", depth: int = 0, interval: int = 0, cut: int = 0, margin: int = 0,
    ) -> list[RequestOutput]:  # fmt: skip
        """Answers in order. In mode `bicache` prefixes come from `captured(salt, capture)`, reused to `depth` layers
        and at most `cut` tokens, `margin` before the place where they part, refreshed every `interval` NFE (0: once
        per request).
        """
        memory = self.memory
        memory.profile = memory.reuse_profile = DepthProfile.constant(
            depth, self.num_layers, capture=capture or "first"
        )
        self.planner.cut, self.planner.refresh_interval, self.planner.reuse_margin = cut, interval, margin
        sampling, ends = Endings(self.parts.facts, self.parts.tokenizer).of(resolved(sampling, self.parts.facts))
        requests = [
            Request(
                RequestSpec(
                    rid=f"profile-{next(self._ids)}", prompt=np.array(prompt, np.int64), sampling=sampling,
                    cache_mode=mode, cache_salt=salt, seed=0, stream=False, stop_ids=ends,
                    block_length=sampling.block_length or self.parts.facts.block_length,
                ),
                TextStream(self.parts.tokenizer),
            )
            for prompt in prompts
        ]  # fmt: skip
        for request in requests:
            self.scheduler.add(request)
        while self.scheduler.has_work:
            self.scheduler.step()
        outputs = [request.output() for request in requests]
        for output in outputs:
            if output.error is not None:
                raise output.error
        return outputs

    # Captures

    def capture(self, salt: str, kind: str, tokens: Tokens, length: int, canvas: int = 0) -> Captured:
        """Run one forward over `tokens` and `canvas` masks behind them; put the first `length` tokens in the tree.

        `length` is rounded down to whole pages; all layers are stored, with boundary states at every depth. Raises
        ConfigError when the pool is too small.
        """
        config, memory = self.memory.config, self.memory
        size, bands = config.page_size, config.num_bands
        total, whole = len(tokens) + canvas, length // size * size
        pages, kept = memory.pages_for(total), whole // size
        reserved = memory.reserve(bands * pages, kept * len(config.boundary_depths))
        if reserved is None:
            message = f"kv_cache_tokens: a sequence of {total} tokens does not fit beside what is measured"
            raise ConfigError(message, field="kv_cache_tokens", limit=f"more than {total}")
        kv, boundary = reserved
        table = kv.reshape(bands, pages)
        states = {d: boundary[i * kept : (i + 1) * kept] for i, d in enumerate(config.boundary_depths)}
        rid = f"capture-{next(self._ids)}"
        item = ForwardItem(
            rid, 0, total, total, total, total, join=0,
            captures=tuple((depth, 0, ids) for depth, ids in states.items() if kept),
        )  # fmt: skip
        try:
            self._forward(item, tokens, canvas, table)
            memory.tree.capture(
                np.array(tokens[:whole], np.int32), Namespace(salt, kind), depth=config.num_layers, ratio=1.0,
                kv_pages=table[:, :kept], boundary_pages=states,
            )  # fmt: skip
        finally:
            memory.kv.release(kv)
            memory.boundary.release(boundary)
        return Captured(whole, torch.from_numpy(table[:, :kept].astype(np.int64)).to(self.parts.decoder.device))

    def _forward(self, item: ForwardItem, tokens: Tokens, canvas: int, table: Pages) -> None:
        prompt = np.array(tokens, np.int64)
        sampling = SamplingParams(max_new_tokens=canvas)
        self._worker.add(
            AddRequest(
                rid=item.rid, prompt=prompt, canvas_length=canvas, sampling=sampling, seed=0, block_length=canvas,
                page_table=table,
            )
        )  # fmt: skip
        (result,) = self._worker.forward(Forward((item,)))
        self._worker.release(Release((item.rid,)))
        if result.error is not None:
            raise EngineError(f"a forward failed: {result.error}")

    def forget(self) -> None:
        """Drop every capture, and check that no page was lost."""
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
        out: list[list[LayerDrift]] = [[] for _ in captures]

        def visit(layer: int, k: Tensor, v: Tensor) -> None:
            for captured, drifts in zip(captures, out, strict=True):
                pairs = list(zip(cached_layer(pool, captured.page_table, layer, length), (k, v), strict=True))
                cosines = [cosine(old, new[:length]).mean().item() for old, new in pairs]
                whole = [relative_error(old, new[:length], length).item() for old, new in pairs]
                worst = max(relative_error(old, new[:length], pool.page_size).max().item() for old, new in pairs)
                drifts.append(LayerDrift(cosines[0], cosines[1], whole[0], whole[1], worst))

        uncached_pass(decoder, ids, visit)
        return out
