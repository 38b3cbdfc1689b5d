"""Provenance of a results file: hardware and commit."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path


def hardware() -> str:
    """The GPU and its memory, if torch sees one; else CPU model and cores."""
    gpu = _gpu()
    if gpu is not None:
        return gpu
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return f"{cpu}, {os.cpu_count()} cores"


def _gpu() -> str | None:
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"


def commit() -> str:
    """The commit of the checkout that shoal runs from, with + when the tree differs from it; else `unknown`."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
