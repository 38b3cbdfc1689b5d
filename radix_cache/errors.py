"""Errors of the radix cache: one base class, so that a caller can tell its own mistakes from ours."""


class RadixCacheError(Exception):
    """Base of every error that this package raises on purpose."""


class InvalidArgumentError(RadixCacheError, ValueError):
    """An argument is outside its limits. `field` names it."""

    def __init__(self, field: str, problem: str):
        super().__init__(f"{field}: {problem}")
        self.field = field


class ProfileError(RadixCacheError, ValueError):
    """A depth profile is malformed or belongs to another model. `field` names what is wrong."""

    def __init__(self, field: str, problem: str):
        super().__init__(f"depth profile: {field}: {problem}")
        self.field = field


class OutOfPagesError(RadixCacheError):
    """A pool has fewer free pages than asked for; nothing was allocated."""

    def __init__(self, needed: int, free: int):
        super().__init__(f"{needed} pages needed, {free} free")
        self.needed = needed
        self.free = free


class PageReferenceError(RadixCacheError):
    """Page ids that are foreign to the pool, free already, or stored twice."""


class LockError(RadixCacheError):
    """A match was locked twice, or unlocked without a lock, or belongs to another tree."""


class StaleMatchError(RadixCacheError):
    """Between match and lock the tree gave up pages of the match: match again."""


class TreeInUseError(RadixCacheError):
    """A flush was refused because running requests hold `locks` locks in its scope."""

    def __init__(self, locks: int):
        super().__init__(f"flush refused: {locks} locked matches in its scope (flush with defer=True drops the rest)")
        self.locks = locks


class InvariantError(RadixCacheError):
    """`check_invariants` found the data structure broken: our own mistake, never the caller's."""
