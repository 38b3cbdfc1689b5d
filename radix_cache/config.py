"""The shape of a tree: page size, bands and the levels at which a prefix can be left."""

from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import NamedTuple

from .errors import InvalidArgumentError
from .eviction_policy import EVICTION_POLICIES


class Levels(NamedTuple):
    """What follows from layers, bands and boundary depths: see `TreeConfig`."""

    levels: tuple[int, ...]
    bands_at: tuple[int, ...]
    boundaries_at: tuple[int, ...]
    level_at: tuple[int, ...]


DEFAULT_LAYERS_PER_BAND = 4


@lru_cache(maxsize=64)
def _levels(num_layers: int, layers_per_band: int, boundary_depths: tuple[int, ...]) -> Levels:
    levels = (0, *boundary_depths, num_layers)
    stored = len(boundary_depths)
    return Levels(
        levels,
        tuple(-(-depth // layers_per_band) for depth in levels),
        tuple(min(level, stored) for level in range(len(levels))),
        tuple(bisect_right(levels, depth) - 1 for depth in range(num_layers + 1)),
    )


@dataclass(frozen=True)
class TreeConfig:
    """What every node of one tree has in common.

    Args:
        page_size: token positions in a page.
        num_layers: layers of the model.
        layers_per_band: layers that are paged together. The last band may be short.
        boundary_depths: ascending depths (whole bands, below num_layers) at which boundary states are stored.
        policy: eviction policy, one of `EVICTION_POLICIES`.
        kv_page_bytes, boundary_page_bytes: sizes of the two kinds of page. Only their ratio matters to the policy
            `cost`; absolute values show in snapshots. The default is the ratio of LLaDA with four layers per band.

    A request can resume from a prefix only at a depth with boundary states, or use all layers. These depths are the
    tree's *levels*: `levels[0]` is 0, the last one num_layers. A node's valid depth is always one of them; deeper
    bands of a capture would be memory that no request can use.
    """

    page_size: int
    num_layers: int
    layers_per_band: int = DEFAULT_LAYERS_PER_BAND
    boundary_depths: tuple[int, ...] = ()
    policy: str = "lru"
    kv_page_bytes: int = 8
    boundary_page_bytes: int = 1
    levels: tuple[int, ...] = field(init=False, repr=False, compare=False)
    bands_at: tuple[int, ...] = field(init=False, repr=False, compare=False)
    boundaries_at: tuple[int, ...] = field(init=False, repr=False, compare=False)
    level_at: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("page_size", "num_layers", "layers_per_band", "kv_page_bytes", "boundary_page_bytes"):
            if getattr(self, name) < 1:
                raise InvalidArgumentError(name, f"must be at least 1, got {getattr(self, name)}")
        if self.policy not in EVICTION_POLICIES:
            raise InvalidArgumentError("policy", f"must be one of {', '.join(EVICTION_POLICIES)}, got {self.policy!r}")
        object.__setattr__(self, "boundary_depths", tuple(int(depth) for depth in self.boundary_depths))
        for low, high in zip((0, *self.boundary_depths), self.boundary_depths, strict=False):
            if high <= low or high >= self.num_layers or high % self.layers_per_band:
                raise InvalidArgumentError(
                    "boundary_depths",
                    f"must ascend in whole bands of {self.layers_per_band} layers below {self.num_layers}, "
                    f"got {self.boundary_depths}",
                )
        derived = _levels(self.num_layers, self.layers_per_band, self.boundary_depths)
        object.__setattr__(self, "levels", derived.levels)
        object.__setattr__(self, "bands_at", derived.bands_at)
        object.__setattr__(self, "boundaries_at", derived.boundaries_at)
        object.__setattr__(self, "level_at", derived.level_at)

    @cached_property
    def layers_per_byte(self) -> tuple[float, ...]:
        """[levels]: layers that a level adds to the one below, per byte of the pages that it adds.

        Of a level these are the bands above the level below, and the boundary states that enter the layer behind it.
        Both grow with the tokens, which cancel.
        """
        values = [0.0]
        for level in range(1, len(self.levels)):
            layers = self.levels[level] - self.levels[level - 1]
            kv = (self.bands_at[level] - self.bands_at[level - 1]) * self.kv_page_bytes
            states = (self.boundaries_at[level] - self.boundaries_at[level - 1]) * self.boundary_page_bytes
            values.append(layers / (kv + states))
        return tuple(values)

    @cached_property
    def num_bands(self) -> int:
        """Bands that the whole model needs."""
        return self.bands(self.num_layers)

    def bands(self, depth: int) -> int:
        """Bands that hold `depth` layers."""
        return -(-depth // self.layers_per_band)

    def level_of(self, depth: int) -> int:
        """Index of the deepest level that is not below layer `depth` (level_of(levels[i]) == i)."""
        return self.level_at[depth]

    def check_depth(self, depth: int) -> None:
        """Raise InvalidArgumentError unless `depth` is in [0, num_layers] and whole bands (or all layers)."""
        if not 0 <= depth <= self.num_layers:
            raise InvalidArgumentError("depth", f"must be in [0, {self.num_layers}], got {depth}")
        if depth % self.layers_per_band and depth != self.num_layers:
            raise InvalidArgumentError("depth", f"must be whole bands of {self.layers_per_band} layers, got {depth}")
