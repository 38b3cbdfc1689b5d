"""Who may enter, what the processes load, and which signals they mind: one pipeline for all tests."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.runtime.errors import ConfigError
from shoal.runtime.pipeline.sockets import NAMES, Endpoints

from .running import last, request

NOBODY = 65534
shared = pytest.mark.asyncio(loop_scope="module")


def test_the_sockets_lie_in_a_directory_of_this_user_alone():
    endpoints = Endpoints.create()
    try:
        assert stat.S_IMODE(endpoints.directory.stat().st_mode) == 0o700
        endpoints.check()
        endpoints.directory.chmod(0o755)
        with pytest.raises(ConfigError, match="0700"):
            endpoints.check()
    finally:
        endpoints.remove()
        endpoints.remove()
    assert not endpoints.directory.exists()


def test_a_temporary_directory_with_too_long_a_name_is_refused(tmp_path, monkeypatch):
    deep = tmp_path / ("d" * 80)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with pytest.raises(ConfigError, match="TMPDIR"):
        Endpoints.create()
    assert list(deep.iterdir()) == []


def test_a_temporary_directory_that_can_not_be_written_to_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match="TMPDIR"):
        Endpoints.create()


@shared
@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another user")
async def test_another_user_can_not_reach_a_socket(client):
    assert client.pipeline is not None
    paths = [str(client.pipeline.endpoints.directory / name) for name in NAMES]
    assert all(Path(path).is_socket() for path in paths)
    program = (
        "import os, socket, sys\n"
        f"os.setuid({NOBODY})\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        socket.socket(socket.AF_UNIX).connect(path)\n"
        "    except PermissionError:\n"
        "        print('refused')\n"
    )
    run = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program, *paths], capture_output=True, text=True
    )
    assert run.stdout.split() == ["refused"] * len(paths), run.stderr


@shared
async def test_no_process_listens_on_tcp(client):
    inodes = set()
    for pid in client.pids.values():
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(entry)
            if target.startswith("socket:"):
                inodes.add(target[8:-1])
    tables = [Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    assert inodes
    assert not inodes & {line.split()[9] for table in tables for line in table}


@shared
async def test_processes_ignore_the_signals_that_are_meant_for_the_server(client):
    """Ctrl-C and a supervisor's SIGTERM go to the whole group; the server drains meanwhile."""
    for pid in client.pids.values():
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    assert (await last(client, request("a"))).finish_reason == "length"
    assert client.status.state == "up"


@shared
async def test_only_the_worker_loads_torch(client):
    """The one here is a null worker."""
    await last(client, request("a", stop=["never"], prompt=[{"role": "user", "content": "red"}]))
    maps = {role: Path(f"/proc/{pid}/maps").read_text() for role, pid in client.pids.items()}
    loaded = {role for role, text in maps.items() if "libtorch" in text}
    assert loaded == set()
