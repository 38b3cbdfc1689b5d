"""Capture: which of a request's pages the tree adopts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .config import TreeConfig
from .errors import InvalidArgumentError, PageReferenceError
from .match import INT32, NO_PAGES, TokenBytes, common_bytes
from .node import TOKEN_BYTES, Namespace, Node, Pages
from .page_allocator import PageAllocator, Where
from .storage import Storage

_NOWHERE = slice(0, 0)


@dataclass(slots=True, eq=False)
class CaptureResult:
    """What a capture added to the tree.

    Attributes:
        num_tokens: tokens offered, whole pages.
        new_tokens: tokens that the tree did not know before.
        token_layers: token-layers that became reusable (new tokens and raised depths).
        stored: what it took, step by step. `kv_pages` and `boundary_pages` are all ids that it took a reference on,
            flat int32; empty in a tree without pools.
    """

    num_tokens: int
    new_tokens: int
    token_layers: int
    stored: list["Step"]

    @property
    def kv_pages(self) -> Pages:
        """KV pages that the tree took a reference on."""
        return _flat([step.kv for step in self.stored])

    @property
    def boundary_pages(self) -> Pages:
        """Boundary pages that the tree took a reference on."""
        return _flat([step.boundary for step in self.stored])


class Step(NamedTuple):
    """One stretch [start, stop) of pages to store at `level`: raise `node`, or (None) hang a leaf below the path.

    `at`: where the allocators find `kv` and `boundary`.
    """

    node: Node | None
    start: int
    stop: int
    before: int
    level: int

    kv: Pages | None
    boundary: Pages | None
    at: tuple[Where, Where]


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
    root: Node | None, tokens: TokenBytes, level: int, ratio: float, page_bytes: int, table: "PageTable"
) -> Plan:
    """Decide what to store, top down, so that no node gets deeper than the one above it."""
    steps: list[Step] = []
    limit = level
    at, last, common = 0, None, 0
    node = root
    while node is not None and at < len(tokens):
        child = node.children.get(bytes(tokens[at : at + page_bytes]))
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

    __slots__ = ("boundary", "config", "kv", "num_pages", "pools")

    def __init__(
        self,
        config: TreeConfig,
        depth: int,
        num_pages: int,
        kv_pages: npt.ArrayLike | None,
        boundary_pages: Mapping[int, npt.ArrayLike] | None,
        *,
        pools: tuple[PageAllocator | None, PageAllocator | None],
    ):
        self.config = config
        self.pools = pools
        self.num_pages = num_pages
        self.kv: Pages | None = None
        self.boundary: list[Pages] | None = None
        if pools[0] is not None:
            self.kv = _checked("kv_pages", 0, kv_pages, (config.bands(depth), num_pages))
        if pools[1] is not None:
            offered = boundary_pages or {}
            shape = (num_pages,)
            self.boundary = []
            for at in config.boundary_depths[: config.boundaries_at[config.level_at[depth]]]:
                row = offered.get(at)
                if row is None:
                    raise InvalidArgumentError("boundary_pages", f"states that enter layer {at} are missing")
                self.boundary.append(_checked("boundary_pages", at, row, shape))

    def step(self, node: Node | None, start: int, stop: int, before: int, level: int) -> Step | None:
        """The step with the page ids that it stores, to keep; None when the request lacks (-1) one of them."""
        config = self.config
        kv = boundary = None
        at_kv: Where | None = _NOWHERE
        at_boundary: Where | None = _NOWHERE
        if self.kv is not None and self.pools[0] is not None:
            rows = self.kv[config.bands_at[before] : config.bands_at[level], start:stop]
            whole = rows.reshape(1, -1) if rows.flags.c_contiguous else _in_pieces(rows)
            kv, at_kv = self.pools[0].intern(whole, (len(rows), stop - start))
        if self.boundary is not None and self.pools[1] is not None:
            states = self.boundary[config.boundaries_at[before] : config.boundaries_at[level]]
            pieces = [_in_pieces(row[start:stop]) for row in states]
            boundary, at_boundary = self.pools[1].intern(pieces, (len(states), stop - start))
        if at_kv is None or at_boundary is None:
            return None
        return Step(node, start, stop, before, level, kv, boundary, (at_kv, at_boundary))


def apply_capture(
    storage: Storage, plan: Plan, tokens: TokenBytes, namespace: Namespace, ratio: float
) -> CaptureResult:
    """Adopt the planned pages and store them. Raises PageReferenceError, with nothing changed, for unfit pages."""
    config, page_bytes = storage.config, storage.page_bytes
    steps = plan.steps
    if not steps:
        return CaptureResult(len(tokens) // TOKEN_BYTES, 0, 0, [])
    for index, step in enumerate(steps):
        try:
            storage.adopt(step.kv, step.boundary, step.at, offered=step.node is None or step.node.offered)
        except PageReferenceError:
            for done in steps[:index]:
                storage.give_back(done.kv, done.boundary)
            raise
    now = storage.tick()
    new_tokens = token_layers = 0
    last = upper = plan.last
    at_last = steps[-1].node in (None, last)
    if last is not None and plan.common < len(last.tokens) and at_last:
        upper = storage.split(last, plan.common // page_bytes)
    for step in steps:
        count = (step.stop - step.start) * config.page_size
        token_layers += count * (config.levels[step.level] - config.levels[step.before])
        if not step.before:
            new_tokens += count
        if step.node is None:
            parent = upper if upper is not None else storage.root(namespace)
            piece = bytes(tokens[step.start * page_bytes : step.stop * page_bytes])
            storage.add_leaf(parent, piece, step.level, step.kv, step.boundary, ratio, now)
        else:
            node = upper if step.node is last and upper is not None else step.node
            storage.raise_node(node, step.level, step.kv, step.boundary, ratio, now)
    return CaptureResult(len(tokens) // TOKEN_BYTES, new_tokens, token_layers, steps)


def _flat(parts: list[Pages | None]) -> Pages:
    held = [part.reshape(-1) for part in parts if part is not None]
    if len(held) == 1:
        return held[0]
    return np.concatenate(held) if held else NO_PAGES


def _in_pieces(rows: Pages) -> Pages:
    """As they are when each row lies in one piece, else a copy."""
    return rows if rows.strides[-1] == rows.itemsize else rows.copy()


def _checked(name: str, at: int, pages: npt.ArrayLike | None, shape: tuple[int, ...]) -> Pages:
    if isinstance(pages, np.ndarray) and pages.dtype is INT32 and pages.shape == shape:
        return pages
    array = pages if isinstance(pages, np.ndarray) else np.asarray([] if pages is None else pages)
    name = f"{name}[{at}]" if at else name
    if array.shape != shape:
        raise InvalidArgumentError(name, f"must have shape {list(shape)}, got {list(array.shape)}")
    if array.size and array.dtype.kind not in "iu":
        raise InvalidArgumentError(name, f"must be integers, got {array.dtype}")
    return array if array.dtype == np.int32 else array.astype(np.int32)
