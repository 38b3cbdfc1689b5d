"""How the scheduler reaches the worker."""

from __future__ import annotations

from typing import Protocol

from ..request.forward import AddRequest, Forward, Grow, Release, StepResult


class WorkerLink(Protocol):
    """How the scheduler reaches the worker: the worker itself in one process, a socket pair between two."""

    def add(self, message: AddRequest) -> None:
        """Create a canvas."""
        ...

    def grow(self, message: Grow) -> None:
        """Lengthen a request's page table."""
        ...

    def release(self, message: Release) -> None:
        """Drop canvases."""
        ...

    def forward(self, message: Forward) -> list[StepResult]:
        """Run forwards and return their results. A link that can't wait raises; its owner calls plan and apply."""
        ...
