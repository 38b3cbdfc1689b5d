"""Every kernel compiles for GPUs that are not here, and within their limits."""

from __future__ import annotations

import json

import pytest

from shoal.kernels.attention.tiling import AttentionTiling

from .running import HERE, ROOT, needs_triton, run

SHARED_MEMORY = 227 * 1024
"""What one block may use on sm_90."""


@needs_triton
@pytest.mark.parametrize("group", ["bf16", pytest.param("fp32", marks=pytest.mark.slow)])
def test_every_kernel_compiles_for_sm_90(group, tmp_path):
    output = run(
        [str(HERE / "compile_kernels.py"), "sm_90", group], TRITON_CACHE_DIR=str(tmp_path), PYTHONPATH=str(ROOT)
    )
    lines = [json.loads(line) for line in output.splitlines()]
    kernels = {line["kernel"] for line in lines}
    assert kernels == {
        "_attention_kernel", "_merge_kernel", "_rope_write_kernel", "_rms_norm_kernel", "_swiglu_kernel",
        "_scan_kernel", "_finish_kernel", "_shared_attention_kernel", "_masked_rows_kernel", "_commit_kernel",
        "_embed_kernel", "_cutoff_kernel", "_router_kernel", "_route_kernel", "_place_kernel", "_gate_up_kernel",
        "_down_kernel", "_combine_kernel", "_add_norm_quantize_kernel", "_swiglu_quantize_kernel",
        *(["_hopper_kernel"] if group == "bf16" else []),
    }  # fmt: skip
    for line in lines:
        assert line["shared"] < SHARED_MEMORY, line
        assert line["stack"] <= 64 or group == "fp32", line
    for line in lines:
        if line["kernel"] == "_attention_kernel":
            constants = line["constants"]
            tiling = AttentionTiling(
                *(constants[name] for name in ("BLOCK_ROWS", "BLOCK_KEYS", "num_warps", "num_stages"))
            )
            expected = tiling.shared_memory(constants["HEAD_DIM"], 2 if group == "bf16" else 4)
            assert line["shared"] <= expected + 2048, line
            assert group == "fp32" or line["shared"] > expected // 2, line
    attention = [line["constants"] for line in lines if line["kernel"] == "_attention_kernel"]
    assert {constants["NUM_SPLITS"] > 1 for constants in attention} == {False, True}
    assert {constants["GROUP"] for constants in attention} == {1, 7}
    assert {constants["HEAD_DIM"] for constants in attention} == {64, 128, 256}


@needs_triton
@pytest.mark.parametrize(("architecture", "kib"), [pytest.param("sm_80", 163, marks=pytest.mark.slow), ("sm_89", 99)])
def test_attention_compiles_for_gpus_with_less_shared_memory(architecture, kib, tmp_path):
    """All other kernels take a few KiB."""
    command = [str(HERE / "compile_kernels.py"), architecture, "bf16-64-a", "bf16-128-a", "bf16-128-s", "bf16-256"]
    lines = [
        json.loads(line) for line in run(command, TRITON_CACHE_DIR=str(tmp_path), PYTHONPATH=str(ROOT)).splitlines()
    ]
    assert {line["kernel"] for line in lines} == {"_attention_kernel", "_merge_kernel", "_shared_attention_kernel"}
    for line in lines:
        head_dim = line["constants"].get("HEAD_DIM", 0)
        assert line["shared"] <= kib << 10, line
        assert line["stack"] <= 64 or head_dim == 256, line
        assert not line["constants"].get("BULK"), line
