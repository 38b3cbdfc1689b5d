"""Options of an engine; a default stands here and nowhere else."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from ..radix_cache.eviction_policy import EVICTION_POLICIES
from .checks import OPTION
from .errors import ConfigError
from .nearest_name import did_you_mean
from .refresh_schedules import REFRESH_SCHEDULES, RefreshSchedule

CacheMode = Literal["none", "prefix", "dual", "lm", "bicache"]
CACHE_MODES: tuple[CacheMode, ...] = get_args(CacheMode)
POLICIES = ("lpm", "fcfs", "dfs-weight")
MAX_TP_SIZE = 64


DEFAULT_DIVERGENCE = 0.1
"""Of `audit_divergence`; `Auditor` says what it keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Options of an engine. Raises ConfigError, naming the field, for values out of range.

    Attributes:
        model_path: `shop` (the bundled model), a folder, or a hub id.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        tp_size: ranks that the model is split over (tensor parallelism), each a process: on GPUs from `device` on, or
            on the CPU. It must divide the model's heads, key/value heads, MLP width and hidden width.
        dtype: `auto` (float32 on a CPU, bfloat16 on a GPU), `float32` or `bfloat16`.
        load_format: `auto`, or `dummy` for random weights of the model's shapes.
        quantization: `fp8`: products of the layers in fp8 (e4m3), a scale for each output of the weights and for each
            token; embeddings, head, norms and KVs stay in bfloat16. Needs a GPU of compute capability 8.9 or more.
        mask_token_id: the token of unfilled canvas positions; None: what `config.json`, shoal's table of published
            models or the tokenizer says.
        lora: folder of a LoRA adapter (adapter_config.json and adapter_model.safetensors) to merge into the weights.
        cache_mode: default for requests that name none.
        depth_profile: file to use instead of `depth_profile.json` beside the weights.
        depth: constant depth for every ratio instead of a profile (for experiments).
        refresh_interval: NFE between prefix refreshes; 0: once per request; 1: at every block start, and nothing of the
            request's own first forward is reused, so that a miss is exactly mode `dual`; None: what the profile says.
        reuse_margin: tokens at the end of what a prompt shares with the cache that are computed afresh (mode
            `bicache`); None: what the profile says. Right before the place where prompts part, keys and values depend
            on what follows from the first layers on: "Which things are" knows already whether "red" or "blue" comes.
        audit_rate: share of cache hits (0 to 1) that are also computed without the cache, to see how far the reused
            keys and values have drifted; past the tolerance the cached prefix is reused less deep from then on.
        audit_tolerance: relative error of a band's keys and values over a page that an audit calls drift; None: 1.5
            times what the depth profile saw where reuse was safe, or 0.25 when it does not say.
        audit_divergence: KL divergence, in nats, of a mask's distribution with the cache from that without it, above
            which an audit says that predictions differ.
        page_size: token positions of a page; None: 16 on a CPU, 64 on a GPU.
        layers_per_band: layers that are paged together; None: 4, or all of a model that has fewer.
        kv_cache_tokens: token positions that the KV pool holds; None: as many as fit `kv_cache_bytes`.
        kv_cache_bytes: memory for KV pages and boundary pages together, of each rank; None: 1 GiB on a CPU, on a GPU
            what `mem_fraction_static` leaves.
        kv_cache_dtype: `auto` (that of the weights), or `fp8_e4m3`: keys and values in 8 bits, twice as many in the
            same memory; numbers beyond 448 become 448. Needs a GPU of compute capability 8.9 or more.
        mem_fraction_static: share of a GPU's memory for weights and pools together; the rest is for forwards.
        max_running_requests: requests with a canvas at a time.
        max_queued_requests: requests that may wait beyond the free places among the running ones; more are refused.
            None: any number.
        max_overtakes: requests of higher priority that may start before the one that has waited longest, or preempt
            it, until it is next whatever its priority and keeps its place (of the same priority 8 times as many,
            which the schedule policy puts first).
        log_interval: block-step forwards between two lines of the log.
        max_refresh_tokens: tokens that one refresh, or the block steps of modes `none` and `prefix` in one forward, may
            compute (a single request may exceed it); None: 8192 on a CPU, 16384 on a GPU.
        max_steps_per_message: block steps that the worker may run before it answers; None: 1 on a CPU, 8 on a GPU.
        target_first_text_ms: milliseconds within which first texts should come under load, at the cost of throughput:
            bounds every forward to a quarter of it by measured times, and lets new requests go first; None: forwards
            are as large as max_refresh_tokens and max_steps_per_message allow.
        disable_cuda_graph: launch block steps kernel by kernel on a GPU.
        fold_norms: on a GPU, multiply the norms' weights into the projections behind them, so that block steps of few
            rows need no launches for norms. Rounds these weights once more; float32 is left as it is.
        schedule_policy: order of waiting requests: `lpm` (longest prefix match first), `fcfs`, `dfs-weight`.
        eviction_policy: of the radix tree.
        block_length: default of the sampling parameter; None: what generation_config.json says, else 32.
        canvas_window: masks that exist behind the current block of a request, whose canvas grows by a block at a time;
            None: the whole canvas exists from the start. A request may name its own.
        refresh_schedule: what a block start computes behind the reused prompt: `full`, the whole canvas; `settled`, the
            blocks that were filled since the latest refresh, the current one and the window. A request may name its
            own.
        full_refresh_every: with the schedule `settled`, every so many block starts are `full`; None: none. A request
            may name its own.
        refresh_entropy: bound, in nats, on the entropy of committed tokens past which a block start is `full` and, in
            mode `bicache`, a prefix refresh, in place of refresh_interval; None: no bound. CPU only. A request may name
            its own.
        split_special_tokens: of prompts that are text: encode what spells a special token as ordinary text, unless the
            request says otherwise. Contents of chat messages are always ordinary text.
        seed: of random weights (load_format `dummy`).
        check_invariants: check page accounting and tree after every step (slow; for tests).
    """

    model_path: str = "shop"
    device: str = "auto"
    tp_size: int = 1
    dtype: str = "auto"
    load_format: Literal["auto", "dummy"] = "auto"
    quantization: Literal["fp8"] | None = None
    mask_token_id: int | None = None
    lora: str | None = None
    cache_mode: CacheMode = "bicache"
    depth_profile: str | None = None
    depth: int | None = None
    refresh_interval: int | None = None
    reuse_margin: int | None = None
    audit_rate: float = 0.0
    audit_tolerance: float | None = None
    audit_divergence: float = DEFAULT_DIVERGENCE
    page_size: int | None = None
    layers_per_band: int | None = None
    kv_cache_tokens: int | None = None
    kv_cache_bytes: int | None = None
    kv_cache_dtype: Literal["auto", "fp8_e4m3"] = "auto"
    mem_fraction_static: float = 0.88
    max_running_requests: int = 32
    max_queued_requests: int | None = None
    max_overtakes: int = 4
    log_interval: int = 40
    max_refresh_tokens: int | None = None
    max_steps_per_message: int | None = None
    target_first_text_ms: int | None = None
    disable_cuda_graph: bool = False
    fold_norms: bool = True
    schedule_policy: str = "lpm"
    eviction_policy: str = "lru"
    block_length: int | None = None
    canvas_window: int | None = None
    refresh_schedule: RefreshSchedule = "full"
    full_refresh_every: int | None = None
    refresh_entropy: float | None = None
    split_special_tokens: bool = False
    seed: int = 0
    check_invariants: bool = False

    def __new__(cls, **options: Any) -> Any:
        """Raises ConfigError, with the nearest name, for an unknown option."""
        known = tuple(cls.__dataclass_fields__)
        for name in options:
            if name not in known:
                message = f"unknown engine option {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}"
                raise ConfigError(message, field=name, value=options[name], limit=known)
        return object.__new__(cls)

    def __post_init__(self) -> None:
        check = OPTION
        check.integer("tp_size", self.tp_size, 1, MAX_TP_SIZE)
        for name in ("max_running_requests", "max_overtakes", "log_interval"):
            check.integer(name, getattr(self, name), 1)
        for name in ("page_size", "layers_per_band", "kv_cache_tokens", "kv_cache_bytes", "max_refresh_tokens",
                     "max_steps_per_message", "target_first_text_ms", "block_length", "max_queued_requests",
                     "full_refresh_every"):  # fmt: skip
            if getattr(self, name) is not None:
                check.integer(name, getattr(self, name), 1)
        for name in ("refresh_interval", "depth", "reuse_margin", "seed", "mask_token_id", "canvas_window"):
            if getattr(self, name) is not None:
                check.integer(name, getattr(self, name), 0)
        check.number("mem_fraction_static", self.mem_fraction_static, 0.0, 1.0, above=True)
        check.number("audit_rate", self.audit_rate, 0.0, 1.0)
        if self.audit_tolerance is not None:
            check.number("audit_tolerance", self.audit_tolerance, 0.0, infinite=True)
        check.number("audit_divergence", self.audit_divergence, 0.0, infinite=True)
        if self.refresh_entropy is not None:
            check.number("refresh_entropy", self.refresh_entropy, 0.0)
        for name in ("model_path", "device", "depth_profile", "lora"):
            value = getattr(self, name)
            if not isinstance(value, str) and (value is not None or name not in ("depth_profile", "lora")):
                check.refuse(name, value, "a string")
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", self.device):
            check.refuse("device", self.device, "one of auto, cpu, cuda, cuda:N")
        check.one_of("cache_mode", self.cache_mode, CACHE_MODES)
        check.one_of("refresh_schedule", self.refresh_schedule, REFRESH_SCHEDULES)
        check.one_of("dtype", self.dtype, ("auto", "float32", "bfloat16"))
        check.one_of("load_format", self.load_format, ("auto", "dummy"))
        check.one_of("kv_cache_dtype", self.kv_cache_dtype, ("auto", "fp8_e4m3"))
        if self.quantization is not None:
            check.one_of("quantization", self.quantization, ("fp8",))
            if self.tp_size > 1:
                check.refuse("tp_size", self.tp_size, f"1 with quantization {self.quantization}")
        check.one_of("schedule_policy", self.schedule_policy, POLICIES)
        check.one_of("eviction_policy", self.eviction_policy, EVICTION_POLICIES)

    def for_device(self, kind: str) -> EngineConfig:
        """A copy with the defaults for a kind of device (`cpu` or `cuda`) filled in."""
        cuda = kind == "cuda"
        return replace(
            self,
            kv_cache_bytes=(1 << 30) if self.kv_cache_bytes is None and not cuda else self.kv_cache_bytes,
            page_size=self.page_size or (64 if cuda else 16),
            max_refresh_tokens=self.max_refresh_tokens or (16384 if cuda else 8192),
            max_steps_per_message=self.max_steps_per_message or (8 if cuda else 1),
        )

    @classmethod
    def build(cls, **options: Any) -> EngineConfig:
        """Build from keyword arguments. Raises ConfigError for an unknown one, with the nearest name and all names."""
        return cls(**options)
