"""Kernels that other processes compile while the weights are read: which, into what cache, and what goes wrong."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from shoal.runtime.config import EngineConfig
from shoal.runtime.model.registry import load_config
from shoal.runtime.worker.gpu import precompile

from ...triton.running import needs_triton
from ..tiny import write_model

CUDA = torch.device("cuda")


@needs_triton
@pytest.mark.parametrize("options", [{}, {"quantization": "fp8", "kv_cache_dtype": "fp8_e4m3"}])
def test_a_process_compiles_its_share_into_the_cache(options, tmp_path, monkeypatch):
    """For the GPU that it is told, which is not here."""
    folder = write_model(tmp_path / "model", "llada")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    config = EngineConfig(
        model_path=str(folder), device="cuda", kv_cache_bytes=1 << 30, max_running_requests=2, **options
    ).for_device("cuda")
    process = precompile.start(precompile.Job(config, (9, 0), 132, 227 << 10, 7, 25))
    out, _ = process.communicate(timeout=250)
    assert process.returncode == 0
    count = int(out.split()[-1])
    assert count >= 1
    made = [
        json.loads(path.read_text()) for path in (tmp_path / "cache").glob("*/*.json") if "__grp__" not in path.name
    ]
    assert len(made) == count
    assert {found["target"]["arch"] for found in made} == {90}


@needs_triton
@pytest.mark.parametrize("error", [None, AssertionError("no CUDA library"), AttributeError("launch")])
def test_a_launcher_is_made_where_it_can_be(error, monkeypatch):
    from triton.backends.nvidia import driver

    from shoal.kernels import compile_triton

    made = []

    def launcher(*args):
        made.append(args)
        if error is not None:
            raise error

    monkeypatch.setattr(driver, "CudaLauncher", launcher)
    compile_triton.make_launcher(SimpleNamespace(src="source", metadata="metadata"))
    assert made == [("source", "metadata")]


@pytest.mark.parametrize("options", [{"disable_cuda_graph": True}, {"tp_size": 2}, {}])
def test_nothing_is_compiled_ahead_where_it_gains_nothing(options, tmp_path, monkeypatch):
    folder = write_model(tmp_path, "llada")
    monkeypatch.setattr(precompile, "start", lambda _: pytest.fail("started"))
    monkeypatch.setenv(precompile.VARIABLE, "0" if not options else "1")
    config = EngineConfig(model_path=str(folder), device="cuda", **options).for_device("cuda")
    with precompile.compile_ahead(config, load_config(folder), CUDA) as found:
        assert found is None


def ahead(*programs: str) -> tuple[precompile.Ahead, list[int]]:
    done: list[int] = []
    processes = [subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE) for text in programs]
    return precompile.Ahead(processes, done.append), done


def test_the_cache_is_marked_when_all_have_ended_well(caplog):
    caplog.set_level(logging.INFO)
    waiting, done = ahead("print(3)", "print(4)")
    waiting.wait()
    assert done == [7]
    assert "7 kernels compiled" in caplog.text


def test_an_error_meanwhile_ends_them():
    waiting, done = ahead("import time; time.sleep(60)")
    with pytest.raises(ZeroDivisionError), waiting:
        raise ZeroDivisionError
    assert not done
    assert waiting._processes[0].poll() is not None


@pytest.mark.parametrize("bad", ["raise SystemExit(1)", "print()", "import time; time.sleep(60)"])
def test_a_process_that_fails_or_hangs_costs_time_alone(bad, caplog, monkeypatch):
    monkeypatch.setattr(precompile, "_LIMIT", 2.0)
    waiting, done = ahead("print(3)", bad)
    waiting.wait()
    assert not done
    assert "1 of 2 processes that compile kernels failed" in caplog.text
    assert all(process.poll() is not None for process in waiting._processes)
