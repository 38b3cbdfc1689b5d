"""Tiny random models with a tokenizer of single characters, and engines on them."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from shoal.radix_cache.depth_profile import DepthProfile
from shoal.runtime.config import EngineConfig
from shoal.runtime.engine.build import build_parts
from shoal.runtime.engine.engine import Engine
from shoal.runtime.engine.inputs import RequestOptions, inputs_of
from shoal.runtime.engine.service import LocalService
from shoal.runtime.request.request import Request
from shoal.runtime.scheduler.scheduler import Scheduler
from shoal.runtime.worker.build import BuildExecutor, build_worker

from .model.checkpoints import write_folder
from .model.oracle import DREAM_TINY, LLADA_TINY, random_state_dict

EOS, MASK, VOCABULARY = 3, 60, 64
LLADA = {
    **LLADA_TINY,
    "d_model": 32, "n_heads": 2, "n_kv_heads": 2, "n_layers": 6, "mlp_hidden_size": 48, "vocab_size": VOCABULARY,
    "embedding_size": VOCABULARY, "max_sequence_length": 160, "eos_token_id": EOS, "pad_token_id": EOS,
    "mask_token_id": MASK,
}  # fmt: skip
# Seven layers in bands of two: the last band is short.
DREAM = {
    **DREAM_TINY,
    "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 7, "vocab_size": VOCABULARY, "max_position_embeddings": 160, "bos_token_id": EOS,
    "eos_token_id": EOS, "pad_token_id": EOS, "mask_token_id": MASK,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {"llada": LLADA, "dream": DREAM}
CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,;:"
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% if not loop.last %};{% endif %}{% endfor %}:"


def open_requests(
    engine: Engine, prompts: list[Any], params: Any, cache_mode: Any = None, cache_salt: str = "", canvas: Any = None,
    *, shared_prefix: int = 0, targets: Any = None, **own: Any,
) -> list[Request]:  # fmt: skip
    """Requests as `Engine.generate` makes them, not queued; `targets` for each, and fields of their specs in `own`."""
    options = RequestOptions(cache_mode=cache_mode, cache_salt=cache_salt, canvas=canvas, shared_prefix=shared_prefix)
    inputs = inputs_of(prompts, params, engine.default_sampling_params, **options)
    if targets is not None:
        inputs = [replace(given, targets=pairs) for given, pairs in zip(inputs, targets, strict=True)]
    return engine.core.open([replace(spec, **own) for spec in engine.core.intake.specs(inputs)])


def state_of(name: str) -> dict[str, Any]:
    """Weights of a model: sharp attention and a sharp head, so that answers vary and some tokens are near certain."""
    state = random_state_dict(CONFIGS[name], seed=7)
    for weight in state:
        if "q_proj" in weight or weight in ("model.transformer.ff_out.weight", "lm_head.weight"):
            state[weight] = state[weight] * 4
        elif "wte" in weight or "embed_tokens" in weight:
            state[weight] = state[weight] / 4
    return state


def write_model(folder: Path, name: str, shards: int = 2) -> Path:
    """A model folder: weights, and a tokenizer with one token for each character."""
    write_folder(folder, CONFIGS[name], state_of(name), shards=shards)
    return write_tokenizer(folder)


def write_tokenizer(folder: Path, characters: Sequence[str] = CHARACTERS) -> Path:
    """The tokenizer's files: token `<mask>` is MASK, `<eos>` EOS, and one for each of the characters."""
    words = ["<unk>", "<pad>", "<bos>", "<eos>", *characters]
    assert len(words) <= MASK
    words += [f"<s{i}>" for i in range(len(words), MASK)] + ["<mask>"]
    backend = Backend(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([word for word in words if word.startswith("<")])
    backend.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def write_profile(path: Path, num_layers: int, table: list[list[float]], refresh_interval: int | None = None) -> str:
    """A depth profile; returns its path for `depth_profile=`."""
    rows = tuple((float(ratio), int(depth)) for ratio, depth in table)
    DepthProfile(num_layers=num_layers, table=rows, refresh_interval=refresh_interval).save(path)
    return str(path)


def make_engine(folder: Path, **options: Any) -> Engine:
    """An engine that checks its pages after every step; `executor` builds another one than the CPU's."""
    defaults: dict[str, Any] = {
        "page_size": 4, "reuse_margin": 0, "layers_per_band": 2, "kv_cache_tokens": 1024, "block_length": 8, "depth": 4,
        "check_invariants": True, "device": "cpu",
    }  # fmt: skip
    if "depth_profile" in options:
        defaults.pop("depth")
    executor: BuildExecutor | None = options.pop("executor", None)
    config = EngineConfig.build(model_path=str(folder), **{**defaults, **options})
    return Engine(config=config) if executor is None else engine_with(config, executor)


def engine_with(config: EngineConfig, executor: BuildExecutor) -> Engine:
    """An engine with another executor than its device's."""
    return Engine(config=config, parts=build_parts(config, worker=build_worker(config, build_executor=executor)))


def worker_of(engine: Engine | LocalService) -> Any:
    """The worker that the engine's scheduler has: for tests that replace its methods, or ask what its device has."""
    return engine.core.parts.worker


def by_hand(engine: Engine) -> Scheduler:
    """The scheduler, for the caller to add to and to step: the engine's thread sees work that has a listener."""
    loop, scheduler = engine.core.loop, engine.core.parts.scheduler

    class ByHand(Scheduler):
        @property
        def has_work(self) -> bool:
            return super().has_work and (threading.current_thread() is not loop.thread or bool(loop._listeners))

    scheduler.__class__ = ByHand
    return scheduler


def run_preempted(scheduler: Scheduler, request: Request) -> None:
    """Run a request to its end, alone, and take its memory back after three steps."""
    scheduler.add(request)
    for _ in range(3):
        scheduler.step()
    scheduler._preempt(request)
    while scheduler.has_work:
        scheduler.step()


def tokens(count: int, seed: int = 0) -> list[int]:
    """Random ordinary tokens (no special ones)."""
    low = 4
    return [int(token) for token in np.random.default_rng(seed).integers(low, low + len(CHARACTERS), count)]


def free_pages(engine: Engine) -> tuple[int, int]:
    """Free (KV, boundary) pages."""
    memory = engine.core.parts.scheduler.memory
    return memory.kv.num_free, memory.boundary.num_free


def all_pages(engine: Engine) -> tuple[int, int]:
    """All (KV, boundary) pages."""
    memory = engine.core.parts.scheduler.memory
    return memory.kv.num_pages, memory.boundary.num_pages


def assert_nothing_lost(engine: Engine) -> None:
    """The accounting is right, and without the cache every page of both pools is free."""
    engine.check()
    assert worker_of(engine).num_requests == 0
    engine.flush_cache()
    engine.check()
    assert free_pages(engine) == all_pages(engine)
