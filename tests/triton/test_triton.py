"""Runs the checks of the Triton kernels: in the interpreter, on a GPU where there is one, and through the compiler.

Each runs in a process of its own, for Triton decides when it is imported whether to interpret, and the rest of the
suite must neither see that variable nor have imported Triton the other way.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from shoal.kernels.attention.tiling import AttentionTiling

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CHECKS = sorted(path.name for path in HERE.glob("check_*.py"))
FOR_GPUS = {"check_hopper.py"}
"""Written in Gluon, which has no interpreter."""
SHARED_MEMORY = 227 * 1024
"""What one block may use on sm_90."""

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def run(arguments: list[str], **variables: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTEST_ADDOPTS", "TRITON_INTERPRET")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"} | variables
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, f"{done.stdout[-20000:]}\n{done.stderr[-5000:]}"
    return done.stdout


def run_checks(name: str, **variables: str) -> None:
    options = ["-p", "no:cacheprovider", "-W", "ignore::RuntimeWarning"]
    output = run(["-m", "pytest", *options, str(HERE / name)], **variables)
    tests = len(re.findall(r"^def test_", (HERE / name).read_text(), re.MULTILINE))
    summary = output.strip().splitlines()[-1]
    passed = re.match(r"(\d+) passed", summary)
    assert passed, summary
    assert int(passed[1]) >= tests, summary
    assert "skipped" not in summary


@needs_triton
@pytest.mark.parametrize("name", [name for name in CHECKS if name not in FOR_GPUS])
def test_kernels_in_the_interpreter(name):
    release = tuple(int(part) for part in version("triton").split(".")[:2])
    if release < (3, 7):
        pytest.skip("the interpreter of Triton before 3.7 fails with NumPy 2.4")
    run_checks(name, TRITON_INTERPRET="1", SHOAL_TEST_DEVICE="cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", CHECKS)
def test_kernels_on_a_gpu(name):
    run_checks(name, SHOAL_TEST_DEVICE="cuda", CUBLAS_WORKSPACE_CONFIG=":4096:8")


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
        "_embed_kernel", "_cutoff_kernel", "_router_kernel", "_route_kernel", "_sort_kernel", "_gate_up_kernel",
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


def test_only_triton_files_import_triton():
    """The references, and the choice of a backend, work where Triton is missing."""
    paths = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "kernels").rglob("*.py")]
    names = {".".join(path.parts) for path in paths if not path.stem.endswith("triton") and path.stem != "__init__"}
    assert "kernels.dispatch" in names
    lines = [f"import shoal.{name}" for name in sorted(names)]
    code = "\n".join(["import sys, torch", *lines, "from shoal.kernels.layers.swiglu import swiglu",
                      "swiglu(torch.ones(1, 4))", "assert 'triton' not in sys.modules"])  # fmt: skip
    run(["-c", code])


@needs_triton
def test_both_implementations_of_a_kernel_take_the_same_arguments():
    """The Triton one may have further optional ones."""
    code = """if True:
        import importlib, inspect, pathlib
        from shoal.kernels.dispatch import Kernel
        def arguments(function):
            found = inspect.signature(function).parameters.values()
            return [(p.name, p.kind, p.default is p.empty) for p in found]
        for path in sorted(pathlib.Path("kernels").rglob("*/*.py")):
            if path.stem.endswith("triton"):
                continue
            module = importlib.import_module("shoal." + ".".join(path.with_suffix("").parts))
            for kernel in vars(module).values():
                if isinstance(kernel, Kernel) and kernel.__module__ == module.__name__:
                    contract, triton = arguments(kernel.reference), arguments(kernel.triton)
                    by_place = [a for a in contract if a[1] != inspect.Parameter.KEYWORD_ONLY]
                    assert triton[:len(by_place)] == by_place and set(contract) <= set(triton), kernel.__name__
                    assert not any(required for *_, required in set(triton) - set(contract)), kernel.__name__
                    print(kernel.__name__)
    """
    names = {
        "attention", "shared_attention", "add_norm_quantize", "swiglu_quantize", "embed", "expert_mlp", "rms_norm",
        "rope_write_kv", "swiglu",
        "block_confidence", "commit", "confidence", "cutoffs", "masked_rows",
    }  # fmt: skip
    assert set(run(["-c", code]).split()) == names


@pytest.mark.parametrize(("value", "expected"), [(None, "auto"), ("reference", "reference"), ("triton", "triton")])
def test_the_environment_chooses_the_backend(value, expected):
    variables = {} if value is None else {"SHOAL_KERNELS": value}
    assert run(["-c", "from shoal.kernels import dispatch; print(dispatch.backend())"], **variables).strip() == expected


def test_triton_on_the_cpu_is_refused_outside_the_interpreter(monkeypatch):
    from shoal.kernels import dispatch
    from shoal.kernels.layers.swiglu import swiglu

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    dispatch.set_backend("triton")
    try:
        with pytest.raises(RuntimeError, match="needs CUDA tensors, not cpu"):
            swiglu(torch.ones(1, 4))
    finally:
        dispatch.set_backend(None)


def test_an_unknown_backend_is_refused():
    from shoal.kernels import dispatch

    with pytest.raises(ValueError, match="choose from auto, reference, triton"):
        dispatch.set_backend("cutlass")
