"""The skinny linear kernels through the compiler for sm_90, in processes of their own; see `test_triton.py`."""

from __future__ import annotations

import json

import pytest

from .test_triton import HERE, ROOT, SHARED_MEMORY, needs_triton, run


@needs_triton
@pytest.mark.parametrize(
    "group", ["skinny-form", *(pytest.param(f"skinny-{name}", marks=pytest.mark.slow) for name in ("bf16", "fp32"))]
)
def test_skinny_kernels_compile_for_sm_90(group, tmp_path):
    output = run([str(HERE / "compile_skinny_linear.py"), group], TRITON_CACHE_DIR=str(tmp_path), PYTHONPATH=str(ROOT))
    lines = [json.loads(line) for line in output.splitlines()]
    assert {line["kernel"] for line in lines} == {"_skinny_kernel"}
    size = 4 if "fp32" in group else 2
    for line in lines:
        assert line["shared"] < SHARED_MEMORY, line
        # stages lie side by side in shared memory only where copies run ahead of the products
        constants = line["constants"]
        width = constants["BLOCK_COLUMNS"] + constants["MORE_COLUMNS"]
        rows = constants["BLOCK_ROWS"] + width * (1 + constants["GATED"])
        assert line["shared"] >= rows * constants["BLOCK_INNER"] * size * (constants["num_stages"] - 1), line
