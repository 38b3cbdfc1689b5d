"""Chooses the implementation of a kernel: Triton for CUDA tensors, the torch reference for all others.

That is the backend `auto`, the default. The environment variable SHOAL_KERNELS, read at the first call, or
`set_backend` choose `reference` or `triton` for every tensor of the process. Triton is imported when one of its kernels
is first called, never before. It needs CUDA tensors, or its interpreter (TRITON_INTERPRET=1 in the environment before
Triton is imported).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property, update_wrapper
from importlib import import_module
from typing import Concatenate, Generic, ParamSpec, Protocol, TypeVar, cast

import torch

VARIABLE = "SHOAL_KERNELS"
BACKENDS = ("auto", "reference", "triton")

_chosen: str | None = None


class HasDevice(Protocol):
    """A tensor, or what holds tensors of one device."""

    @property
    def device(self) -> torch.device:
        """Where it lives."""


First = TypeVar("First", bound=HasDevice)
Rest = ParamSpec("Rest")
Result = TypeVar("Result")


def set_backend(name: str | None) -> None:
    """Use backend `name` from now on in this process; None follows the environment. Raises ValueError if unknown."""
    global _chosen
    _chosen = None if name is None else _checked(name)


def backend() -> str:
    """`auto`, `reference` or `triton`."""
    global _chosen
    if _chosen is None:
        _chosen = _checked(os.environ.get(VARIABLE, "auto"))
    return _chosen


def _checked(name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"kernel backend {name!r}: choose from {', '.join(BACKENDS)} ({VARIABLE} or set_backend)")
    return name


def uses_triton(device: torch.device) -> bool:
    """Whether kernels on `device` run in Triton. Raises RuntimeError if the backend asks for it and it can't.

    Tensors on `meta` can be launched with where launches compile and nothing runs (`compile_triton.py`).
    """
    cuda = device.type == "cuda"
    if backend() == "auto":
        return cuda
    if backend() == "reference":
        return False
    if not cuda and device.type != "meta" and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(f"the kernel backend is triton, which needs CUDA tensors, not {device}")
    return True


class Kernel(Generic[First, Rest, Result]):
    """A contract function with two implementations; a call takes the one for its first argument's device.

    Attributes:
        reference: the decorated function, in torch. Its docstring is the contract of both.
    """

    def __init__(self, reference: Callable[Concatenate[First, Rest], Result], triton: str):
        self.reference = reference
        self._package = reference.__module__.rpartition(".")[0]
        self._triton = triton
        update_wrapper(self, reference)

    def __call__(self, first: First, /, *args: Rest.args, **kwargs: Rest.kwargs) -> Result:
        """Run Triton or the reference, as `uses_triton` says."""
        if uses_triton(first.device):
            return self.triton(first, *args, **kwargs)
        return self.reference(first, *args, **kwargs)

    @cached_property
    def triton(self) -> Callable[Concatenate[First, Rest], Result]:
        """The other implementation. The first look imports its module, and with it Triton."""
        module, _, name = self._triton.rpartition(".")
        found = getattr(import_module(f"{self._package}.{module}"), name)
        return cast("Callable[Concatenate[First, Rest], Result]", found)


def kernel(
    triton: str,
) -> Callable[[Callable[Concatenate[First, Rest], Result]], Kernel[First, Rest, Result]]:
    """Decorate a torch reference; `triton` names the other implementation as `module.function` of the same folder.

    Both take the same arguments; the Triton one may have further optional ones (tile sizes, for benchmarks).
    """
    return lambda reference: Kernel(reference, triton)
