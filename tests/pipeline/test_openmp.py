"""OpenMP's threads are told how long to wait awake, before torch is loaded, unless the user has said it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.runtime.cpu_tuning import SPIN_COUNT, limit_spinning

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
