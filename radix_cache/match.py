"""Matching: the longest cached prefix, and the cut of it that saves the most work."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from .config import TreeConfig
from .errors import InvalidArgumentError
from .node import Namespace, Node, Pages

if TYPE_CHECKING:
    from .depth_profile import DepthProfile


@dataclass(slots=True, eq=False)
class Match:
    """The cached part of a prompt. Compares by identity: it is also the handle to lock and unlock.

    Attributes:
        namespace: where it was looked up.
        num_tokens: longest cached prefix, whole pages.
        cut: tokens to reuse (s), whole pages; 0 when nothing is worth reusing.
        depth: layers to reuse (d), 0 exactly when cut is 0.
        kv_pages: int32 [bands(depth), cut / page_size], page ids per band. Read-only for the caller.
        boundary_pages: int32 [cut / page_size], states that enter layer `depth`; empty when depth is num_layers.
        node: the node that the cut ends in; None when cut is 0.
        locked: whether the caller holds its lock.
        generation: the node's, to detect that it gave up pages since.
    """

    namespace: Namespace
    num_tokens: int
    cut: int
    depth: int
    kv_pages: Pages
    boundary_pages: Pages
    node: Node | None
    generation: int = 0
    locked: bool = field(default=False)

    @property
    def token_layers(self) -> int:
        """Token-layers that the cut saves."""
        return self.cut * self.depth


# Token ids as bytes, int32 in machine order: of a node, or a caller's array, seen and not copied.
TokenBytes = bytes | memoryview

INT32 = np.dtype(np.int32)
NO_PAGES = np.empty(0, dtype=np.int32)
NO_KV = np.empty((0, 0), dtype=np.int32)
NO_PAGES.flags.writeable = False
NO_KV.flags.writeable = False


def walk(root: Node, tokens: TokenBytes, page_bytes: int) -> tuple[list[Node], int]:
    """Nodes along the longest common prefix of `tokens` (whole pages), and how many bytes of the last one agree.

    Nodes at level 0 (kept only while they are locked) hold nothing and end the walk.
    """
    path: list[Node] = []
    children = root.children
    common = at = 0
    end = len(tokens)
    while at < end:
        child = children.get(bytes(tokens[at : at + page_bytes]))
        if child is None or not child.level:
            break
        path.append(child)
        held = child.tokens
        common = len(held)
        # bytes.startswith takes any buffer and compares it where it lies.
        if not (at + common <= end and held.startswith(cast(bytes, tokens[at : at + common]))):
            common = common_bytes(child, tokens, at, page_bytes)
            break
        at += common
        children = child.children
    return path, common


def common_bytes(node: Node, tokens: TokenBytes, at: int, page_bytes: int) -> int:
    """Bytes of `node.tokens` that `tokens` from `at` on agrees with, in whole pages; the first page is known to.

    Halves the stretch in question with a `memcmp` each time: of a long node hardly more is read than its tokens once.
    """
    held = node.tokens
    size = len(held)
    if at + size <= len(tokens) and held.startswith(cast(bytes, tokens[at : at + size])):
        return size
    same, limit = 1, min(size, len(tokens) - at) // page_bytes
    while same < limit:
        middle = (same + limit + 1) // 2
        start, stop = same * page_bytes, middle * page_bytes
        if held.startswith(cast(bytes, tokens[at + start : at + stop]), start):
            same = middle
        else:
            limit = middle - 1
    return same * page_bytes


def best_cut(
    path: list[Node], matched: int, config: TreeConfig, profile: "DepthProfile | None", total_tokens: int
) -> tuple[int, int, int]:
    """The cut of `matched` tokens that saves the most token-layers: (tokens, level, number of nodes used).

    Between two nodes of a path only the depth along the path changes, and the profile's depth does not fall with
    the length; so the best cut ends where a node's match ends, and only those ends are tried. Of equal cuts the
    longer one wins.
    """
    best = (0, 0, 0)
    best_saved = 0
    levels = config.levels
    for index, node in enumerate(path):
        length = min(node.end, matched)
        level = node.level
        if profile is not None:
            level = min(level, config.level_at[profile.depth(length / total_tokens)])
        saved = length * levels[level]
        if level and saved >= best_saved:
            best = (length, level, index + 1)
            best_saved = saved
    return best


def gather(path: list[Node], level: int, cut_pages: int, config: TreeConfig) -> tuple[Pages, Pages]:
    """Page ids of the first `cut_pages` pages of `path` at `level`: (kv [bands, pages], boundary [pages] or empty)."""
    bands = config.bands_at[level]
    row = level - 1 if config.levels[level] < config.num_layers else -1
    first = path[0]
    kv, boundary = NO_KV, NO_PAGES
    if len(path) == 1:
        if first.kv is not None:
            kv = first.kv if first.level == level else first.kv[:bands]
        if row >= 0 and first.boundary is not None:
            # A copy, since runners hand it on to libraries that don't take read-only arrays.
            boundary = first.boundary[row].copy()
        if first.num_pages == cut_pages:
            return kv, boundary
        return kv[:, :cut_pages], boundary[:cut_pages]
    if first.kv is not None:
        kv = np.concatenate(
            [node.kv if node.level == level else node.kv[:bands] for node in path if node.kv is not None], axis=1
        )
    if row >= 0 and first.boundary is not None:
        boundary = np.concatenate([node.boundary[row] for node in path if node.boundary is not None])
    if path[-1].end > cut_pages * config.page_size:
        return kv[:, :cut_pages], boundary[:cut_pages]
    return kv, boundary


def as_token_bytes(tokens: npt.ArrayLike) -> TokenBytes:
    """Token ids as int32 bytes. Raises InvalidArgumentError (field "tokens") for anything but a list of int32 values.

    Of an int32 array it returns a view: copy it to keep it longer than one call.
    """
    array = tokens if isinstance(tokens, np.ndarray) else np.asarray(tokens)
    if array.ndim != 1:
        raise InvalidArgumentError("tokens", f"must have one dimension, got shape {array.shape}")
    if not array.size:
        return b""
    if array.dtype == INT32:
        return array.data.cast("B") if array.flags.c_contiguous else array.tobytes()
    if array.dtype.kind not in "iu":
        raise InvalidArgumentError("tokens", f"must be integers, got {array.dtype}")
    if int(array.min()) < -(2**31) or int(array.max()) >= 2**31:
        raise InvalidArgumentError("tokens", f"must fit 32 bits, got {array.min()}..{array.max()}")
    return array.astype(np.int32).tobytes()


def cut_node(match: Match) -> tuple[Node, int]:
    """The node that the cut (> 0) ends in, now, and the tokens before it: a split may have left `match.node` behind."""
    node = match.node
    assert node is not None
    start = node.end - node.num_tokens
    while start >= match.cut and node.parent is not None and not node.parent.is_root:
        node = node.parent
        start -= node.num_tokens
    return node, start


def still_valid(match: Match, config: TreeConfig) -> bool:
    """Whether the tree still holds every page of the match (whose cut is > 0) where it was."""
    path: list[Node] = []
    node = match.node
    while node is not None and not node.is_root:
        path.append(node)
        node = node.parent
    level = config.level_of(match.depth)
    if node is None or path[0].level < level:
        return False
    path.reverse()
    kv, boundary = gather(path, level, match.cut // config.page_size, config)
    return np.array_equal(kv, match.kv_pages) and np.array_equal(boundary, match.boundary_pages)
