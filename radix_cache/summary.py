"""What a tree holds, as hashes: for routers that choose among replicas by the longest cached prefix.

A hash stands for all tokens from the start of a prompt on, and for the namespace, so one lookup decides whether a
prefix is held. Hashes are 64 bits of BLAKE2b. A collision, or a summary that is out of date, sends a request to a
replica that lacks the prefix: it costs time and changes no answer, since the tree compares tokens.
"""

import hashlib
from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InvalidArgumentError
from .match import as_token_bytes
from .node import TOKEN_BYTES, Namespace, Node

Hashes = npt.NDArray[np.uint64]
HASH_BYTES = 8
_VISITS = 4
"""Nodes that a summary may look at for each hash that it may have: most nodes of a tree may be too short for one."""


def prefix_hashes(tokens: npt.ArrayLike, namespace: Namespace, stride: int) -> Hashes:
    """Hashes of the prefixes of `tokens` (integers, [n]) that have 1, 2, 3 ... times `stride` tokens.

    uint64 [n / stride], shortest first. Raises InvalidArgumentError for tokens that are no list of int32 values.
    """
    _check_stride(stride)
    data = as_token_bytes(tokens)
    step = stride * TOKEN_BYTES
    state = _seed(namespace)
    found = bytearray()
    for at in range(0, len(data) // step * step, step):
        state.update(data[at : at + step])
        found += state.digest()
    return np.frombuffer(bytes(found), "<u8")


def summarize(roots: Iterable[Node], stride: int, limit: int) -> Hashes:
    """Hashes of the prefixes below `roots` that have whole multiples of `stride` tokens.

    Sorted uint64, at most `limit` of them: those that were used last. `stride` must be whole pages, as what requests
    share is. It hashes at most `limit` x `stride` tokens and a partial stride of each node, and looks at no more than a
    few nodes for each hash.
    """
    _check_stride(stride)
    if limit < 1:
        raise InvalidArgumentError("limit", f"must be at least 1, got {limit}")
    # The number keeps the order of equal entries, and the heap from comparing nodes.
    numbers, heap = count(), list[tuple[int, int, Node, Any]]()
    for root in roots:
        seed = _seed(root.namespace)
        heap += [(-node.last_used, next(numbers), node, seed) for node in root.children.values() if node.level]
    heapify(heap)
    found, visits = bytearray(), _VISITS * limit
    while heap and visits:
        visits -= 1
        _, _, node, above = heappop(heap)
        state = above.copy()
        at, start, data = node.end - node.num_tokens, 0, memoryview(node.tokens)
        while at < node.end:
            stop = min(node.end, (at // stride + 1) * stride)
            size = (stop - at) * TOKEN_BYTES
            state.update(data[start : start + size])
            at, start = stop, start + size
            if at % stride == 0:
                found += state.digest()
                if len(found) == limit * HASH_BYTES:
                    return _sorted(found)
        for child in node.children.values():
            if child.level:
                heappush(heap, (-child.last_used, next(numbers), child, state))
    return _sorted(found)


def _seed(namespace: Namespace) -> Any:
    """The state before the first token. Lengths keep the parts apart."""
    state = hashlib.blake2b(digest_size=HASH_BYTES)
    for part in namespace:
        data = part.encode("utf-8", "surrogatepass")
        state.update(len(data).to_bytes(8, "little") + data)
    return state


def _sorted(found: bytearray) -> Hashes:
    return np.sort(np.frombuffer(bytes(found), "<u8"))


def _check_stride(stride: int) -> None:
    if stride < 1:
        raise InvalidArgumentError("stride", f"must be at least 1, got {stride}")
