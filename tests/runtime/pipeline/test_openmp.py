"""OpenMP's threads are told how long to wait awake, before torch is loaded, unless the user has said it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.runtime import cpu_tuning
from shoal.runtime.cpu_tuning import SPIN_COUNT, limit_spinning, load_torch, warn_of_spinning

from .running import running

ASK = """
import sys
from shoal.runtime import cpu_tuning as openmp
openmp.limit_spinning = lambda *_: sys.exit(8 if "torch" in sys.modules else 7)
"""


@pytest.mark.parametrize("given", [{}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}])
def test_what_the_user_has_set_stays(given):
    environment = {"HOME": "/", **given}
    limit_spinning(environment)
    assert environment == {"HOME": "/", **(given or {"GOMP_SPINCOUNT": SPIN_COUNT})}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
async def test_processes_of_a_pipeline_have_it_and_this_one_is_left_alone(monkeypatch):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    async with running(load_format="dummy") as client:
        environment = Path(f"/proc/{client.pids['worker']}/environ").read_bytes().split(b"\0")
    assert f"GOMP_SPINCOUNT={SPIN_COUNT}".encode() in environment
    assert "GOMP_SPINCOUNT" not in os.environ


@pytest.mark.parametrize(
    "code",
    [
        "from shoal.cli import app; app(['version'])",
        "from shoal.launch_server import main; main(['shop', '--in-process'])",
    ],
)
def test_commands_ask_for_it_before_torch_is_loaded(code):
    assert subprocess.run([sys.executable, "-c", ASK + code], timeout=120, check=False).returncode == 7


PROGRAM = """
import os, sys
from importlib.abc import MetaPathFinder

NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")

class Torch(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            print([os.environ.get(name) for name in NAMES])
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Torch())
import shoal
try:
    CODE
except ModuleNotFoundError as error:
    print(error, [os.environ.get(name) for name in NAMES])
"""


@pytest.mark.parametrize(("given", "seen"), [
    ({}, [SPIN_COUNT, None]), ({"GOMP_SPINCOUNT": "7"}, ["7", None]), ({"OMP_WAIT_POLICY": "active"}, [None, "active"]),
])  # fmt: skip
@pytest.mark.parametrize("code", ["shoal.Engine", "from shoal.runtime.engine.service import LocalService"])
def test_a_program_loads_torch_with_the_limit_and_keeps_its_environment(code, given, seen):
    environment = {name: value for name, value in os.environ.items() if name not in cpu_tuning._VARIABLES}
    command = [sys.executable, "-c", PROGRAM.replace("CODE", code)]
    done = subprocess.run(
        command, env={**environment, **given}, capture_output=True, text=True, timeout=120, check=True
    )
    left = [given.get("GOMP_SPINCOUNT"), given.get("OMP_WAIT_POLICY")]
    assert done.stdout == f"{seen}\ntorch {left}\n"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="libgomp is Linux's")
@pytest.mark.parametrize(("given", "threads", "lines"), [
    ({}, (2, 2), 1), ({}, (1, 2), 1), ({}, (1, 1), 0), ({"GOMP_SPINCOUNT": "7"}, (2, 2), 0),
])  # fmt: skip
def test_a_program_that_imported_torch_itself_is_told_once(monkeypatch, caplog, given, threads, lines):
    for name in cpu_tuning._VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cpu_tuning, "_unlimited", False)
    assert load_torch() is sys.modules["torch"]
    with caplog.at_level(logging.WARNING, logger=cpu_tuning.__name__):
        for count in threads:
            warn_of_spinning(count)
    assert [SPIN_COUNT in record.getMessage() for record in caplog.records] == [True] * lines
