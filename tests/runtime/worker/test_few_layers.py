"""Models of fewer layers than a band has by default."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shoal.runtime.config import CACHE_MODES
from shoal.runtime.engine.engine import Engine
from shoal.runtime.errors import ConfigError
from shoal.runtime.request.sampling_params import SamplingParams

from ..tiny import LLADA, assert_nothing_lost, tokens


def folder_of(path: Path, layers: int) -> str:
    (path / "config.json").write_text(json.dumps({**LLADA, "n_layers": layers}))
    return str(path)


def make(path: Path, layers: int, **options: Any) -> Engine:
    return Engine(
        folder_of(path, layers),
        load_format="dummy",
        device="cpu",
        kv_cache_tokens=1024,
        check_invariants=True,
        **options,
    )


@pytest.mark.parametrize(("layers", "band"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 4)])
def test_default_options_serve_it_in_all_modes(tmp_path, layers, band):
    params = SamplingParams(max_new_tokens=8, block_length=8, steps=4, ignore_eos=True)
    with make(tmp_path, layers) as engine:
        for mode in CACHE_MODES:
            for _ in range(2):
                assert len(engine.generate(tokens(40), params, cache_mode=mode).token_ids) == 8
        assert engine.core.parts.facts.layers_per_band == band
        assert engine.core.parts.scheduler.memory.config.layers_per_band == band
        assert_nothing_lost(engine)


def test_a_band_that_is_asked_for_and_does_not_fit_stays_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"layers_per_band is 4; the model has 3 layers") as caught:
        make(tmp_path, 3, layers_per_band=4)
    assert (caught.value.field, caught.value.value, caught.value.limit) == ("layers_per_band", 4, 3)
