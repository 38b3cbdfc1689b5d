"""Runs parts one after the other within a time, and keeps a summary that is true whenever the run is cut off."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_session.parts import Part

ROOT = Path(__file__).resolve().parents[2]
LEAST = 15.0
"""Seconds without which no part is begun."""
PACK_EVERY = 20.0
"""Seconds between two archives."""


class Stopped(Exception):  # noqa: N818 - no error: somebody wants an end
    """A signal asked for the end."""


class Session:
    """A folder of results.

    `gpu_report.json` in it holds facts and, for every part, `state` (running, done, failed, killed, skipped), command,
    limit, exit status and seconds; it is replaced before and after each part. `gpu_report.log` has what the parts
    print. Each part writes its own files into the folder as it goes.

    Args:
        out: the folder.
        minutes: for everything.
        commit: what results name as the commit.
        facts: what else the summary begins with.
        archive: a .tar.gz of the folder, replaced after every part and now and then in a long one.
    """

    def __init__(
        self,
        out: Path,
        minutes: float,
        commit: str,
        facts: dict[str, object] | None = None,
        archive: Path | None = None,
    ):
        self.out, self._commit, self._archive = out.resolve(), commit, archive
        self._end = time.monotonic() + 60 * minutes
        self.summary: dict[str, Any] = {"commit": commit, "minutes": minutes, **(facts or {}), "parts": []}
        self.out.mkdir(parents=True, exist_ok=True)

    def run(self, parts: Sequence[Part]) -> bool:
        """Run them in order; whether all were done. Raises Stopped after it has written down that a signal came."""
        for part in parts:
            entry: dict[str, Any] = {"part": part.name}
            self.summary["parts"].append(entry)
            left = self._end - time.monotonic()
            if missing := part.missing():
                entry |= {"state": "skipped", "why": f"not installed: {', '.join(missing)}"}
            elif left < LEAST:
                entry |= {"state": "skipped", "why": "no time was left"}
            else:
                self._run(part, entry, min(part.seconds, left))
            self._write()
            print(f"{part.name}: {entry['state']} {entry.get('why', '')}", flush=True)
            self._pack()
        return all(entry["state"] == "done" for entry in self.summary["parts"])

    def _run(self, part: Part, entry: dict[str, Any], limit: float) -> None:
        command = part.command(self.out, self._commit, limit)
        shown = part.shown(self.out, self._commit, limit).replace(f"{self.out}/", "")
        entry |= {"state": "running", "command": shown, "limit_s": round(limit)}
        self._write()
        begin = time.monotonic()
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
        stopped, process = False, None
        with (self.out / "gpu_report.log").open("ab") as log:
            log.write(f"== {part.name}: {entry['command']}\n".encode())
            log.flush()
            try:
                process = subprocess.Popen(
                    [sys.executable, *command],
                    cwd=ROOT,
                    env=environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
                rc = self._wait(process, begin + limit)
                entry |= {"state": "done" if rc == 0 else "failed", "rc": rc}
            except subprocess.TimeoutExpired:
                entry |= {"state": "killed", "why": f"not done after {limit:.0f} s"}
            except Stopped:
                stopped = True
                entry |= {"state": "killed", "why": "the session was stopped"}
            finally:
                if process is not None:
                    end_group(process)
        entry["seconds"] = round(time.monotonic() - begin, 1)
        if stopped:
            self._write()
            self._pack()
            raise Stopped

    def _wait(self, process: subprocess.Popen[bytes], deadline: float) -> int:
        """The exit status; TimeoutExpired at the deadline. Packs on the way what is there."""
        while True:
            left = deadline - time.monotonic()
            try:
                return process.wait(timeout=min(PACK_EVERY, max(left, 0.01)))
            except subprocess.TimeoutExpired:
                if left <= PACK_EVERY:
                    raise
                self._pack()

    def _write(self) -> None:
        path = self.out / "gpu_report.json"
        whole = path.with_suffix(".new")
        whole.write_text(json.dumps(self.summary, indent=1) + "\n", encoding="utf-8")
        os.replace(whole, path)

    def _pack(self) -> None:
        if self._archive is None:
            return
        archive = self._archive
        whole = archive.with_name(archive.name + ".new")
        with contextlib.suppress(OSError, tarfile.TarError):  # a part replaced a file just now: the next one will do
            with tarfile.open(whole, "w:gz") as tar:
                tar.add(self.out, self.out.name, filter=lambda info: None if info.name.endswith(".new") else info)
            os.replace(whole, archive)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that leads a group, and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
