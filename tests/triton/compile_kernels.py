"""Compile every Triton kernel for a GPU as its launch function would launch it; no GPU is needed.

A driver that only names its target takes the place of CUDA's, and every launch stops after compilation. So types,
strides, tile sizes, warps and stages are those of real launches. Prints one JSON line a kernel compiled:
{"case", "kernel", "shared", "warps", "registers", "stack", "constants"}. Run it with TRITON_INTERPRET unset.
Arguments: sm_80 (an A100), sm_89 (an L40S, an RTX 4090) or sm_90, then prefixes that choose cases.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from triton.runtime.jit import JITFunction

import shoal.kernels.attention.shared_triton
import shoal.kernels.attention.triton
from shoal.kernels.attention.batch import AttentionBatch
from shoal.kernels.attention.groups import SharedGroups
from shoal.kernels.attention.hopper_triton import attention_hopper
from shoal.kernels.attention.shared_triton import shared_attention_triton
from shoal.kernels.attention.tiling import SM_90_SHARED_MEMORY
from shoal.kernels.attention.triton import attention_triton
from shoal.kernels.compile_triton import TargetOnly
from shoal.kernels.layers.embed_triton import embed_triton
from shoal.kernels.layers.experts_triton import expert_mlp_triton
from shoal.kernels.layers.fp8 import FP8, Scales
from shoal.kernels.layers.fp8_triton import add_norm_quantize_triton, swiglu_quantize_triton
from shoal.kernels.layers.head_norm import HeadNorm
from shoal.kernels.layers.kv_write_triton import rope_write_kv_triton
from shoal.kernels.layers.rms_norm_triton import rms_norm_triton
from shoal.kernels.layers.row_norm import RowNorm
from shoal.kernels.layers.swiglu_triton import swiglu_triton
from shoal.kernels.sampling.canvas_state import CanvasState
from shoal.kernels.sampling.commit_triton import commit_triton
from shoal.kernels.sampling.confidence_triton import block_confidence_triton, confidence_triton
from shoal.kernels.sampling.cutoffs_triton import cutoffs_triton
from shoal.kernels.sampling.masked_rows_triton import masked_rows_triton

ARCHITECTURES = {"sm_80": 163 << 10, "sm_89": 99 << 10, "sm_90": SM_90_SHARED_MEMORY}
"""Bytes of shared memory that a program can have there."""
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
CASES: dict[str, Callable[[], object]] = {}


def case(name: str, function: Callable[..., object], *args: Any) -> None:
    CASES[name] = lambda: function(*args)


def batch_of(requests: int, max_pages: int) -> AttentionBatch:
    tables = torch.zeros((requests, 8, max_pages), dtype=torch.int32)
    return AttentionBatch.build(tables, [0] * requests, [0] * requests, [0] * requests)


def attention(
    dtype: torch.dtype, head_dim: int, heads: int, kv_heads: int, tokens: int, page_size: int, fresh: bool = False,
    requests: int = 2, pages: torch.dtype | None = None,
) -> None:  # fmt: skip
    max_pages = 4096 // page_size
    pool = torch.empty((max_pages, 4, 2, page_size, kv_heads, head_dim), dtype=pages or dtype)
    qkv = torch.empty((tokens, heads + 2 * kv_heads, head_dim), dtype=dtype)
    q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
    splits, fresh_kv = 8 if tokens <= 64 else 1, (k, v) if fresh else None
    attention_triton(q, pool[:, 1], 1, batch_of(requests, max_pages), num_splits=splits, fresh_kv=fresh_kv)


def kv_write(
    dtype: torch.dtype, head_dim: int, heads: int, kv_heads: int, tokens: int, norm: bool = False, bias: bool = False,
    per_head: bool = False, scaled: bool = False, pages: torch.dtype | None = None,
) -> None:  # fmt: skip
    qkv = torch.empty((tokens, heads + 2 * kv_heads, head_dim), dtype=dtype)
    table = torch.empty((4096, head_dim // 2))
    at = torch.zeros(tokens, dtype=torch.int32)
    pool = torch.empty((8, 4, 2, 16, kv_heads, head_dim), dtype=pages or dtype)
    q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
    k_out = k if tokens > 1000 else None
    put_off = RowNorm(torch.empty((tokens, 3584), dtype=dtype), 1e-5) if norm else None
    vector = torch.empty(qkv.shape[1:], dtype=dtype) if bias else None
    weight = torch.empty(head_dim, dtype=dtype)
    scales = Scales(torch.empty((tokens, 1)), torch.empty((1, qkv[0].numel()))) if scaled else None
    rope_write_kv_triton(
        q, k, v, table, table, at, at, batch_of(2, 256), 1, pool[:, 1], k_out=k_out, norm=put_off, bias=vector,
        head_norm=HeadNorm(weight, weight, 1e-6) if per_head else None, scales=scales,
    )  # fmt: skip


def shared(
    dtype: torch.dtype, head_dim: int, heads: int, kv_heads: int, page_size: int, pages: torch.dtype | None = None
) -> None:
    pool = torch.empty((256, 4, 2, page_size, kv_heads, head_dim), dtype=pages or dtype)
    groups = SharedGroups.empty(8, 2, 64, heads, kv_heads, "cpu")
    q = torch.empty((64, heads, head_dim), dtype=dtype)
    shared_attention_triton(q, pool[:, 1], 1, batch_of(2, 256), groups, num_splits=2)


def block_step(dtype: torch.dtype, requests: int, draw: bool, width: int = 32) -> None:
    state, batch = CanvasState.empty(64, 4608, width, 4, "cpu", 126464), batch_of(requests, 256)
    masked = masked_rows_triton(state, batch, torch.zeros(requests, dtype=torch.int32), 32 * requests, 1)
    logits = torch.empty((32 * requests, 126464), dtype=dtype)
    cut = cutoffs_triton(logits, state, masked, impossible_token=126336) if width > 32 else None
    confidence = block_confidence_triton(logits, state, masked, impossible_token=126336, draw=draw, cut=cut)
    commit_triton(state, batch, masked, confidence, 126464)


def experts(dtype: torch.dtype, tokens: int) -> None:
    x, router = torch.empty((tokens, 2048), dtype=dtype), torch.empty((64, 2048))
    weights = torch.empty((64, 2048, 2048), dtype=dtype), torch.empty((64, 2048, 1024), dtype=dtype)
    expert_mlp_triton(x, x, router, *weights, 8)


def fp8(dtype: torch.dtype, hidden: int, wide: int) -> None:
    x, gate_up = torch.empty((32, hidden), dtype=dtype), torch.empty((32, 2 * wide), dtype=dtype)
    rows, columns, weight = torch.empty((32, 1)), torch.empty((2 * wide, 1)).t(), torch.empty(hidden, dtype=dtype)
    add_norm_quantize_triton(x, x.clone(), Scales(rows, columns[:, :hidden]), weight, 1e-5)
    swiglu_quantize_triton(gate_up, Scales(rows, columns))


def hopper(
    dtype: torch.dtype, head_dim: int, heads: int, kv_heads: int, page_size: int, fresh: bool,
    pages: torch.dtype | None = None,
) -> None:  # fmt: skip
    pool = torch.empty((64, 4, 2, page_size, kv_heads, head_dim), dtype=pages or dtype)
    qkv = torch.empty((4512, heads + 2 * kv_heads, head_dim), dtype=dtype)
    q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
    attention_hopper(q, pool[:, 1], 1, batch_of(2, 4096 // page_size), fresh_kv=(k, v) if fresh else None,
                     fresh_only=pages is not None)  # fmt: skip


def embed(dtype: torch.dtype) -> None:
    at = torch.zeros(32, dtype=torch.int32)
    embed_triton(torch.empty((1000, 3584), dtype=dtype), torch.zeros((4, 4608), dtype=torch.int32), at[:1], at, at)


for _name, _dtype in DTYPES.items():
    for _dim in (64, 128):
        _at = f"{_name}-{_dim}"
        case(f"{_at}-attention-fresh-gqa", attention, _dtype, _dim, 28, 4, 4512, 16, True)
        case(f"{_at}-attention-step-mha", attention, _dtype, _dim, 32, 32, 64, 16)
        case(f"{_at}-shared-gqa", shared, _dtype, _dim, 28, 4, 64)
        case(f"{_at}-kv-write", kv_write, _dtype, _dim, 28, 4, 32)
        if _dim == 64:
            continue
        case(f"{_at}-attention-long-mha", attention, _dtype, _dim, 32, 32, 4512, 64)
        case(f"{_at}-attention-step-bulk", attention, _dtype, _dim, 32, 32, 64, 64)
        case(f"{_at}-attention-step-gqa", attention, _dtype, _dim, 28, 4, 64, 16)
        case(f"{_at}-attention-step-one", attention, _dtype, _dim, 32, 32, 32, 64, False, 1)
        case(f"{_at}-shared-mha", shared, _dtype, _dim, 32, 32, 16)
        case(f"{_at}-kv-write-long", kv_write, _dtype, _dim, 32, 32, 5000)
        case(f"{_at}-kv-write-norm", kv_write, _dtype, _dim, 28, 4, 32, True, True)
        case(f"{_at}-kv-write-heads", kv_write, _dtype, _dim, 16, 8, 32, True, False, True)
        case(f"{_at}-kv-write-scales", kv_write, _dtype, _dim, 28, 4, 32, False, True, False, True)
        case(f"{_at}-kv-write-heads-long", kv_write, _dtype, _dim, 16, 8, 5000, False, False, True)
    for _requests, _tokens in ((1, 32), (2, 600), (2, 4512)):
        case(f"{_name}-256-attention-{_tokens}", attention, _dtype, 256, 16, 16, _tokens, 64, _tokens > 4000, _requests)
    case(f"{_name}-256-shared", shared, _dtype, 256, 16, 16, 64)
    if _name == "bf16":
        for _size, _tokens in ((16, 64), (64, 64), (64, 4512)):
            case(f"bf16-kv8-attention-{_size}-{_tokens}", attention, _dtype, 128, 32, 32, _tokens, _size, False, 2, FP8)
        case("bf16-kv8-shared", shared, _dtype, 128, 32, 32, 64, FP8)
        case("bf16-kv8-write", kv_write, _dtype, 128, 32, 32, 32, False, False, False, False, FP8)
        case("bf16-hopper-mha", hopper, _dtype, 128, 32, 32, 16, True)
        case("bf16-hopper-gqa", hopper, _dtype, 64, 28, 4, 64, False)
        case("bf16-kv8-hopper", hopper, _dtype, 128, 32, 32, 64, True, FP8)
    _x, _weight = torch.empty((41, 3584), dtype=_dtype), torch.empty(3584, dtype=_dtype)
    case(f"{_name}-rms-norm", rms_norm_triton, _x, _weight, 1e-5)
    _wide = torch.empty((41, 2 * 12288), dtype=_dtype)
    case(f"{_name}-swiglu", swiglu_triton, _wide)
    case(f"{_name}-swiglu-norm", swiglu_triton, _wide, RowNorm(_x, 1e-5))
    case(f"{_name}-embed", embed, _dtype)
    case(f"{_name}-fp8", fp8, _dtype, 4096, 12288)
    for _tokens in (32, 200, 400, 4096):
        case(f"{_name}-experts-{_tokens}", experts, _dtype, _tokens)
    case(f"{_name}-block-step", block_step, _dtype, 32, False)
    case(f"{_name}-block-step-draw", block_step, _dtype, 1, True)
    case(f"{_name}-block-step-shaped", block_step, _dtype, 32, True, 512)
    for _rows in (1, 41):
        case(f"{_name}-confidence-{_rows}", confidence_triton, torch.empty((_rows, 126464), dtype=_dtype))


def resources(binary: bytes) -> dict[str, int]:
    """Registers a thread and bytes of its stack (spilled registers stand there), as the binary says."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        text = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", text.stdout)}
    return {"registers": found["REG"], "stack": found["STACK"]}


def main(architecture: str, prefixes: list[str]) -> None:
    arch = int(architecture.removeprefix("sm_"))
    triton.runtime.driver.set_active(TargetOnly(arch))
    for module in (shoal.kernels.attention.triton, shoal.kernels.attention.shared_triton):
        module.shared_memory = lambda _: ARCHITECTURES[architecture]  # type: ignore[attr-defined]
    launch = JITFunction.run
    compiled: list[Any] = []

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        compiled.append((self, launch(self, *args, grid=grid, warmup=True, **kwargs), kwargs))

    JITFunction.run = compile_only
    for name, launch_case in CASES.items():
        if not prefixes or name.startswith(tuple(prefixes)):
            compiled.clear()
            launch_case()
            for function, kernel, constants in compiled:
                assert kernel.asm["cubin"], name
                assert kernel.metadata.target.arch == arch, kernel.metadata.target
                line = {"case": name, "kernel": function.__name__, "shared": kernel.metadata.shared}
                line |= {"warps": kernel.metadata.num_warps, **resources(kernel.asm["cubin"]), "constants": constants}
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
