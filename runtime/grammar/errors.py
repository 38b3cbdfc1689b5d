"""What is wrong with a schema or a regular expression."""

from __future__ import annotations


class GrammarError(Exception):
    """Something can't be honoured.

    Attributes:
        path: where: steps from the root, such as ("properties", "x", "pattern").
        reason: what is wrong, without the path.
    """

    def __init__(self, reason: str, path: tuple[str | int, ...] = ()):
        super().__init__(reason)
        self.reason = reason
        self.path = path
