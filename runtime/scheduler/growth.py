"""Pages for canvas positions that come into being, and the running requests that are preempted for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..request.forward import Grow
from ..request.request import Request
from .admission import Admission
from .reuse import ReusePlanner


class Growth:
    """Grows running requests, the strongest first.

    Where memory is short the weakest running request is preempted, even if it is the one that grows. The strongest is
    preempted only when it runs alone and pins leave it no room; admission then ends it with an error. So the strongest
    reaches its end, then the next one.

    Args:
        planner: takes the pages.
        admission: knows who is strongest.
    """

    def __init__(self, planner: ReusePlanner, admission: Admission):
        self._planner = planner
        self._admission = admission

    def due(self, running: Mapping[str, Request]) -> Iterator[Grow | Request]:
        """Yields messages for the worker, and requests that the caller preempts before it takes the next item."""
        planner = self._planner
        if not any(planner.missing_pages(request) for request in running.values()):
            return
        order = self._admission.strongest_first(running.values())
        for request in tuple(order):
            while request.rid in running and planner.missing_pages(request):
                yield planner.grow(request) or order.pop()
