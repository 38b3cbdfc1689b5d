"""Compiles a GPU worker's kernels in other processes, while its weights are read.

Each process builds the worker on torch's `meta` device, of which only shapes exist, runs its warm-up, and compiles its
share of the kernels that this meets into Triton's cache on disk. So the list of kernels is the warm-up itself, and the
worker's own warm-up finds them compiled. A process that fails costs time alone: the warm-up compiles what is missing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ....kernels import dispatch
from ....radix_cache.depth_profile import DepthProfile
from ...config import EngineConfig
from ...model.config import ModelConfig
from ...model.hub import resolve_model_folder
from ...model.loader import load_model
from ...model.registry import load_config
from ...model.settings import default_block_length, load_profile
from ..device import choose_dtype
from ..facts import make_facts
from ..pools import BoundaryPool, KVPool
from .build import build_cuda_executor
from .fp8_linear import quantize_layer
from .graphs import ForwardGraphs

logger = logging.getLogger(__name__)
VARIABLE = "SHOAL_COMPILE_AHEAD"
"""0 in the environment: the warm-up compiles everything itself."""
MOST_PROCESSES = 8
_LAYERS = 3
"""A first, a last and one between: kernels differ in nothing else. Pages and tables are the whole model's."""
_LIMIT = 120.0
"""Seconds after which the worker's own warm-up compiles the rest."""
_FOLDERS = (Path(dispatch.__file__).parent, Path(__file__).parent)


@dataclass(frozen=True, slots=True)
class Job:
    """What a process is told. config: with its device's defaults and a budget for the pools."""

    config: EngineConfig
    capability: tuple[int, int]
    sms: int
    memory: int
    share: int
    shares: int


class Ahead:
    """Processes that compile while a `with` block runs; its end waits for them, an error in it ends them.

    Args:
        processes: which print how many kernels they compiled.
        done: marks the cache when all have ended well.
    """

    def __init__(self, processes: list[subprocess.Popen[bytes]], done: Callable[[int], None]):
        self._processes = processes
        self._done = done
        self._began = time.monotonic()

    def __enter__(self) -> None:
        """Nothing: they run already."""

    def __exit__(self, error: object, *_: object) -> None:
        if error is None:
            self.wait()
        else:
            self.stop()

    def wait(self) -> None:
        """Wait until they have ended, for so long that nothing would be gained by more."""
        counts: list[int] = []
        for process in self._processes:
            try:
                out = process.communicate(timeout=max(1.0, self._began + _LIMIT - time.monotonic()))[0]
                counts.append(int(out.split()[-1]) if process.returncode == 0 else -1)
            except (subprocess.TimeoutExpired, ValueError, IndexError):
                counts.append(-1)
        self.stop()
        seconds = time.monotonic() - self._began
        if -1 in counts:
            failed = counts.count(-1)
            logger.warning("%d of %d processes that compile kernels failed; the warm-up goes on", failed, len(counts))
        else:
            logger.info("%d kernels compiled, %.1f s after the start", sum(counts), seconds)
            self._done(sum(counts))

    def stop(self) -> None:
        """End them at once."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def compile_ahead(config: EngineConfig, model: ModelConfig, device: torch.device) -> AbstractContextManager[None]:
    """Begin to compile for a CUDA device; nothing happens where that gains nothing.

    That is without a warm-up (`disable_cuda_graph`), without cores to spare, for slices of a model (`tp_size`), and
    where Triton's cache was filled by the same code, versions, options and GPU before.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if config.disable_cuda_graph or config.tp_size > 1 or cores < 3 or os.environ.get(VARIABLE) == "0":
        return nullcontext()
    if not dispatch.uses_triton(device):
        return nullcontext()
    from triton import knobs

    from ....kernels.compile_triton import Target

    total = torch.cuda.get_device_properties(device).total_memory
    if config.kv_cache_bytes is None and config.kv_cache_tokens is None:  # what will be left, about
        config = replace(config, kv_cache_bytes=max(1 << 30, int(total * config.mem_fraction_static) // 2))
    target = Target.of(device)
    marker = Path(knobs.cache.dir) / f"shoal-{_fingerprint(config, model, target)}"
    if marker.exists():
        return nullcontext()
    shares = min(MOST_PROCESSES, cores - 1)
    logger.info("compiling kernels in %d processes while the weights are read", shares)
    jobs = [Job(config, *target, share, shares) for share in range(shares)]

    def done(count: int) -> None:
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text(f"{count} kernels\n", encoding="utf-8")

    return Ahead([start(job) for job in jobs], done)


def start(job: Job) -> subprocess.Popen[bytes]:
    """A process that does the job; it sees no GPU."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[3]), *sys.path]))
    environment = os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", __name__]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert process.stdin is not None
    process.stdin.write(json.dumps(asdict(job)).encode())
    process.stdin.close()
    process.stdin = None  # closed: `communicate` must not touch it
    return process


def run(job: Job) -> int:
    """Compile the job's share of the kernels; how many these are. Changes what this process launches for good."""
    from ....kernels.compile_triton import Target, compile_for

    compiled = compile_for(Target(job.capability, job.sms, job.memory), job.share, job.shares)
    config, device = job.config, torch.device("meta")
    folder = resolve_model_folder(config.model_path)
    model = load_config(folder, config.mask_token_id)
    dtype = choose_dtype(config.dtype, device)
    kv_dtype = dtype if config.kv_cache_dtype == "auto" else torch.float8_e4m3fn
    facts = make_facts(
        config, folder, model, DepthProfile.from_json(load_profile(config, folder, model).to_json()),
        config.block_length or default_block_length(folder), device="meta", dtype=str(dtype).removeprefix("torch."),
        itemsize=dtype.itemsize, kv_itemsize=kv_dtype.itemsize,
    )  # fmt: skip
    decoder = load_model(
        replace(model, num_layers=min(_LAYERS, model.num_layers)), dtype=dtype, device=device, load_format="dummy",
        finish_layer=quantize_layer if config.quantization else None,
    )  # fmt: skip
    kv = KVPool(decoder.config, facts.kv_pages, facts.page_size, facts.layers_per_band, kv_dtype, device)
    boundary = BoundaryPool(model, facts.boundary_pages, facts.page_size, dtype, device)
    build_cuda_executor(config, decoder, kv, boundary, facts, capture=True, graphs=UncapturedGraphs)
    return compiled.own


class UncapturedGraphs(ForwardGraphs):
    """Runs what it would capture."""

    def _captured(self, run: Callable[[], Any]) -> tuple[Any, Any]:
        return None, run()


def _fingerprint(config: EngineConfig, model: ModelConfig, target: tuple[Any, ...]) -> str:
    """Of everything that kernels depend on."""
    from triton import __version__ as triton_version

    digest = hashlib.sha256()
    versions = [sys.version, torch.__version__, triton_version]
    digest.update(repr([replace(config, model_path=""), model, target, versions]).encode())
    for folder in _FOLDERS:
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # the worker says the same
    told = json.load(sys.stdin)
    told = {**told, "config": EngineConfig(**told["config"]), "capability": tuple(told["capability"])}
    print(run(Job(**told)), flush=True)
