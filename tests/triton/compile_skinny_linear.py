"""Compile the skinny linear kernel for sm_90 in every form that is chosen for LLaDA-8B and Dream-7B, and some others.

Prints the lines of `compile_kernels.py`; arguments choose cases by prefix.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch

from shoal.kernels.skinny_linear_triton import skinny_linear_triton, skinny_swiglu_triton
from shoal.kernels.skinny_tiling import SkinnyTiling, default_tiling
from tests.triton.compile_kernels import DTYPES, case, main

MODELS = {"llada": (4096, 12288, 12288), "dream": (3584, 4608, 18944)}
"""Hidden size, width of q, k and v together, width of the gated unit."""


def linear(dtype: torch.dtype, rows: int, columns: int, inner: int, added: bool, tiling: SkinnyTiling | None) -> None:
    x, weight = torch.empty((rows, inner), dtype=dtype), torch.empty((columns, inner), dtype=dtype)
    residual = torch.empty((rows, columns), dtype=dtype) if added else None
    skinny_linear_triton(x, weight, weight[:, 0].clone(), residual, residual, tiling=tiling)


def gated(dtype: torch.dtype, rows: int, columns: int, inner: int, tiling: SkinnyTiling | None) -> None:
    skinny_swiglu_triton(
        torch.empty((rows, inner), dtype=dtype), torch.empty((2 * columns, inner), dtype=dtype), tiling=tiling
    )


for _name, _dtype in DTYPES.items():
    for _rows in (32, 33, 128):
        for _model, (_hidden, _qkv, _ff) in MODELS.items():
            _at = f"skinny-{_name}-{_rows}-{_model}"
            case(f"{_at}-qkv", linear, _dtype, _rows, _qkv, _hidden, False, None)
            case(f"{_at}-out", linear, _dtype, _rows, _hidden, _hidden, True, None)
            case(f"{_at}-gate-up", gated, _dtype, _rows, _ff, _hidden, None)
            case(f"{_at}-down", linear, _dtype, _rows, _hidden, _ff, True, None)
_tiling = default_tiling(32, 12288, 4096, torch.bfloat16)
for _form, _other in {
    "early": replace(_tiling, early_tiles=2), "pointers": replace(_tiling, bulk=False),
    "splits": replace(_tiling, splits=4), "one-width": SkinnyTiling(128, splits=2),
}.items():  # fmt: skip
    case(f"skinny-form-{_form}", linear, torch.bfloat16, 32, 12288, 4096, True, _other)
    case(
        f"skinny-form-{_form}-gated",
        gated,
        torch.bfloat16,
        32,
        12288,
        4096,
        replace(_other, block_columns=64, num_stages=4),
    )


if __name__ == "__main__":
    main(sys.argv[1:] or ["skinny"])
