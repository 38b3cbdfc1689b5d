"""Capture: what of a request's pages the tree takes over."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .config import TreeConfig
from .errors import InvalidArgumentError
from .match import NO_PAGES, common_bytes
from .namespace import Namespace
from .node import TOKEN_BYTES, Node, Pages
from .storage import Storage


@dataclass(slots=True, eq=False)
class CaptureResult:
    """What a capture added to the tree.

    Attributes:
        num_tokens: tokens offered, whole pages.
        new_tokens: tokens that the tree did not know before.
        token_layers: token-layers that became reusable (new tokens and raised depths).
        kv_pages, boundary_pages: ids that the tree took a reference on, flat int32; empty in a tree without pools.
    """

    num_tokens: int
    new_tokens: int
    token_layers: int
    kv_pages: Pages
    boundary_pages: Pages


class Step(NamedTuple):
    """One stretch [start, stop) of pages to store at `level`: raise `node`, or (None) hang a leaf below the path."""

    node: Node | None
    start: int
    stop: int
    before: int
    level: int

    kv: Pages | None
    boundary: Pages | None


class Plan(NamedTuple):
    """Steps in path order, and where the path ends: `last` with `common` bytes matched."""

    steps: list[Step]
    last: Node | None
    common: int


def may_raise(node: Node, ratio: float) -> bool:
    """Whether a capture at `ratio` may deepen `node`.

    KVs captured at a larger ratio are closer to what every later request needs. After an audit found drift only a
    strictly better capture will do, or the next request would bring the same drift back. A node without pages takes
    any capture, as if it were not there.
    """
    if not node.level:
        return True
    return ratio > node.ratio if node.drifted else ratio >= node.ratio


def plan_capture(
    root: Node | None, tokens: bytes, level: int, ratio: float, page_bytes: int, table: "PageTable"
) -> Plan:
    """Decide what to store, top down, so that no node gets deeper than the one above it."""
    steps: list[Step] = []
    limit = level
    at, last, common = 0, None, 0
    node = root
    while node is not None and at < len(tokens):
        child = node.children.get(tokens[at : at + page_bytes])
        if child is None:
            break
        common = common_bytes(child, tokens, at, page_bytes)
        last = child
        step = None
        if child.level < limit and may_raise(child, ratio):
            step = table.step(child, at // page_bytes, (at + common) // page_bytes, child.level, limit)
        if step is not None:
            steps.append(step)
        else:
            limit = min(limit, child.level)
        at += common
        if common < len(child.tokens):
            break
        node = child
    if at < len(tokens) and limit:
        step = table.step(None, at // page_bytes, len(tokens) // page_bytes, 0, limit)
        if step is not None:
            steps.append(step)
    return Plan(steps, last, common)


class PageTable:
    """The page ids that a capture offers, checked for shape. Without pools it holds nothing and yields None."""

    def __init__(
        self,
        config: TreeConfig,
        depth: int,
        num_pages: int,
        kv_pages: npt.ArrayLike | None,
        boundary_pages: Mapping[int, npt.ArrayLike] | None,
        *,
        pools: tuple[bool, bool],
    ):
        self.config = config
        self.kv: Pages | None = None
        self.boundary: list[Pages] | None = None
        if pools[0]:
            shape = (config.bands(depth), num_pages)
            self.kv = _checked("kv_pages", kv_pages, shape)
        if pools[1]:
            stored = config.boundary_depths[: config.boundaries_at[config.level_of(depth)]]
            offered = boundary_pages or {}
            missing = [at for at in stored if at not in offered]
            if missing:
                raise InvalidArgumentError("boundary_pages", f"states that enter layer {missing[0]} are missing")
            self.boundary = [_checked(f"boundary_pages[{at}]", offered[at], (num_pages,)) for at in stored]

    def step(self, node: Node | None, start: int, stop: int, before: int, level: int) -> Step | None:
        """The step with copies of the page ids that it stores; None when the request lacks (-1) one of them."""
        config = self.config
        kv = boundary = None
        if self.kv is not None:
            kv = self.kv[config.bands_at[before] : config.bands_at[level], start:stop].copy()
            if kv.size and int(kv.min()) < 0:
                return None
        if self.boundary is not None:
            rows = self.boundary[config.boundaries_at[before] : config.boundaries_at[level]]
            flat = np.concatenate([row[start:stop] for row in rows]) if rows else NO_PAGES
            boundary = flat.reshape(len(rows), stop - start)
            if boundary.size and int(boundary.min()) < 0:
                return None
        return Step(node, start, stop, before, level, kv, boundary)


def apply_capture(storage: Storage, plan: Plan, tokens: bytes, namespace: Namespace, ratio: float) -> CaptureResult:
    """Adopt the planned pages and store them. Raises PageReferenceError, with nothing changed, for unfit pages."""
    config, page_bytes = storage.config, storage.page_bytes
    if not plan.steps:
        return CaptureResult(len(tokens) // TOKEN_BYTES, 0, 0, NO_PAGES, NO_PAGES)
    kv_ids = _flat([step.kv for step in plan.steps])
    boundary_ids = _flat([step.boundary for step in plan.steps])
    # Pages of nodes that nobody uses are offered for eviction; mostly all are, and one pass marks both.
    offered = not any(step.node is not None and step.node.in_use for step in plan.steps)
    storage.adopt(kv_ids, boundary_ids, offered=offered)
    now = storage.tick()
    new_tokens = token_layers = 0
    last = upper = plan.last
    at_last = plan.steps[-1].node in (None, last)
    if last is not None and plan.common < len(last.tokens) and at_last:
        upper = storage.split(last, plan.common // page_bytes)
    for step in plan.steps:
        count = (step.stop - step.start) * config.page_size
        token_layers += count * (config.levels[step.level] - config.levels[step.before])
        if not step.before:
            new_tokens += count
        if step.node is None:
            parent = upper if upper is not None else storage.root(namespace)
            piece = tokens[step.start * page_bytes : step.stop * page_bytes]
            storage.add_leaf(parent, piece, step.level, step.kv, step.boundary, ratio, now, offered)
        else:
            node = upper if step.node is last and upper is not None else step.node
            storage.raise_node(node, step.level, step.kv, step.boundary, ratio, now, offered)
    return CaptureResult(len(tokens) // TOKEN_BYTES, new_tokens, token_layers, kv_ids, boundary_ids)


def _flat(parts: list[Pages | None]) -> Pages:
    held = [part.reshape(-1) for part in parts if part is not None]
    if len(held) == 1:
        return held[0]
    return np.concatenate(held) if held else NO_PAGES


def _checked(name: str, pages: npt.ArrayLike | None, shape: tuple[int, ...]) -> Pages:
    array = pages if isinstance(pages, np.ndarray) else np.asarray([] if pages is None else pages)
    if array.shape != shape:
        raise InvalidArgumentError(name, f"must have shape {list(shape)}, got {list(array.shape)}")
    if array.size and array.dtype.kind not in "iu":
        raise InvalidArgumentError(name, f"must be integers, got {array.dtype}")
    return array if array.dtype == np.int32 else array.astype(np.int32)
