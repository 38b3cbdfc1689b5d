"""Audits while serving: what they measure, what they leave alone, and what their findings do to the cache."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shoal.radix_cache.config import TreeConfig
from shoal.radix_cache.depth_profile import DepthProfile
from shoal.runtime.config import DEFAULT_DIVERGENCE
from shoal.runtime.engine.engine import Engine
from shoal.runtime.errors import ConfigError, EngineError
from shoal.runtime.model.settings import fallback_depths
from shoal.runtime.request.forward import AuditReport
from shoal.runtime.request.request import Request
from shoal.runtime.request.sampling_params import SamplingParams
from shoal.runtime.request.spec import RequestSpec
from shoal.runtime.scheduler.auditor import DEFAULT_TOLERANCE, PROFILE_SLACK, Auditor
from shoal.runtime.scheduler.memory import Memory
from shoal.runtime.text.stream import TextStream
from shoal.runtime.worker import audit as audit_pass
from shoal.runtime.worker.drift import cosine, divergence, relative_error

from ..tiny import assert_nothing_lost, make_engine, tokens, worker_of
from ..worker.cuda_path import cuda_executor

PARAMS = SamplingParams(max_new_tokens=16, ignore_eos=True)
DRAWN = SamplingParams(max_new_tokens=16, ignore_eos=True, temperature=1.0, seed=1)  # tokens are not compared
ALWAYS = {"audit_rate": 1.0, "audit_tolerance": 1e9, "audit_divergence": 1e9}


def stats(engine: Engine):
    return engine.core.parts.scheduler.stats()


def donor_and_hits(engine: Engine, hits: int = 3, params: SamplingParams = PARAMS):
    """One prompt, then others that share its first 32 tokens."""
    prefix = tokens(32, seed=1)
    engine.generate(prefix + tokens(8, seed=2), params)
    return engine.generate([prefix + tokens(8, seed=3 + i) for i in range(hits)], params)


# What is measured


def test_cosine_and_relative_error():
    cached, fresh = torch.randn(8, 2, 4), torch.randn(8, 2, 4)
    a, b = cached.double().reshape(8, 8), fresh.double().reshape(8, 8)
    expected = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    torch.testing.assert_close(cosine(cached, fresh).double(), expected, rtol=0, atol=1e-6)
    runs = torch.stack([(a[i : i + 4] - b[i : i + 4]).norm() / b[i : i + 4].norm() for i in (0, 4)])
    torch.testing.assert_close(relative_error(cached, fresh, 4).double(), runs, rtol=0, atol=1e-6)
    zero = torch.zeros(4, 2, 4)
    assert cosine(zero, zero).tolist() == [1.0] * 4
    assert relative_error(fresh, fresh, 4).tolist() == [0.0, 0.0]


def test_divergence_is_the_kl_of_the_two_distributions():
    fresh, cached = torch.randn(5, 7), torch.randn(5, 7)
    fresh[:, 2] = cached[:, 2] = -torch.inf  # the mask token
    p, q = fresh.double().softmax(-1), cached.double().softmax(-1)
    kept = [0, 1, 3, 4, 5, 6]
    expected = (p[:, kept] * (p[:, kept] / q[:, kept]).log()).sum(-1)
    torch.testing.assert_close(divergence(fresh, cached).double(), expected, rtol=0, atol=1e-6)
    assert divergence(fresh, fresh).tolist() == [0.0] * 5
    cached[0, 0] = -torch.inf  # impossible with the cache alone
    assert divergence(fresh, cached)[0] == torch.inf


def test_the_bound_keeps_what_a_threshold_of_0_9_commits():
    """What Auditor says of its bound: whatever has 0.9 on one side and less than 0.72 on the other is past it."""
    for sure in (0.9, 0.95, 0.999):
        for other in (0.01, 0.3, 0.5, 0.71):
            one, two = (torch.tensor([[a, 1 - a]]).log() for a in (sure, other))
            assert min(divergence(one, two).item(), divergence(two, one).item()) > DEFAULT_DIVERGENCE
    near = (torch.tensor([[a, 1 - a]]).log() for a in (0.9, 0.75))
    assert divergence(*near).item() < DEFAULT_DIVERGENCE


def test_the_same_request_again_has_no_drift_and_all_tokens_agree(folder):
    with make_engine(folder, **ALWAYS) as engine:
        prompt = tokens(40)
        engine.generate(prompt, PARAMS)
        assert stats(engine).audits == 0  # a miss has nothing to audit
        again = engine.generate(prompt, PARAMS)
        assert again.depth == 4
        seen = stats(engine)
        assert (seen.audits, seen.audits_drifted) == (1, 0)
        assert max(seen.audit_band_errors) < 1e-5
        assert min(seen.audit_band_cosines) > 1 - 1e-5
        assert len(seen.audit_band_errors) == 2  # depth 4 in bands of two layers
        assert 0 < seen.audit_tokens == seen.audit_tokens_agreed
        assert (seen.audit_predictions, seen.audits_differed) == (1, 0)
        assert seen.audit_worst_divergence < 1e-5


def test_another_continuation_drifts_more_in_higher_bands(folder):
    with make_engine(folder, **ALWAYS) as engine:
        donor_and_hits(engine)
        seen = stats(engine)
        assert seen.audits == 3
        first, second = seen.audit_band_errors
        assert 0 < first < second  # layer 0 of the first band can't depend on what follows
        assert seen.audit_tokens > 0


def test_the_worker_of_a_gpu_reports_the_same(folder):
    reports = []
    for executor in (None, cuda_executor):
        with make_engine(folder, executor=executor, **ALWAYS) as engine:
            donor_and_hits(engine)
            reports.append(engine.core.parts.scheduler.auditor.numbers())
    plain, fused = reports
    assert plain["audits"] == fused["audits"] == 3
    assert plain["audit_tokens_agreed"] == fused["audit_tokens_agreed"]
    assert plain["audit_predictions"] == fused["audit_predictions"] == 3
    assert 1e-3 < plain["audit_divergence"] < plain["audit_worst_divergence"]
    for name in ("audit_band_errors", "audit_band_cosines", "audit_divergence", "audit_worst_divergence"):
        assert fused[name] == pytest.approx(plain[name], abs=1e-4)


def test_drawn_tokens_are_not_compared(llada):
    with make_engine(llada, **ALWAYS) as engine:
        prompt = tokens(40)
        engine.generate(prompt, DRAWN)
        engine.generate(prompt, DRAWN)
        assert (stats(engine).audits, stats(engine).audit_tokens) == (1, 0)
        assert stats(engine).audit_predictions == 1  # distributions are the model's own, whatever is drawn from them


# What is left alone


def test_audited_requests_get_the_answers_of_unaudited_ones(folder):
    answers = []
    for options in ({}, ALWAYS):
        with make_engine(folder, **options) as engine:
            outputs = donor_and_hits(engine)
            assert [output.depth for output in outputs] == [4, 4, 4]
            answers.append([(o.token_ids, o.nfe, o.computed_token_layers) for o in outputs])
            assert_nothing_lost(engine)
    assert answers[0] == answers[1]


def test_the_rate_is_a_share_of_hits_and_the_choice_is_reproducible(llada):
    counts = []
    for _ in range(2):
        with make_engine(llada, audit_rate=0.3, audit_tolerance=1e9, audit_divergence=1e9) as engine:
            donor_and_hits(engine, 60, DRAWN)
            counts.append(stats(engine).audits)
    assert counts[0] == counts[1]
    assert 9 <= counts[0] <= 27
    with make_engine(llada) as engine:
        donor_and_hits(engine)
        assert stats(engine).audits == 0


def test_a_failed_audit_costs_the_request_nothing(llada, monkeypatch, caplog):
    with make_engine(llada) as engine:
        expected = [output.token_ids for output in donor_and_hits(engine)]

    def fail(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(audit_pass, "uncached_pass", fail)
    with make_engine(llada, **ALWAYS) as engine:
        assert [output.token_ids for output in donor_and_hits(engine)] == expected
        assert stats(engine).audits == 0
    assert "RuntimeError: no memory" in caplog.text


# What findings do


def test_drift_in_some_pages_shrinks_the_nodes_that_hold_them(llada):
    with make_engine(llada, audit_rate=1.0, audit_tolerance=5.0, audit_divergence=1e9) as engine:
        prefix = tokens(32, seed=1)
        engine.generate(prefix + tokens(8, seed=2), DRAWN)
        engine.generate(prefix[:16] + tokens(24, seed=3), DRAWN)  # splits the node at token 16
        tree = engine.core.parts.scheduler.memory.tree
        lower = next(node for node in tree.nodes() if node.end > 16 and node.token_ids[0] == prefix[16])
        assert lower.kv is not None
        pages = worker_of(engine).executor.kv.data
        pages[int(lower.kv[1, 0])] = 100.0  # second band, first page of the lower node
        output = engine.generate(prefix + tokens(8, seed=4), DRAWN)
        assert output.depth == 4
        assert stats(engine).audits_drifted == 1
        depths = {int(node.end): tree.config.levels[node.level] for node in tree.nodes()}
        assert depths[16] == 4
        assert engine.generate(prefix + tokens(8, seed=5), DRAWN).depth == 2
        assert engine.generate(prefix[:16] + tokens(8, seed=6), DRAWN).depth == 4
        assert_nothing_lost(engine)


def auditor(limit: int = 16, **options) -> tuple[Auditor, Memory]:
    profile = DepthProfile(16, ((0.1, limit),), max_drift=options.pop("max_drift", None))
    memory = Memory(TreeConfig(16, 16, 4, (4, 8, 12)), profile, 64, 64)
    return Auditor(memory, 1.0, **options), memory


def find(watch: Auditor, errors: list[float], worst: float | None = 0.0) -> None:
    """Record an audit with these errors by band, on a match of nothing that is left in the tree.

    worst: divergence at one of four masks; None: predictions were not compared.
    """
    from shoal.radix_cache.match import NO_PAGES, Match
    from shoal.radix_cache.node import Namespace

    match = Match(Namespace(), 32, 32, 4 * len(errors), NO_PAGES, NO_PAGES, None)
    watch.record(
        request=type("R", (), {"rid": "r"})(),
        match=match,
        report=AuditReport(
            np.array(errors, np.float32)[:, None],
            np.ones(len(errors), np.float32),
            divergences=None if worst is None else np.array([0.0, worst, 0.0, 0.0], np.float32),
        ),
    )


def test_where_the_tolerance_comes_from():
    assert auditor()[0].tolerance == DEFAULT_TOLERANCE
    assert auditor(max_drift=0.1)[0].tolerance == pytest.approx(0.1 * PROFILE_SLACK)
    assert auditor(max_drift=0.1, tolerance=0.3)[0].tolerance == 0.3


def test_findings_in_a_quarter_of_the_audits_lower_the_depth_limit():
    watch, memory = auditor()
    good, bad = [0.0] * 4, [0.0, 0.1, 0.9, 0.9]
    find(watch, bad)
    for _ in range(6):
        find(watch, good)
    assert watch.depth_limit is None
    assert memory.reuse_profile.depth(0.9) == 16
    find(watch, bad)  # 2 of 8 are not more than a quarter
    assert watch.depth_limit is None
    find(watch, bad)
    assert watch.depth_limit == 8
    assert memory.reuse_profile.depth(0.9) == 8
    assert memory.tree_for("bicache") == (memory.tree, memory.reuse_profile)
    assert memory.profile.depth(0.9) == 16  # what a request captures and keeps of itself is as planned
    for _ in range(20):
        find(watch, [0.0, 0.1])
    assert watch.depth_limit == 8
    for _ in range(6):
        find(watch, [0.9, 0.0])
    assert watch.depth_limit == 0
    assert memory.reuse_profile.depth(0.9) == 0
    assert watch.numbers()["audits_drifted"] == 9


def test_other_predictions_lower_the_limit_level_by_level_without_drift():
    watch, memory = auditor()
    for _ in range(2):
        find(watch, [0.0] * 4, worst=0.11)
    assert (watch.depth_limit, watch.drifted) == (12, 0)
    assert memory.reuse_profile.depth(0.9) == 12
    for _ in range(10):
        find(watch, [0.0] * 3, worst=0.09)
    for _ in range(3):
        find(watch, [0.0] * 3, worst=2.0)
    assert watch.depth_limit == 12  # 3 of 13 are not more than a quarter
    find(watch, [0.0] * 3, worst=2.0)
    assert watch.depth_limit == 8
    for bands, level in ((2, 4), (1, 0)):
        find(watch, [0.0] * bands, worst=float("nan"))  # no number is no agreement
        find(watch, [0.0] * bands, worst=float("inf"))
        assert watch.depth_limit == level
    numbers = watch.numbers()
    assert (numbers["audit_predictions"], numbers["audits_differed"]) == (20, 10)
    assert numbers["audit_worst_divergence"] == float("inf")


def test_a_loss_in_one_of_sixteen_predictions_lowers_the_limit_too():
    watch, _ = auditor()
    for audit in range(64):
        assert watch.depth_limit is None
        find(watch, [0.0] * 4, worst=None)
        find(watch, [0.0] * 4, worst=0.5 if audit % 16 == 3 else 0.0)
        if audit % 16 == 3 and audit > 48:
            break
    assert (audit, watch.depth_limit) == (51, 12)
    watch, _ = auditor()
    for audit in range(256):
        find(watch, [0.0] * 4, worst=0.5 if audit % 22 == 0 else 0.0)
    assert watch.depth_limit is None  # three in 64
    assert watch.numbers()["audit_divergence"] == pytest.approx(12 * 0.5 / (256 * 4))


def test_audits_that_find_nothing_compare_predictions_every_second_time():
    watch, _ = auditor()
    good = [0.0] * 4
    spec = RequestSpec(
        rid="r", prompt=np.arange(40), sampling=SamplingParams(), cache_mode="bicache", cache_salt="", block_length=8,
        seed=0, stop_ids=frozenset(),
    )  # fmt: skip
    hit = Request(spec, TextStream(None))
    hit.tally.cached_tokens, hit.tally.depth = 32, 16
    for _ in range(16):
        assert watch.wants(hit) == (16, True)
        find(watch, good)
    # Also where several are chosen before the first of them reports.
    assert [watch.wants(hit)[1] for _ in range(6)] == [False, True] * 3
    find(watch, good, worst=1.0)
    for _ in range(15):
        assert watch.wants(hit) == (16, True)
        find(watch, good)
    find(watch, good)  # the finding has left the window
    assert [watch.wants(hit)[1] for _ in range(4)] == [False, True] * 2


def test_an_audit_without_tokens_reports_the_same_drift(folder, monkeypatch):
    reports = []
    wants = Auditor.wants
    for tokens_too in (True, False):
        monkeypatch.setattr(Auditor, "wants", lambda watch, request, too=tokens_too: (wants(watch, request)[0], too))
        for executor in (None, cuda_executor):
            with make_engine(folder, executor=executor, **ALWAYS) as engine:
                donor_and_hits(engine)
                reports.append(engine.core.parts.scheduler.auditor.numbers())
    assert [report["audit_tokens"] > 0 for report in reports] == [True, True, False, False]
    for report in reports[1:]:
        assert report["audits"] == 3
        for name in ("audit_band_errors", "audit_band_cosines"):
            assert report[name] == pytest.approx(reports[0][name], abs=1e-4)


def test_an_audit_whose_forward_fails_is_forgotten_with_its_request(llada, monkeypatch):
    with make_engine(llada, **ALWAYS) as engine:
        worker, prompt = worker_of(engine), tokens(40)
        engine.generate(prompt, PARAMS)
        forward, begun = worker.executor.runner.forward, []

        def fail(entries):
            begun.append(len(worker._audit._begun))
            raise RuntimeError("a broken kernel")

        monkeypatch.setattr(worker.executor.runner, "forward", fail)
        with pytest.raises(EngineError, match="a broken kernel"):
            engine.generate(prompt, PARAMS)
        monkeypatch.setattr(worker.executor.runner, "forward", forward)
        engine.generate(prompt, PARAMS)
        assert begun == [1]
        assert not worker._audit._begun


def test_a_profile_whose_drift_is_expected_is_left_alone():
    watch, _ = auditor(limit=8, max_drift=0.2)
    for _ in range(30):
        find(watch, [0.1, 0.29])
    assert (watch.drifted, watch.depth_limit) == (0, None)
    find(watch, [0.1, 0.31])
    assert watch.drifted == 1


def test_depths_to_fall_back_to():
    assert fallback_depths((), 16, 4) == (4, 8, 12)
    assert fallback_depths((8,), 8, 4) == (4, 8)
    assert fallback_depths((12,), 12, 4) == (4, 8, 12)
    assert fallback_depths((3, 20), 20, 1) == (3, 5, 10, 15, 20)
    assert fallback_depths((), 0, 4) == ()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("audit_rate", value) for value in (1.5, -0.1, "all")),
        *(("audit_tolerance", value) for value in (-1.0, float("nan"))),
    ],
)
def test_bad_options_name_the_field(llada, field, value):
    with pytest.raises(ConfigError, match=field) as caught:
        make_engine(llada, **{field: value})
    assert caught.value.field == field
