"""The two pools are sized by what captures take of each: filled by captures, neither evicts for the other's sake."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from shoal.radix_cache.config import TreeConfig
from shoal.radix_cache.depth_profile import DepthProfile
from shoal.runtime.config import EngineConfig
from shoal.runtime.errors import ConfigError
from shoal.runtime.model.settings import boundary_depths, pool_sizes
from shoal.runtime.request.sampling_params import SamplingParams
from shoal.runtime.worker.gpu import build as build_cuda

from ..tiny import all_pages, free_pages, make_engine, tokens, write_profile

ONE = SamplingParams(max_new_tokens=8, steps=1, block_length=8, ignore_eos=True)
MIB = 1 << 20


@pytest.mark.parametrize("pool", [{"kv_cache_bytes": MIB, "kv_cache_tokens": None}, {"kv_cache_tokens": 512}])
@pytest.mark.parametrize("options", [
    {"depth": 2}, {"depth": 4}, {"table": [[0.1, 2], [0.6, 4]]}, {"table": [[0.1, 2], [0.6, 4]], "refresh_interval": 2},
    {"depth": 4, "audit_rate": 0.001},
])  # fmt: skip
def test_captures_fill_both_pools_before_any_is_evicted(llada, tmp_path, options, pool):
    """A request needs 36 of some 400 KV pages, so that much may be free when the first prefix has to go."""
    options = {**options, **pool, "check_invariants": False}
    if "table" in options:
        options["depth_profile"] = write_profile(tmp_path / "p.json", 6, options.pop("table"))
    with make_engine(llada, **options) as engine:
        events = engine.core.parts.scheduler.memory.tree.events
        for seed in range(100):
            engine.generate(tokens(40, seed), ONE)
            if events.totals["evicted"]:
                break
        filled = [1 - free / pages for free, pages in zip(free_pages(engine), all_pages(engine), strict=True)]
        assert min(filled) > 0.8
        assert abs(filled[0] - filled[1]) < 0.05


def _sizes(table: list[tuple[float, int]], **options: Any) -> tuple[int, int]:
    profile = DepthProfile(num_layers=32, table=tuple(table))
    config = EngineConfig(**{"kv_cache_bytes": 100 * MIB, **options}).for_device("cuda")
    tree = TreeConfig(64, 32, 4, boundary_depths(config, profile, 4), kv_page_bytes=65536, boundary_page_bytes=8192)
    kv, boundary = pool_sizes(config, tree, profile)
    if config.kv_cache_bytes == 100 * MIB and config.kv_cache_tokens is None:
        spare = 100 * MIB - kv * 65536 - (boundary if boundary > 1 else 0) * 8192
        assert 0 <= spare < 8 * 65536
    return kv, boundary


def test_the_proportion_is_that_of_the_deepest_capture():
    kv, boundary = _sizes([(0.1, 4), (0.3, 12), (0.5, 16)])
    assert kv / boundary == 4 / 3  # four bands, states at 4, 12 and 16
    assert _sizes([(0.1, 4), (0.5, 16)], kv_cache_tokens=6400) == (800, 400)


def test_with_prefix_refreshes_captures_differ_and_states_run_out_for_none_of_them():
    kv, boundary = _sizes([(0.1, 4), (0.3, 12), (0.5, 16)], refresh_interval=8)
    assert kv == boundary  # a capture of depth 4: one band, one state


@pytest.mark.parametrize("depth", [0, 32])
def test_where_no_states_are_kept_all_memory_is_for_keys_and_values(depth):
    assert _sizes([(0.1, depth)]) == (1600, 1)


def test_less_than_a_page_of_all_layers_is_refused():
    with pytest.raises(ConfigError, match="one page of all layers takes") as caught:
        _sizes([(0.1, 16)], kv_cache_bytes=8 * 65536)
    assert _least_works(int(caught.value.limit))  # type: ignore[call-overload]


def _least_works(size: int) -> bool:
    profile = DepthProfile(num_layers=32, table=((0.1, 16),))
    tree = TreeConfig(64, 32, 4, profile.depths, kv_page_bytes=65536, boundary_page_bytes=8192)
    return pool_sizes(EngineConfig(kv_cache_bytes=size).for_device("cuda"), tree, profile) == (8, 2)


def test_a_gpus_budget_is_divided_in_the_same_way(llada, monkeypatch):
    """The budget of a GPU becomes `kv_cache_bytes` of the build that all devices share."""
    budget = SimpleNamespace(total=4 * MIB, used=MIB, forwards=MIB, pools=2 * MIB)
    monkeypatch.setattr(build_cuda, "gpu_budget", lambda *_: budget)
    with make_engine(llada, kv_cache_tokens=None, kv_cache_bytes=2 * MIB) as engine:
        model, facts = engine.model_config, engine.core.parts.facts
        config = build_cuda.with_cuda_budget(
            EngineConfig(layers_per_band=2, device="cuda:0").for_device("cuda"), model, torch.float32
        )
        assert config.kv_cache_bytes == 2 * MIB
        tree = engine.core.parts.scheduler.memory.config
        assert pool_sizes(config, tree, engine.depth_profile) == (facts.kv_pages, facts.boundary_pages)
