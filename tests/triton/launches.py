"""Which kernels a GPU's worker launches while it serves that its warm-up did not compile; no GPU is needed.

Everything lives on torch's `meta` device, so that only launches cost anything; each ends where Triton would compile.
What must not happen between a forward's plan and its read-back (a look at device memory, a mixture of devices) raises
there. Graphs are not captured: the body is run where it would be, and a replay does nothing.

Prints a line of JSON: {"compiled": number, "served": number, "late": [...], "errors": [...], "seed": number}.
Arguments: heads, kv heads, head dimension, most requests, block, page size, a family (`+fp8`: quantised), `hopper` or
`portable`, and a seed, if it should not be a random one.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor
from torch.nn import functional as F
from triton.runtime.jit import JITFunction

from shoal.kernels import dispatch
from shoal.kernels.attention import gpu
from shoal.kernels.attention.groups import SharedGroups
from shoal.kernels.compile_triton import TargetOnly
from shoal.radix_cache.config import TreeConfig
from shoal.runtime.config import EngineConfig
from shoal.runtime.model import loader
from shoal.runtime.model.config import ModelConfig
from shoal.runtime.request.facts import Facts
from shoal.runtime.request.forward import AddRequest, Forward, ForwardItem, Release
from shoal.runtime.request.sampling_params import SamplingParams
from shoal.runtime.worker.gpu.build import build_cuda_executor
from shoal.runtime.worker.gpu.executor import CudaExecutor
from shoal.runtime.worker.gpu.fp8_linear import quantize_layer
from shoal.runtime.worker.gpu.graphs import ForwardGraphs
from shoal.runtime.worker.gpu.sampler import BlockSampler
from shoal.runtime.worker.gpu.slots import CanvasSlots
from shoal.runtime.worker.pools import BoundaryPool, KVPool
from shoal.runtime.worker.worker import Worker

LAYERS, POSITIONS, MOST_TOKENS, FORWARDS = 2, 4096, 16384, 300
KINDS = ("step", "canvas", "whole", "prefix", "score", "final")


def record_compilations() -> tuple[set[Any], set[Any], list[str]]:
    """Sets of the kernels that were compiled and launched, and their descriptions in the order of compilation."""
    compiled: set[Any] = set()
    launched: set[Any] = set()
    described: list[str] = []
    launch = JITFunction.run

    def compile_nothing(self: Any, key: Any, signature: Any, device: int, constexprs: Any, *_: Any) -> object:
        name = self.fn.__name__
        compiled.add((name, key))
        shown = {self.arg_names[at[0]]: value for at, value in constexprs.items() if len(at) == 1}
        described.append(f"{name} {shown}")
        self.device_caches[device][0][key] = (name, key)
        return name, key

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launched.add(launch(self, *args, grid=grid, warmup=True, **kwargs))

    JITFunction._do_compile = compile_nothing
    JITFunction.run = run
    return compiled, launched, described


def pretend(hopper: bool) -> None:
    """What stands in for a GPU: graphs, read-backs, and whether the kernel for Hopper GPUs is there."""

    def captured(_: Any, run: Callable[[], Any]) -> tuple[Any, Any]:
        return SimpleNamespace(replay=lambda: None), run()

    def read_nothing(self: CanvasSlots, slots: Tensor, width: int) -> Tensor:
        read(self, slots, width)
        return F.pad(torch.full((len(slots), width), -1), (0, 1))  # masks, and no commit: a count of -1 is a failure

    def score_nothing(self: BlockSampler, hidden: Tensor, rows: Any, _: Any) -> list[float]:
        self._layers.logits(hidden.index_select(0, torch.from_numpy(rows).to(hidden.device)))
        return [0.0] * len(rows)

    def hopper_fits(q: Tensor, pages: Tensor, _: Any, fresh_only: bool) -> bool:
        return hopper and q.shape[2] in (64, 128) and pages.shape[2] >= 8 and (fresh_only or q.dtype == pages.dtype)

    def empty(dtype: torch.dtype, device: torch.device, _: int) -> Callable[..., Tensor]:
        return lambda name, shape, part: torch.empty(shape, dtype=dtype, device=device)

    read = CanvasSlots.read
    for owner, name, stand_in in (
        (ForwardGraphs, "_captured", captured), (CanvasSlots, "read", read_nothing),
        (BlockSampler, "scores", score_nothing), (SharedGroups, "load", lambda *_: None),
        (dispatch, "uses_triton", lambda _: True), (gpu, "_hopper_fits", hopper_fits),
        (loader, "_dummy_reader", empty),
    ):  # fmt: skip
        setattr(owner, name, stand_in)


def make_worker(heads: int, kv_heads: int, head_dim: int, most: int, block: int, page_size: int, family: str) -> Worker:
    """A worker as `build_worker` makes it on a GPU, warmed up."""
    family, _, quantization = family.partition("+")
    experts = family == "llada-moe"
    model = ModelConfig(
        architecture=family, num_layers=LAYERS, hidden_size=heads * head_dim, num_heads=heads, num_kv_heads=kv_heads,
        head_dim=head_dim, intermediate_size=1024 if experts else 12288, vocab_size=126464, embedding_size=126464,
        max_position_embeddings=POSITIONS, rope_theta=1e6, rms_norm_eps=1e-5, qkv_bias=family == "dream",
        tie_word_embeddings=False, shift_logits=family == "dream", mask_token_id=60, eos_token_id=3, pad_token_id=3,
        qk_norm=family == "a2d-qwen3" or experts, num_experts=64 * experts, experts_per_token=8 * experts,
    )  # fmt: skip
    dtype = torch.bfloat16
    decoder = loader.load_model(model, dtype=dtype, device="meta", load_format="dummy",
                                finish_layer=quantize_layer if quantization else None)  # fmt: skip
    pages = most * POSITIONS // page_size
    kv = KVPool(model, pages * LAYERS, page_size, 1, dtype, decoder.device)
    boundary = BoundaryPool(model, pages, page_size, dtype, decoder.device)
    facts = Facts(
        folder="", model=model, block_length=block, tree=TreeConfig(page_size, LAYERS, 1), kv_pages=pages * LAYERS,
        boundary_pages=pages, depth_profile={}, device="cuda", dtype="bfloat16",
    )  # fmt: skip
    config = EngineConfig(
        max_running_requests=most, page_size=page_size, max_refresh_tokens=MOST_TOKENS,
        quantization="fp8" if quantization else None,
    )  # fmt: skip
    return Worker(build_cuda_executor(config.for_device("cuda"), decoder, kv, boundary, facts, capture=True))


def items_of(kind: str, rng: random.Random, count: int, block: int, page_size: int, shift: int) -> list[ForwardItem]:
    """A forward as the scheduler plans it, of requests with whole blocks."""
    items = []
    for index in range(count):
        canvas = block * rng.choice((1, 2, 8))
        prompt = rng.randint(2, rng.choice((20, 100, 600, POSITIONS - 8 * block)))
        rid, total, cut, stop = f"r{index}", prompt + canvas, (prompt - shift) // page_size * page_size, prompt + block
        if kind == "step":
            low = prompt - shift
            item = ForwardItem(rid, low, stop, total, prompt, stop, low)
        elif kind == "whole":
            captures = ((1, 0, np.zeros(cut // page_size, np.int32)),) if cut else ()
            item = ForwardItem(rid, 0, total, total, prompt, stop, 0, captures=captures)
        elif kind == "prefix" and cut:
            resume = np.zeros(cut // page_size, np.int32)
            item = ForwardItem(rid, cut, total, total, prompt, stop, 0, depth=1, resume=resume)
        elif kind == "score":
            targets = np.array([(prompt + at, 1) for at in range(rng.randint(1, min(4, canvas)))])
            item = ForwardItem(rid, cut, total, total, prompt, prompt, cut, targets=targets)
        elif kind == "final":
            item = ForwardItem(rid, cut, total, total, total, total, cut)
        else:
            item = ForwardItem(rid, cut, total, total, prompt, stop, cut)
        items.append(item)
    sizes = np.cumsum([item.stop - item.join for item in items])
    return items if kind == "step" else items[: max(1, int((sizes <= MOST_TOKENS).sum()))]


def serve(worker: Worker, rng: random.Random, block: int) -> list[str]:
    """Run forwards of all kinds and sizes, half of them with draws, some with cuts and penalties; errors."""
    errors: list[str] = []
    assert isinstance(worker.executor, CudaExecutor)
    slots, shift = worker.executor.runner.slots, int(worker.executor.decoder.config.shift_logits)
    for number in range(FORWARDS):
        kind = KINDS[number % len(KINDS)]
        count = min(slots.padding, rng.choice((1, 1, 2, 3, 4, 7, 8, 9, 12, 17, 33, 65, 128)))
        items = items_of(kind, rng, count, block, slots.page_size, shift)
        shared = kind == "step" and rng.random() < 0.5  # graphs of refreshes compile theirs when they are captured
        for index, item in enumerate(items):
            prompt = item.block_start if kind != "final" else item.keys - block
            canvas = item.keys - prompt
            shaped: dict[str, Any] = {"top_p": 0.9, "presence_penalty": 1.0} if rng.random() < 0.2 else {}
            sampling = SamplingParams(max_new_tokens=canvas, temperature=0.5 * rng.randint(0, 1), **shaped)
            table = np.full((LAYERS, -(-item.keys // slots.page_size)), 0 if shared else index, np.int32)
            worker.add(
                AddRequest(
                    rid=item.rid, prompt=np.ones(prompt, np.int64), canvas_length=canvas, sampling=sampling, seed=0,
                    block_length=canvas, page_table=table,
                )
            )  # fmt: skip
        errors += filter(None, (result.error for result in worker.forward(Forward(tuple(items)))))
        worker.release(Release(tuple(item.rid for item in items)))
    return errors


def main(words: list[str]) -> None:
    heads, kv_heads, head_dim, most, block, page_size = map(int, words[:6])
    triton.runtime.driver.set_active(TargetOnly(90))
    compiled, launched, described = record_compilations()
    pretend(words[7] == "hopper")
    worker = make_worker(heads, kv_heads, head_dim, most, block, page_size, words[6])
    warm = len(described)
    launched.clear()
    seed = int(words[8]) if len(words) > 8 else random.randrange(1 << 30)
    errors = serve(worker, random.Random(seed), block)
    assert launched <= compiled
    print(json.dumps({"compiled": warm, "served": len(launched), "late": described[warm:], "errors": errors[:3],
                      "seed": seed}))  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
