"""Versions and hardware of a measurement."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from .. import __version__, provenance

PACKAGES = ("torch", "numpy", "transformers", "tokenizers", "safetensors")


def versions() -> dict[str, str]:
    """Versions of Python, shoal and the engine's libraries."""
    found = {"python": platform.python_version(), "shoal": __version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def hardware() -> dict[str, str | int]:
    """The machine in words, cores that this process may use, torch threads, and the system."""
    import torch

    return {
        "machine": provenance.hardware(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "torch_threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }
