"""An application on a local Ray cluster of this process, for a measurement or a test."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

_OBJECT_STORE_BYTES = 100 << 20


@dataclass(frozen=True, slots=True)
class RayApplication:
    """shoal behind Ray's proxy.

    Attributes:
        url: of the proxy.
    """

    url: str

    def running(self) -> int:
        """Replicas that take requests, as Ray's controller knows them."""
        from shoal.serve_ray.gateway import running_replicas

        return running_replicas("shoal")

    def stats(self) -> dict[str, Any]:
        """What the replicas hold and have done in all."""
        return httpx.get(f"{self.url}/server_info", timeout=60).json()


@contextlib.contextmanager
def ray_application(args: dict[str, Any], cores: int = 2) -> Iterator[RayApplication]:
    """Starts a cluster of `cores`, deploys, waits until all replicas run; ends everything at the end."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray runs workers at niceness 15: beside other work they would get a fraction of the cores.
    os.environ.setdefault("RAY_worker_niceness", "0")
    import ray
    from ray import serve

    from shoal.serve_ray import app

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ray.init("local", num_cpus=cores, object_store_memory=_OBJECT_STORE_BYTES, include_dashboard=False,
             log_to_driver=False, logging_level="warning")  # fmt: skip
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(app(args), name="shoal", route_prefix="/")
        yield RayApplication(f"http://127.0.0.1:{port}")
    finally:
        serve.shutdown()
        ray.shutdown()


def replica_pids() -> list[int]:
    """Process ids of the replicas that descend from this process."""
    return [pid for pid in descendants(os.getpid()) if _name(pid).startswith("ray::ServeReplica:shoal:Replica")]


def children(pid: int) -> list[int]:
    """Process ids of a process's children, whichever thread started them; none of one that is gone."""
    try:
        return [int(one) for path in Path(f"/proc/{pid}/task").glob("*/children") for one in path.read_text().split()]
    except OSError:
        return []


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether the condition came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def descendants(pid: int) -> Iterator[int]:
    """Process ids of a process's children, their children and so on."""
    for child in children(pid):
        yield child
        yield from descendants(child)


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().partition("\0")[0]
    except OSError:
        return ""
