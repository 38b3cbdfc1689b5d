"""The exposition of the metrics as routers that merge it with that of other servers need it."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from shoal.runtime.errors import RequestTimeoutError, ShoalError
from shoal.runtime.http.metrics import Metrics
from shoal.runtime.request.output import FinishReason, RequestOutput, Timings
from shoal.runtime.request.stats import SchedulerStats


def labels(exposition: bytes) -> dict[str, set[frozenset[str]]]:
    """For each family the sets of label names of its samples; the bounds of buckets aside."""
    families = text_string_to_metric_families(exposition.decode())
    return {family.name: {frozenset(s.labels) - {"le"} for s in family.samples} for family in families}


def ended(reason: FinishReason, error: ShoalError | None = None) -> RequestOutput:
    """The last output of a request."""
    timings = Timings(queue=0.1, first_text=0.2, total=0.3)
    return RequestOutput("a", "red", (5,), reason, None, error, 4, 1, 2, 8, 8, 2, 16, 32, 1, timings)


def test_every_family_has_samples_and_these_have_the_same_labels():
    """sglang's router takes a family without samples for one without labels, and then merges nothing at all."""
    fresh, used = Metrics("shop"), Metrics("shop")
    used.http.labels("/generate", "200").inc()
    for output in (ended("stop"), ended("length"), ended("abort"), ended("abort", RequestTimeoutError("late"))):
        used.watch().saw(output)
    drifted = SchedulerStats(
        audit_band_errors=(0.1, 0.2), audit_band_cosines=(1.0, 0.9), audit_depth_limit=4, target_first_text_s=0.5,
        audit_divergence=0.01, audit_worst_divergence=0.2,
        refresh_token_layer_s=7e-7, block_step_s=0.03, refresh_token_layers_limit=178571.4,
    )  # fmt: skip
    ends = (fresh.render(None), fresh.render(SchedulerStats()), used.render(drifted))
    seen: dict[str, set[frozenset[str]]] = {}
    for exposition in ends:
        for name, found in labels(exposition).items():
            assert len(found) == 1, name
            assert found == seen.setdefault(name, found), name
    assert seen["shoal:e2e_request_latency_seconds"] == {frozenset({"model_name", "outcome"})}
    assert b'outcome="timeout"' in ends[-1]
    assert b'shoal:target_first_text_seconds{model_name="shop"} 0.5\n' in ends[-1]
    assert b"first_text_seconds" not in ends[1]
