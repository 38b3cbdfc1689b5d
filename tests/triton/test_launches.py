"""What serving launches, against what the warm-up has compiled."""

from __future__ import annotations

import json

import pytest

from .running import HERE, ROOT, needs_triton, run


@needs_triton
@pytest.mark.parametrize("model", [
    "32 32 128 32 32 64 llada hopper 0", "28 4 128 48 32 16 dream portable 1", "4 4 64 100 16 64 llada portable 2",
    "16 8 128 8 32 64 a2d-qwen3 hopper 3", "16 16 128 9 32 64 llada-moe hopper 4",
    "28 4 128 9 32 64 dream+fp8 hopper 5",
])  # fmt: skip
def test_serving_launches_no_kernel_that_the_warm_up_has_not_compiled(model):
    """Nor does it look at the device's memory, between plan and read-back, or mix devices."""
    script = str(HERE / "launches.py")
    found = json.loads(run([script, *model.split()], PYTHONPATH=str(ROOT)).splitlines()[-1])
    assert found["errors"] == found["late"] == [], found
    assert 20 < found["served"] <= found["compiled"], found
