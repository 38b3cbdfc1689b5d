"""Which slice of each tensor a rank of a model holds. Imports no torch."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from ..errors import ConfigError
from .config import ModelConfig

_BY_OUTPUTS = frozenset({"q", "k", "v", "gate", "up"})
_BY_INPUTS = frozenset({"attention_out", "down"})


class Slice(NamedTuple):
    """Elements [start, stop) of a tensor along dimension `dim`."""

    dim: int
    start: int
    stop: int

    def of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The slice's shape in a tensor of this shape."""
        return (*shape[: self.dim], self.stop - self.start, *shape[self.dim + 1 :])


def check_tp_size(model: ModelConfig, size: int) -> None:
    """Raise ConfigError, naming `tp_size`, when a model can't be split over `size` ranks."""
    for name in ("num_kv_heads", "num_heads", "intermediate_size", "hidden_size"):
        value = getattr(model, name)
        if value % size:
            message = f"tp_size is {size}; it must divide the model's {name} = {value}"
            raise ConfigError(message, field="tp_size", value=size, limit=f"a divisor of {value}")


def config_of_rank(model: ModelConfig, size: int) -> ModelConfig:
    """The shapes of one rank's layers: its heads, and its share of every MLP. Raises as `check_tp_size` does."""
    if size == 1:
        return model
    check_tp_size(model, size)
    return replace(
        model, num_heads=model.num_heads // size, num_kv_heads=model.num_kv_heads // size,
        intermediate_size=model.intermediate_size // size,
    )  # fmt: skip


def slice_of(part: str, shape: tuple[int, ...], rank: int, size: int) -> Slice | None:
    """The slice of a rank in a layer's weight ([out, in]) or bias ([out]); None: it holds the whole tensor.

    `part` is a field of `WeightNames`: `q`, `down` and so on.
    """
    if size == 1 or part not in _BY_OUTPUTS | _BY_INPUTS:
        return None
    dim = int(part in _BY_INPUTS)
    length = shape[dim] // size
    return Slice(dim, rank * length, (rank + 1) * length)
