"""Namespaces: what may share with what."""

from typing import NamedTuple


class Namespace(NamedTuple):
    """Two requests share cached prefixes only when their namespaces are equal.

    `salt` is the client's `cache_salt`; `capture` the kind of forward that the KVs come from ("first", "alone",
    "final"): KVs from different kinds of context must not be mixed along one path.
    """

    salt: str = ""
    capture: str = "first"
