"""Compiles kernels for a GPU without launching them, and without a context on it.

For processes that do nothing else: `compile_for` changes what every launch of the process does from then on.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.backends.nvidia import driver as nvidia
from triton.runtime.jit import JITFunction

from . import dispatch
from .attention import tiling


class Target(NamedTuple):
    """What kernels depend on: the GPU's compute capability, SMs, and bytes of shared memory of a program."""

    capability: tuple[int, int]
    sms: int
    memory: int

    @staticmethod
    def of(device: torch.device) -> Target:
        """That of a CUDA device."""
        capability = torch.cuda.get_device_capability(device)
        return Target(capability, tiling.num_sms(device), tiling.shared_memory(device))


class TargetOnly(DriverBase):  # type: ignore[misc]
    """Answers what compilation asks of a driver."""

    def __init__(self, arch: int):
        super().__init__()
        self.arch = arch

    @classmethod
    def is_active(cls) -> bool:
        """Always: nothing else could compile here."""
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        """As it is: no launcher is written."""
        return ty

    def get_current_target(self) -> GPUTarget:
        """The GPU that is compiled for."""
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        """There is one."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """Nothing runs in it."""
        return 0

    def get_active_torch_device(self) -> torch.device:
        """Where tensors would be made."""
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        """Nothing is timed."""
        raise NotImplementedError


class Compiled:
    """Counts of the kernels that were met and of those that this process compiled; hashes of those with a launcher."""

    def __init__(self) -> None:
        self.met: set[tuple[str, str]] = set()
        self.launched: set[str] = set()
        self.own = 0


def make_launcher(kernel: Any) -> None:
    """Compile the C code that launches a kernel into Triton's cache.

    Up to Triton 3.6 there is one for each signature, and without this the process that launches first compiles it.
    Where it can't be made here (no CUDA library, another Triton), that process makes it.
    """
    with contextlib.suppress(Exception):
        nvidia.CudaLauncher(kernel.src, kernel.metadata)


def compile_for(target: Target, share: int = 0, shares: int = 1) -> Compiled:
    """From now on launches in this process compile, into Triton's cache on disk, and nothing runs.

    Of the kernels, in the order in which they are first met, every `shares`-th is compiled here, from number `share`
    on. Tensors are those of torch's `meta` device, which have shapes and no memory.
    """
    triton.runtime.driver.set_active(TargetOnly(10 * target.capability[0] + target.capability[1]))
    tiling.stand_in(target.sms, target.memory, target.capability)
    dispatch.set_backend("triton")
    compiled = Compiled()
    launch = JITFunction.run

    def skip(*, key: str, fn: Any, **_: Any) -> bool:
        """Whether this kernel is not this process's to compile."""
        name = (str(fn.name), key)
        if name in compiled.met:
            return True
        compiled.met.add(name)
        own = (len(compiled.met) - 1) % shares == share
        compiled.own += own
        return not own

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        if kernel is not None and kernel.hash not in compiled.launched:
            compiled.launched.add(kernel.hash)
            make_launcher(kernel)

    knobs.runtime.jit_cache_hook = skip
    JITFunction.run = compile_only
    return compiled
