"""Prometheus metrics: the scheduler's numbers at each scrape, and distributions over requests."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..errors import InvalidRequestError, PoolTooSmallError, QueueFullError, RequestTimeoutError, ShoalError
from ..request.output import RequestOutput
from ..request.stats import SchedulerStats

_GAUGES = (
    ("running", "num_running_reqs", "Requests with pages and a canvas."),
    ("waiting", "num_queue_reqs", "Requests that were not admitted yet."),
    ("token_usage", "token_usage", "Share of the KV pool that can't be had: neither free nor evictable; 0 to 1."),
    ("capacity_tokens", "max_total_num_tokens", "Token positions that the KV pool has room for."),
    ("gen_throughput", "gen_throughput", "Text tokens a second over the last 10 seconds; 0 without requests."),
    ("input_throughput", "input_throughput", "Prompt tokens a second over the last 10 seconds; 0 without requests."),
    ("mean_depth", "reuse_depth", "Layers that a reused prompt token was reused in, on average."),
    ("uptime", "uptime_seconds", "Seconds since the scheduler started."),
)
_GAUGES_OF_SOME = (
    ("audit_depth_limit", "audit_depth_limit", "Depth past which audits have stopped all reuse."),
    ("audit_divergence", "audit_divergence", "KL divergence of audited predictions in nats, mean of all masks."),
    ("audit_worst_divergence", "audit_worst_divergence", "The same, the largest of all masks."),
    ("target_first_text_s", "target_first_text_seconds", "Target for first texts (--target-first-text-ms)."),
    ("refresh_token_layer_s", "refresh_token_layer_seconds", "Time of a refresh for each token-layer, of late."),
    ("block_step_s", "block_step_seconds", "Time of a block step, of late."),
    ("refresh_token_layers_limit", "refresh_token_layers_limit", "Token-layers that one refresh may compute now."),
)
"""Shown when there is a value."""
_PAGES = (
    ("kv", "kv_pages", {"free": "kv_pages_free", "tree": "kv_pages_tree", "requests": "kv_pages_requests"}),
    ("boundary", "boundary_pages", {"free": "boundary_pages_free", "tree": "boundary_pages_tree"}),
)
_COUNTERS = (
    ("requests", "num_requests", "Requests accepted."),
    ("aborted", "num_aborted_requests", "Requests ended by their client."),
    ("timed_out", "num_timed_out_requests", "Requests not done within their time."),
    ("failed", "num_failed_requests", "Requests that failed, also because logits were not finite."),
    ("preemptions", "num_retractions", "Running requests preempted by one of higher priority."),
    ("prompt_tokens", "prompt_tokens", "Prompt tokens of admitted requests."),
    ("generated_tokens", "generation_tokens", "Text tokens."),
    ("canvas_tokens", "canvas_tokens", "Masks committed, also behind the end of a text."),
    ("cache_hit_tokens", "cached_tokens", "Prompt tokens reused from other requests."),
    ("cache_queries", "prefix_cache_queries", "Admissions that looked a prompt up."),
    ("cache_hits", "prefix_cache_hits", "Admissions that reused a prefix."),
    ("cache_query_tokens", "prefix_cache_query_tokens", "Prompt tokens looked up."),
    ("reused_token_layers", "reused_token_layers", "Token-layers that hits were spared (cut x depth)."),
    ("computed_token_layers", "computed_token_layers", "Token-layers computed."),
    ("nfe", "nfe", "Forward passes, each counted for every request in it."),
    ("forwards", "forwards", "Batches run."),
    ("refresh_forwards", "refresh_forwards", "Batches that were refreshes."),
    ("prefix_refreshes", "prefix_refreshes", "Recomputations of a prompt, whole or above its depth."),
    ("canvas_refreshes", "canvas_refreshes", "Starts of later blocks."),
    ("audits", "audits", "Hits that were also computed without the cache."),
    ("audits_drifted", "audits_drifted", "Audits that found drift past the tolerance."),
    ("audit_tokens", "audit_tokens", "Tokens committed by audited forwards."),
    ("audit_tokens_agreed", "audit_tokens_agreed", "Those that the uncached pass predicts too."),
    ("audit_predictions", "audit_predictions", "Audits that compared predictions."),
    ("audits_differed", "audits_differed", "Those whose predictions diverged more than the bound at some mask."),
    ("audit_nodes_shrunk", "audit_nodes_shrunk", "Cached prefixes whose valid depth an audit lowered."),
    ("tree_stored", "tree_stored_tokens", "Events of the radix tree: stored."),
    ("tree_trimmed", "tree_trimmed", "Events of the radix tree: trimmed."),
    ("tree_evicted", "tree_evicted", "Events of the radix tree: evicted."),
)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)
_TOKENS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_PASSES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
_DEPTHS = (0, 2, 4, 6, 8, 10, 12, 16, 20, 24, 28, 32, 48, 64)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
REFUSALS = (InvalidRequestError, PoolTooSmallError, QueueFullError)
"""Errors of requests that were not accepted."""

disable_created_metrics()


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self, model_name: str = ""):
        self.model_name = model_name
        self.registry = CollectorRegistry()
        self._stats = _StatsCollector(model_name)
        self.registry.register(self._stats)

        def histogram(name: str, words: str, buckets: tuple[float, ...]) -> Histogram:
            labels = ["model_name", "outcome"]
            made = Histogram(f"shoal:{name}", words, labels, buckets=buckets, registry=self.registry)
            made.labels(model_name, "stop")  # so that it shows before the first request
            return made

        self.first_text = histogram("time_to_first_token_seconds", "Until the first committed text.", _SECONDS)
        self.total = histogram("e2e_request_latency_seconds", "Whole requests.", _SECONDS)
        self.queued = histogram("queue_time_seconds", "Waiting for admission.", _SECONDS)
        self.per_token = histogram("time_per_output_token_seconds", "After the first text, per token.", _SECONDS)
        self.prompt = histogram("prompt_tokens_histogram", "Prompt tokens of a request.", _TOKENS)
        self.generated = histogram("generation_tokens_histogram", "Text tokens of a request.", _TOKENS)
        self.nfe = histogram("nfe_per_request", "Forward passes of a request.", _PASSES)
        self.depth = histogram("reuse_depth_per_request", "Layers reused for a request; 0: nothing.", _DEPTHS)
        self.share = histogram("cached_share_per_request", "Share of a prompt that was reused.", _SHARES)
        self.http = Counter(
            "shoal:http_requests", "Replies by route and status.", ["route", "status"], registry=self.registry
        )
        self.active = Gauge("shoal:http_requests_active", "HTTP requests in flight.", registry=self.registry)
        self.refused: Counter = Counter(
            "shoal:num_refused_requests", "HTTP requests refused: queue full, too long, or with a field that is wrong.",
            ["model_name"], registry=self.registry,
        ).labels(model_name)  # fmt: skip
        self.disconnected = Counter(
            "shoal:disconnected_requests", "Generations whose client went away.", registry=self.registry
        )

    def watch(self) -> RequestWatch:
        """Follows one generation, from now."""
        return RequestWatch(self)

    def render(self, stats: SchedulerStats | None) -> bytes:
        """The text exposition; without the scheduler's numbers if no scheduler answers."""
        self._stats.stats = stats
        return generate_latest(_NotEmpty(self.registry))


class _NotEmpty:
    """The families of a registry that have samples.

    A family with labels has none until its first observation. Routers that merge the metrics of several servers take
    such a family for one without labels, and refuse to merge it with one that has them.
    """

    def __init__(self, registry: CollectorRegistry):
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        return (family for family in self._registry.collect() if family.samples)


class RequestWatch:
    """Times one generation as the HTTP server sees it; counts it once, at its end, with its outcome.

    Outcomes are `stop`, `length`, `abort` (also when its client left), `timeout` and `error`.
    """

    def __init__(self, metrics: Metrics):
        self._metrics = metrics
        self._start = time.monotonic()
        self._first: tuple[float, int] | None = None
        self._latest: RequestOutput | None = None
        self._ended = False

    def saw(self, output: RequestOutput) -> None:
        """Record an output."""
        self._latest = output
        if self._first is None and output.completion_tokens:
            self._first = (time.monotonic(), output.completion_tokens)
        if output.finish_reason is None:
            return
        if isinstance(output.error, REFUSALS):
            self._ended = True
        elif isinstance(output.error, RequestTimeoutError):
            self._end("timeout")
        else:
            self._end(output.finish_reason)

    def failed(self, error: ShoalError) -> None:
        """Record an end without a terminal output. Refusals enter no histogram: they never became requests."""
        if not isinstance(error, REFUSALS):
            self._end("error")

    def left(self) -> None:
        """Record that its client left."""
        self._metrics.disconnected.inc()
        self._end("abort")

    def _end(self, outcome: str) -> None:
        if self._ended:
            return
        self._ended = True
        metrics, output, now = self._metrics, self._latest, time.monotonic()

        def observe(histogram: Histogram, value: float) -> None:
            histogram.labels(metrics.model_name, outcome).observe(value)

        observe(metrics.total, now - self._start)
        if self._first is not None:
            observe(metrics.first_text, self._first[0] - self._start)
        if output is None:
            return
        observe(metrics.queued, output.timings.queue)
        observe(metrics.prompt, output.prompt_tokens)
        observe(metrics.generated, output.completion_tokens)
        observe(metrics.nfe, output.nfe)
        observe(metrics.depth, output.depth)
        observe(metrics.share, output.cached_tokens / max(1, output.prompt_tokens))
        if self._first is not None and output.completion_tokens > self._first[1]:
            observe(metrics.per_token, (now - self._first[0]) / (output.completion_tokens - self._first[1]))


class _StatsCollector(Collector):
    """The scheduler's numbers, as of the last scrape."""

    def __init__(self, model_name: str):
        self._labels = [model_name]
        self.stats: SchedulerStats | None = None

    def collect(self) -> Iterator[Metric]:
        stats = self.stats
        if stats is None:
            return
        given = (each for each in _GAUGES_OF_SOME if getattr(stats, each[0]) is not None)
        for attribute, name, words in (*_GAUGES, *given):
            gauge = GaugeMetricFamily(f"shoal:{name}", words, labels=["model_name"])
            gauge.add_metric(self._labels, getattr(stats, attribute))
            yield gauge
        hit_rate = stats.cache_hit_tokens / stats.cache_query_tokens if stats.cache_query_tokens else 0.0
        used = GaugeMetricFamily("shoal:num_used_tokens", "Token positions in use by requests.", labels=["model_name"])
        used.add_metric(self._labels, round(stats.token_usage * stats.capacity_tokens))
        yield used
        rate = GaugeMetricFamily("shoal:cache_hit_rate", "Share of looked-up prompt tokens reused, since the start.",
                                 labels=["model_name"])  # fmt: skip
        rate.add_metric(self._labels, hit_rate)
        yield rate
        pages = GaugeMetricFamily(
            "shoal:pages", "Pages of a pool: all, free, held by the tree, held by requests (a page may be in both).",
            labels=["model_name", "pool", "held"],
        )  # fmt: skip
        for pool, total, parts in _PAGES:
            pages.add_metric([*self._labels, pool, "all"], getattr(stats, total))
            for held, attribute in parts.items():
                pages.add_metric([*self._labels, pool, held], getattr(stats, attribute))
        yield pages
        for name, words, values in (
            (
                "audit_band_error",
                "Largest relative error of reused keys and values over a page.",
                stats.audit_band_errors,
            ),
            ("audit_band_cosine", "Cosine of reused and fresh keys and values.", stats.audit_band_cosines),
        ):
            drift = GaugeMetricFamily(f"shoal:{name}", f"{words} Mean of all audits.", labels=["model_name", "band"])
            for band, value in enumerate(values):
                drift.add_metric([*self._labels, str(band)], value)
            yield drift
        finished = CounterMetricFamily(
            "shoal:finished_requests", "Requests that ended well, by reason.", labels=["model_name", "reason"]
        )
        finished.add_metric([*self._labels, "stop"], stats.finished_stop)
        finished.add_metric([*self._labels, "length"], stats.finished_length)
        yield finished
        for attribute, name, words in _COUNTERS:
            counter = CounterMetricFamily(f"shoal:{name}", words, labels=["model_name"])
            counter.add_metric(self._labels, getattr(stats, attribute))
            yield counter
