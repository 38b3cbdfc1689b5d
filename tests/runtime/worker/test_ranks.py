"""Models split over two ranks give the answers of one: every family and mode, on the paths of a CPU and of a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from shoal import SamplingParams
from shoal.runtime.engine import core
from shoal.runtime.engine.build import build_parts
from shoal.runtime.model.registry import FAMILIES

from ..engine.test_families import MODES, config_of, state_of
from ..model.checkpoints import write_folder
from ..tiny import assert_nothing_lost, make_engine, tokens, worker_of, write_tokenizer
from .second_rank import TwoRanks

LOG_PROBABILITY_ERROR = 2e-5
"""Most difference of a log-probability in fp32: sums over two halves are rounded in another order."""
PARAMS = [
    SamplingParams(max_new_tokens=16, steps=4, ignore_eos=True),
    SamplingParams(max_new_tokens=16, threshold=0.3, ignore_eos=True),
    SamplingParams(max_new_tokens=16, steps=4, temperature=0.8, seed=3, ignore_eos=True),
]
PROMPTS = [tokens(20, seed=1), tokens(13, seed=2), tokens(20, seed=1)[:12] + tokens(9, seed=3)]


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Iterator[TwoRanks]:
    two = TwoRanks(tmp_path_factory.mktemp("ranks"))
    yield two
    two.close()


def even(config: dict[str, Any], width: int = 48) -> dict[str, Any]:
    """A family's tiny model with an even number of heads of every kind, and hidden states of this width."""
    shapes = {
        "n_heads": 4, "n_kv_heads": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "d_model": width,
        "hidden_size": width,
    }  # fmt: skip
    return config | {name: value for name, value in shapes.items() if name in config}


AUDITS: dict[str, Any] = {"audit_rate": 1.0, "audit_tolerance": 1e9, "audit_divergence": 1e9}
"""All hits, whose findings change nothing."""


def pair_of_engines(two: TwoRanks, monkeypatch, folder, gpu: bool = False, **options: Any):
    """Engines on one rank and on two."""
    one = make_engine(folder, **options)
    with monkeypatch.context() as patch:
        patch.setattr(core, "build_parts", lambda config: build_parts(config, worker=two.worker(config, gpu)))
        return one, make_engine(folder, tp_size=2, **options)


@pytest.mark.parametrize("family", [family.name for family in FAMILIES])
def test_two_ranks_give_the_answers_of_one(two, family, tmp_path, monkeypatch):
    config = even(config_of(family))
    folder = write_tokenizer(write_folder(tmp_path, config, state_of(config), shards=2))
    one, both = pair_of_engines(two, monkeypatch, folder, depth=2, **AUDITS)
    with one, both:
        held, whole = worker_of(both).executor, worker_of(one).executor
        assert held.kv.data.nbytes == whole.kv.data.nbytes // 2
        assert held.boundary.data.nbytes == whole.boundary.data.nbytes // 2
        for mode in MODES if family in ("llada", "llada-moe", "dream") else ("none", "bicache"):
            for engine in (one, both):
                engine.flush_cache()
            for prompts in (PROMPTS[:2], PROMPTS[2:]):  # the last one hits what the first left in the cache
                params = PARAMS[: len(prompts)]
                found, expected = (engine.generate(prompts, params, cache_mode=mode) for engine in (both, one))
                assert [o.token_ids for o in found] == [o.token_ids for o in expected], mode
                assert [o.cached_tokens for o in found] == [o.cached_tokens for o in expected], mode
        drawn = [engine.generate(PROMPTS[0], PARAMS[2]).token_ids for engine in (both, one)]
        assert drawn[0] == drawn[1]
        scores = [engine.score(PROMPTS[0], [tokens(5, seed=8)]).choices[0] for engine in (both, one)]
        assert scores[0].token_scores == pytest.approx(scores[1].token_scores, abs=LOG_PROBABILITY_ERROR)
        audits = [engine.core.parts.scheduler.auditor.numbers() for engine in (both, one)]
        assert audits[0]["audits"] == audits[1]["audits"] > 0
        for name in ("audit_band_errors", "audit_band_cosines", "audit_divergence"):
            assert audits[0][name] == pytest.approx(audits[1][name], abs=1e-5)
        assert_nothing_lost(both)


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_the_path_of_a_gpu_gives_the_same_answers_on_two_ranks(two, family, tmp_path, monkeypatch):
    """Its layers and reference kernels, on the CPU."""
    config = even(config_of(family), width=64)  # heads of 16
    folder = write_tokenizer(write_folder(tmp_path, config, state_of(config), shards=2))
    one, both = pair_of_engines(two, monkeypatch, folder, gpu=True, depth=2)
    with one, both:
        for mode in ("none", "bicache"):
            expected, found = (
                engine.generate(PROMPTS, [*PARAMS[:2], PARAMS[0]], cache_mode=mode) for engine in (one, both)
            )
            assert [o.token_ids for o in found] == [o.token_ids for o in expected], mode
        assert_nothing_lost(both)
