"""Runs the checks of the Triton kernels in the interpreter, and on a GPU where there is one; which backend runs."""

from __future__ import annotations

from importlib.metadata import version

import pytest
import torch

from .running import HERE, ROOT, needs_triton, run, run_checks

CHECKS = sorted(path.name for path in HERE.glob("check_*.py"))
FOR_GPUS = {"check_hopper.py"}
"""Written in Gluon, which has no interpreter."""


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
