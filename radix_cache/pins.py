"""Pinned prefixes: cached prompts that stay until they are unpinned."""

from collections.abc import Collection

from .errors import LockError
from .match import walk
from .node import Namespace, Node
from .storage import Storage


class Pins:
    """Which prefixes are pinned, by the tokens that were asked for. Each pin counts on every node up to the root."""

    def __init__(self, storage: Storage):
        self._storage = storage
        self._held: dict[tuple[Namespace, bytes], tuple[Node, int]] = {}

    def pin(self, tokens: bytes, namespace: Namespace) -> int:
        """Pin the cached prefix of `tokens` (whole pages); return its length in tokens, 0 when nothing is cached."""
        storage = self._storage
        held = self._held.get((namespace, tokens))
        if held is not None:
            node, count = held
        else:
            root = storage.roots.get(namespace)
            path, common = walk(root, tokens, storage.page_bytes) if root is not None else ([], 0)
            if not path:
                return 0
            node, count = path[-1], 0
            if common < len(node.tokens):
                node = storage.split(node, common // storage.page_bytes)
        storage.hold(node, False)
        self._held[namespace, tokens] = (node, count + 1)
        return node.end

    def unpin(self, tokens: bytes, namespace: Namespace) -> None:
        """Undo one `pin` of the same tokens. Raises LockError when there is none."""
        held = self._held.pop((namespace, tokens), None)
        if held is None:
            raise LockError("these tokens are not pinned")
        node, count = held
        if count > 1:
            self._held[namespace, tokens] = (node, count - 1)
        self._storage.unhold(node, False)

    def drop(self, namespaces: Collection[Namespace]) -> None:
        """Forget all pins in `namespaces`."""
        for key in [key for key in self._held if key[0] in namespaces]:
            node, count = self._held.pop(key)
            for _ in range(count):
                self._storage.unhold(node, False)

    def holders(self) -> list[tuple[Node, int]]:
        """(node, pins) of each."""
        return list(self._held.values())
