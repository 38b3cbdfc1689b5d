"""Settings of the process for inference on a CPU: how long idle OpenMP threads spin, and what memory is kept."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections.abc import MutableMapping
from importlib import import_module
from types import ModuleType

logger = logging.getLogger(__name__)
SPIN_COUNT = "20000"
"""Iterations of a waiting thread's loop; libgomp's default is 300,000 (benchmarks/results/spinning.csv has others)."""
_VARIABLES = frozenset({"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"})
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
# glibc refuses a higher mmap threshold on 64-bit systems.
_MMAP_THRESHOLD_BYTES = 32 * 1024 * 1024
_KEPT_BYTES = 256 * 1024 * 1024

_unlimited = False
"""Whether other code loaded torch without a limit."""


def limit_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set GOMP_SPINCOUNT in `environment`, unless it or OMP_WAIT_POLICY is there.

    Between operations idle OpenMP threads spin, and take cores from everything else on the machine, the thread they
    wait for included. libgomp reads the variable when torch is loaded, so call this before.
    """
    if not environment.keys() & _VARIABLES:
        environment["GOMP_SPINCOUNT"] = SPIN_COUNT


def load_torch() -> ModuleType:
    """Import torch with `limit_spinning` in effect, and restore the environment.

    If torch is already loaded without the variables, it is too late, and `warn_of_spinning` will say so.
    """
    global _unlimited
    limited = bool(os.environ.keys() & _VARIABLES)
    if "torch" in sys.modules:
        _unlimited = not limited
        return import_module("torch")
    limit_spinning()
    try:
        return import_module("torch")
    finally:
        if not limited:
            del os.environ["GOMP_SPINCOUNT"]


def warn_of_spinning(threads: int) -> None:
    """Log once, before computing on a CPU with `threads` threads, that idle ones spin, and the remedy."""
    global _unlimited
    if not _unlimited or threads < 2 or not sys.platform.startswith("linux"):
        return
    _unlimited = False
    logger.warning(
        "torch was imported before shoal.Engine, so its idle OpenMP threads spin for long: on cores with other load "
        "this engine can be many times slower. Import shoal.Engine first, start the program with GOMP_SPINCOUNT=%s in "
        "its environment, or call torch.set_num_threads(1)",
        SPIN_COUNT,
    )


def keep_freed_memory() -> bool:
    """Make glibc keep up to 256 MiB of freed memory at the top of the heap instead of returning it at once.

    A forward over a few hundred tokens frees and allocates the same megabytes in every layer. By default each round
    returns them to the kernel, and page faults then cost a fifth of the layer's time. The setting holds for the whole
    process; `return_freed_memory` returns what is kept once there is nothing to do. Returns whether it took effect
    (Linux with glibc).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # Threads (the engine's is one) get arenas of their own otherwise, which return memory at every chance.
    mallopt(_M_ARENA_MAX, 1)
    mapped = mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
    trimmed = mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    return bool(mapped and trimmed)


def return_freed_memory() -> None:
    """Return freed memory to the system, also from between what is still in use (glibc; elsewhere nothing happens).

    Takes milliseconds for 100 MB, and the next allocations cost page faults: for a process that has nothing to do.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
