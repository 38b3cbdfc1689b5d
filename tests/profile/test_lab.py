"""The lab: captures against dense forwards, drift against them, and decoding at depths."""

from __future__ import annotations

import pytest
import torch

from shoal.profile.data import Row
from shoal.profile.lab import Asked, Lab, Wanted
from shoal.profile.measure import Measurer, edit_distance
from shoal.profile.plan import Unit
from shoal.runtime.config import EngineConfig
from shoal.runtime.request.sampling_params import SamplingParams
from shoal.runtime.worker.drift import cached_layer, uncached_pass

from ..runtime.tiny import make_engine, tokens
from ..runtime.worker.cuda_path import cuda_executor

SAMPLING = SamplingParams(max_new_tokens=16, ignore_eos=True)
HEAD, ONE, TWO = tokens(32, seed=1), tokens(8, seed=2), tokens(8, seed=3)


@pytest.fixture
def lab(folder):
    layers = 6 if "llada" in str(folder) else 7
    config = EngineConfig(
        model_path=str(folder), device="cpu", page_size=4, layers_per_band=2, kv_cache_tokens=512, reuse_margin=0,
        block_length=8, check_invariants=True,
    )  # fmt: skip
    made = Lab(config, (2, 4, layers))
    yield made
    made.forget()
    assert made.memory.kv.num_free == made.memory.kv.num_pages
    assert made.memory.boundary.num_free == made.memory.boundary.num_pages


def hit(prompt, **options):
    return Asked(prompt=prompt, sampling=SAMPLING, mode="bicache", salt="s", **options)


def captured(lab, kind, prompt, length, canvas=0):
    (made,) = lab.capture([Wanted(salt="s", kind=kind, tokens=prompt, length=length, canvas=canvas)])
    return made


def true_layers(lab, prompt, canvas=0):
    decoder, out = lab.parts.decoder, []
    ids = torch.tensor([*prompt, *[decoder.config.mask_token_id] * canvas])
    uncached_pass(decoder, ids, lambda layer, k, v: out.append((k.clone(), v.clone())))
    return out


@pytest.mark.parametrize("kind", ["first", "alone"])
def test_a_capture_holds_the_keys_and_values_of_its_forward(lab, kind):
    prompt, canvas = ([*HEAD, *ONE], 16) if kind == "first" else (HEAD, 0)
    made = captured(lab, kind, prompt, 30, canvas)
    assert made.tokens == 28  # whole pages
    pool = lab.parts.worker.executor.kv
    for layer, fresh in enumerate(true_layers(lab, prompt, canvas)):
        for cached, true in zip(cached_layer(pool, made.page_table, layer, 28), fresh, strict=True):
            torch.testing.assert_close(cached, true[:28], rtol=0, atol=1e-5)


def test_drift_is_nought_against_itself_and_grows_with_the_layers(lab):
    same = captured(lab, "first", [*HEAD, *ONE], 32, 16)
    other = captured(lab, "alone", HEAD, 32)
    own, alone = lab.drift([*HEAD, *ONE], 16, [same, other], 32)
    assert len(own) == len(alone) == lab.num_layers
    assert max(layer.worst for layer in own) < 1e-5
    assert min(layer.cosine_k for layer in own) > 1 - 1e-5
    assert alone[0].worst < 1e-5  # layer 0 sees embeddings only
    assert alone[-1].error_k > alone[1].error_k > 1e-4
    assert alone[-1].worst >= max(alone[-1].error_k, alone[-1].error_v)


def test_decoding_reuses_what_was_captured_to_the_depth_and_the_cut(lab):
    captured(lab, "first", [*HEAD, *ONE], 32, 16)
    for depth, cut, expected in ((2, 32, (32, 2)), (4, 20, (20, 4)), (0, 32, (0, 0))):
        (output,) = lab.decode([hit([*HEAD, *TWO], depth=depth, cut=cut)])
        assert (output.cached_tokens, output.depth) == expected
    (other,) = lab.decode([hit([*HEAD, *TWO], capture="alone", depth=2, cut=32)])
    assert other.cached_tokens == 0
    nodes = sum(1 for _ in lab.memory.tree.nodes())
    lab.decode([hit([*HEAD, *TWO], depth=2, cut=32), hit([*HEAD, *ONE, *TWO], depth=2, cut=32)])
    # A lock splits the node that a cut ends in; nothing of what was decoded is stored.
    assert {int(node.end) for node in lab.memory.tree.nodes()} == {20, 32}
    assert sum(1 for _ in lab.memory.tree.nodes()) == nodes


@pytest.mark.parametrize("interval", [0, 1, 6])
def test_answers_are_those_of_the_engine(folder, lab, interval):
    with make_engine(folder, depth=4, refresh_interval=interval) as engine:
        engine.generate([*HEAD, *ONE], SAMPLING)
        expected = engine.generate([*HEAD, *TWO], SAMPLING)
        none = engine.generate([*HEAD, *TWO], SAMPLING, cache_mode="none")
    captured(lab, "first", [*HEAD, *ONE], 40, 16)
    (output,) = lab.decode([hit([*HEAD, *TWO], depth=4, interval=interval, cut=40)])
    assert (output.token_ids, output.nfe, output.cached_tokens, output.prefix_refreshes) == (
        expected.token_ids, expected.nfe, expected.cached_tokens, expected.prefix_refreshes,
    )  # fmt: skip
    (exact,) = lab.decode([Asked(prompt=[*HEAD, *TWO], sampling=SAMPLING, mode="none")])
    assert exact.token_ids == none.token_ids


def test_requests_of_a_batch_reuse_each_what_it_was_asked_to(lab):
    """Alone and together, with more requests than the memory holds at once."""
    lab.capture([
        Wanted(salt="s", kind="first", tokens=[*HEAD, *ONE], length=32, canvas=16),
        Wanted(salt="s", kind="alone", tokens=HEAD, length=32),
    ])  # fmt: skip
    asked = [
        Asked(prompt=[*HEAD, *TWO], sampling=SAMPLING, mode="none"), hit([*HEAD, *TWO], depth=4, cut=32),
        hit([*HEAD, *TWO], depth=lab.num_layers, cut=32), hit([*HEAD, *TWO], capture="alone", depth=4, cut=20),
        hit([*HEAD, *TWO], depth=2, interval=1, cut=32), hit([*HEAD, *TWO], depth=2, margin=8),
        hit([*HEAD, *TWO], cut=0), Asked(prompt=[*HEAD, *ONE], sampling=SAMPLING, mode="dual"),
    ]  # fmt: skip
    alone = [lab.decode([one])[0] for one in asked]
    together = lab.decode(asked * 3)
    for output, expected in zip(together, alone * 3, strict=True):
        assert (output.token_ids, output.nfe, output.cached_tokens, output.depth, output.prefix_refreshes) == (
            expected.token_ids, expected.nfe, expected.cached_tokens, expected.depth, expected.prefix_refreshes,
        )  # fmt: skip
    assert [output.cached_tokens for output in alone] == [0, 32, 32, 20, 32, 24, 0, 0]


def test_captures_outlast_a_pool_that_requests_fill(lab):
    captured(lab, "first", [*HEAD, *ONE], 32, 16)
    longest = Asked(prompt=tokens(lab.max_tokens - 16, seed=9), sampling=SAMPLING, mode="dual")
    lab.decode([longest] * 4)
    (output,) = lab.decode([hit([*HEAD, *TWO], depth=2, cut=32)])
    assert output.cached_tokens == 32


def test_a_unit_where_the_donor_is_the_row_agrees_with_none_at_every_depth(lab):
    depths = (2, 4, lab.num_layers)
    measurer = Measurer(lab, SAMPLING, captures=("first", "alone", "final"), depths=depths, intervals=(0, 1, 8))
    row = Row((*HEAD, *ONE), "no such answer", "k")
    record = measurer.measure_unit(Unit("u", 0.5, "g", 32, row.tokens, (row,), True))
    assert len(record["cells"]) == measurer.cells_per_unit
    cells = {(c["capture"], c["depth"], c["interval"]): c["rows"][0] for c in record["cells"]}
    baseline = cells["first", 0, 0]
    for (capture, depth, _), found in cells.items():
        assert found["right"] is found["right_none"] is False
        if capture == "first":
            # Nothing differs from what mode `dual` computes but that the prefix is not computed again.
            assert found["nfe"] >= 2
            assert found["ratio"] == (round(32 / 56, 4) if depth else 0)
    assert cells["first", lab.num_layers, 0]["edits"] <= max(baseline["edits"], 16)
    worst = {kind: max(layer["worst"] for layer in rows[0]) for kind, rows in record["drift"].items()}
    assert worst["first"] < 1e-5 < worst["alone"]
    assert worst["final"] > 1e-5


def test_the_worker_of_a_gpu_measures_the_same(folder):
    layers = 6 if "llada" in str(folder) else 7
    config = EngineConfig(
        model_path=str(folder), device="cpu", page_size=4, layers_per_band=2, kv_cache_tokens=512, reuse_margin=0,
        block_length=8,
    )  # fmt: skip
    records = []
    for executor in (None, cuda_executor):
        lab = Lab(config, (2, 4, layers), executor)
        measurer = Measurer(
            lab, SAMPLING, captures=("first", "alone", "final"), depths=(2, 4, layers), intervals=(0, 8)
        )
        rows = (Row((*HEAD, *TWO), "a", "k"), Row((*HEAD, *TWO[::-1]), "a", "k"))
        records.append(measurer.measure_unit(Unit("u", 0.5, "g", 28, (*HEAD, *ONE), rows, True)))
    plain, fused = records
    assert fused["cells"] == plain["cells"]
    for kind, of_rows in plain["drift"].items():
        for one, other in zip(of_rows, fused["drift"][kind], strict=True):
            for left, right in zip(one, other, strict=True):
                assert right == pytest.approx(left, abs=1e-4)


def test_edit_distance():
    assert edit_distance([], []) == 0
    assert edit_distance([1, 2, 3], [1, 3]) == 1
    assert edit_distance([1, 2, 3], [4, 5]) == 3
    assert edit_distance("kitten", "sitting") == 3  # type: ignore[arg-type]
