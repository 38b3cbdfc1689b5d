"""How long threads of OpenMP wait awake for each other on a CPU."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

SPIN_COUNT = "20000"
"""Turns of a thread's waiting loop; libgomp's own default is 300,000 (benchmarks/results/spinning.csv has others)."""


def limit_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set GOMP_SPINCOUNT in `environment`, unless it or OMP_WAIT_POLICY is there.

    Between operations libgomp's threads wait awake, and meanwhile a core is lost to whatever else the machine runs, the
    thread they wait for among it. libgomp reads the variable when torch is loaded: call this before.
    """
    if not environment.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        environment["GOMP_SPINCOUNT"] = SPIN_COUNT
