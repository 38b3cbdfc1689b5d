"""State and counters of a scheduler: the numbers behind metrics, logs and load reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Counts:
    """Counters since the start: they only grow.

    Attributes:
        requests: requests accepted. Each of them ends in exactly one of finished_stop, finished_length, aborted,
            timed_out or failed; what the scheduler refuses (queue full, too long for the pool) counts in
            `refused` alone, what is refused before it gets there not at all.
        preemptions: running requests that were preempted by one of higher priority.
        prompt_tokens: of the requests that were admitted (a preempted request counts once).
        generated_tokens: tokens of texts: committed, contiguous, not behind the end; fixed ones of templates included.
        canvas_tokens: masks committed, also behind the end of a text.
        cache_query_tokens: prompt tokens looked up in the radix trees; `cache_hit_tokens` of them were reused.
        cache_hits: admissions that reused a prefix, of `cache_queries`.
        reused_token_layers: token-layers that hits were spared (cut x depth); `computed_token_layers` were computed.
        nfe: forward passes, each counted for every request in it.
        forwards: batches run; `refresh_forwards` of them refreshes, the others block steps.
        prefix_refreshes: forwards of single requests that recomputed the prompt or its layers above the depth.
        canvas_refreshes: starts of later blocks.
    """

    requests: int = 0
    refused: int = 0
    finished_stop: int = 0
    finished_length: int = 0
    aborted: int = 0
    timed_out: int = 0
    failed: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    canvas_tokens: int = 0
    cache_queries: int = 0
    cache_hits: int = 0
    cache_query_tokens: int = 0
    cache_hit_tokens: int = 0
    reused_token_layers: int = 0
    computed_token_layers: int = 0
    nfe: int = 0
    forwards: int = 0
    refresh_forwards: int = 0
    prefix_refreshes: int = 0
    canvas_refreshes: int = 0


@dataclass(slots=True, kw_only=True)
class SchedulerStats(Counts):
    """The counters and the state of a scheduler.

    Attributes:
        running: requests with pages and a canvas now.
        waiting: requests not admitted yet, preempted ones included.
        kv_pages: pages of the KV pool; `kv_pages_free` nobody holds, `kv_pages_tree` the radix trees hold,
            `kv_pages_requests` are neither free nor evictable: running requests (or pins) hold them. A page may be
            in both.
        boundary_pages, boundary_pages_free, boundary_pages_tree: the same of the pool of boundary states.
        capacity_tokens: token positions (all bands) that the KV pool has room for.
        token_usage: share of the KV pool that is neither free nor evictable; 0 to 1.
        tree_stored, tree_trimmed, tree_evicted: events of the radix tree.
        audits: hits that were also computed uncached; `audits_drifted` of them found drift past the tolerance.
        audit_tokens: tokens committed by audited first forwards (greedy requests only); `audit_tokens_agreed` of them
            are what the uncached pass predicts.
        audit_predictions: audits that compared predictions; in `audits_differed` of them the divergence at some mask
            was above the bound.
        audit_divergence: KL divergence of predictions, in nats, mean of all masks; `audit_worst_divergence` the
            largest. None: nothing was compared.
        audit_nodes_shrunk: nodes of the tree whose valid depth an audit lowered.
        audit_depth_limit: depth past which nothing is reused any more because of what audits found; None: no limit.
        audit_band_errors: by band, largest relative error of keys and values over a page, mean of the audits.
        audit_band_cosines: by band, cosine of cached and fresh keys and values, mean of the audits.
        target_first_text_s: the target for first texts, in seconds; None: there is none, nor any of the next three.
        refresh_token_layer_s: seconds that a refresh takes for each token-layer; None: not measured yet.
        block_step_s: seconds that a block step takes; None: not measured yet.
        refresh_token_layers_limit: token-layers that one refresh may compute so that the target is kept.
        input_throughput: prompt tokens a second, cached ones included, over the last 10 seconds; 0 without requests.
        gen_throughput: text tokens a second over the last 10 seconds; 0 without requests.
        uptime: seconds since the scheduler started.
    """

    running: int = 0
    waiting: int = 0
    kv_pages: int = 0
    kv_pages_free: int = 0
    kv_pages_tree: int = 0
    kv_pages_requests: int = 0
    boundary_pages: int = 0
    boundary_pages_free: int = 0
    boundary_pages_tree: int = 0
    capacity_tokens: int = 0
    token_usage: float = 0.0
    tree_stored: int = 0
    tree_trimmed: int = 0
    tree_evicted: int = 0
    audits: int = 0
    audits_drifted: int = 0
    audit_tokens: int = 0
    audit_tokens_agreed: int = 0
    audit_predictions: int = 0
    audits_differed: int = 0
    audit_divergence: float | None = None
    audit_worst_divergence: float | None = None
    audit_nodes_shrunk: int = 0
    audit_depth_limit: int | None = None
    audit_band_errors: tuple[float, ...] = ()
    audit_band_cosines: tuple[float, ...] = ()
    target_first_text_s: float | None = None
    refresh_token_layer_s: float | None = None
    block_step_s: float | None = None
    refresh_token_layers_limit: float | None = None
    input_throughput: float = 0.0
    gen_throughput: float = 0.0
    uptime: float = 0.0

    @property
    def mean_depth(self) -> float:
        """Layers that a reused prompt token was reused in, on average; 0 without hits."""
        return self.reused_token_layers / self.cache_hit_tokens if self.cache_hit_tokens else 0.0
