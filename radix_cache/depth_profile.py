"""Depth profiles: how many layers of a shared prefix are safe to reuse at a given prefix ratio."""

import json
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from .errors import ProfileError

FORMAT = "shoal-depth-profile"
VERSION = 2
READABLE_VERSIONS = (1, 2)
DEFAULT_REUSE_MARGIN = 16
CAPTURES = ("first", "alone", "final")

# Layers, and percent : depth. LLaDA's and Dream's: published runs of the paper's profiler on the real checkpoints
# (prefix-alone capture, cosine 0.97). a2d's: answers of `text` (docs/text.md), measured from 30 % on.
_BUILTIN: dict[str, tuple[int, tuple[tuple[int, int], ...]]] = {
    "llada": (
        32,
        (
            *((5, 2), (10, 3), (13, 5), (15, 7), (20, 8), (21, 9), (30, 10), (49, 11), (54, 13), (66, 14)),
            *((68, 15), (73, 16), (87, 17), (93, 18), (95, 19), (97, 20), (98, 22)),
        ),
    ),
    "dream": (
        28,
        (
            *((9, 2), (10, 4), (19, 5), (32, 6), (47, 7), (56, 8), (63, 9), (76, 12), (85, 13), (86, 14)),
            *((92, 16), (94, 17), (95, 18)),
        ),
    ),
    "a2d": (30, ((10, 2), (20, 4), (30, 6))),
}
# Of models that nobody has profiled: at no ratio deeper than any of the tables above.
_UNKNOWN_RATIO, _UNKNOWN_SHARE = 0.3, 7


@dataclass(frozen=True)
class DepthProfile:
    """Monotone table from prefix ratio (shared prefix tokens / (prompt + canvas tokens)) to a safe depth.

    Args:
        num_layers: layers of the model it belongs to.
        table: (ratio, depth) pairs, ratios in [0, 1] strictly ascending, depths in [0, num_layers] never descending.
        capture: the forward whose KVs were measured: "first", "alone" or "final".
        refresh_interval: NFE between prefix refreshes; None: once per request.
        intervals: the same for each row of the table; empty: `refresh_interval` everywhere.
        reuse_margin: tokens at the end of what a prompt shares with the cache that are computed afresh.
        max_drift: largest relative error of cached keys or values, in a band of a page run, that was seen where reuse
            was safe; an audit calls more than that drift. None when it was not measured.
        tolerance: the limit that the table keeps, in units of `metric`; None when it was not measured.
        metric: what was measured, for instance "cosine" or "agreement".
        data_digest: digest of the data it was measured on; empty when unknown.
        model_digest: digest of the model it was measured on; empty when unknown.
        versions: versions of the software that measured it.
        source: where it comes from, in words.

    Raises ProfileError (with `.field`) when the values contradict each other.
    """

    num_layers: int
    table: tuple[tuple[float, int], ...]
    capture: str = "first"
    refresh_interval: int | None = None
    intervals: tuple[int | None, ...] = ()
    reuse_margin: int = DEFAULT_REUSE_MARGIN
    max_drift: float | None = None
    tolerance: float | None = None
    metric: str = ""
    data_digest: str = ""
    model_digest: str = ""
    versions: Mapping[str, str] = field(default_factory=dict, hash=False)
    source: str = ""

    def __post_init__(self) -> None:
        _check_int("num_layers", self.num_layers, 1)
        if self.capture not in CAPTURES:
            raise ProfileError("capture", f"must be one of {', '.join(CAPTURES)}, got {self.capture!r}")
        for interval in (self.refresh_interval, *self.intervals):
            if interval is not None:
                _check_int("refresh_interval", interval, 1)
        _check_int("reuse_margin", self.reuse_margin, 0)
        if self.tolerance is not None and not _is_number(self.tolerance):
            raise ProfileError("tolerance", f"must be a number or null, got {self.tolerance!r}")
        if self.max_drift is not None and not (_is_number(self.max_drift) and 0 <= self.max_drift < float("inf")):
            raise ProfileError("max_drift", f"must be a number of at least 0 or null, got {self.max_drift!r}")
        for name in ("metric", "data_digest", "model_digest", "source"):
            if not isinstance(getattr(self, name), str):
                raise ProfileError(name, f"must be a string, got {getattr(self, name)!r}")
        if not isinstance(self.versions, Mapping) or not all(
            isinstance(key, str) and isinstance(value, str) for key, value in self.versions.items()
        ):
            raise ProfileError("versions", "must map strings to strings")
        object.__setattr__(self, "table", _checked_table(self.table, self.num_layers))
        object.__setattr__(self, "intervals", tuple(self.intervals))
        if self.intervals and len(self.intervals) != len(self.table):
            rows, given = len(self.table), len(self.intervals)
            raise ProfileError("intervals", f"must have one entry for each of {rows} rows, got {given}")
        if len(set(self.intervals)) == 1:
            object.__setattr__(self, "refresh_interval", self.intervals[0])
            object.__setattr__(self, "intervals", ())

    @cached_property
    def _ratios(self) -> tuple[float, ...]:
        return tuple(ratio for ratio, _ in self.table)

    def depth(self, ratio: float) -> int:
        """Depth of the largest table ratio that is <= `ratio`; 0 below the first."""
        row = bisect_right(self._ratios, ratio)
        return self.table[row - 1][1] if row else 0

    def interval(self, ratio: float) -> int | None:
        """NFE between prefix refreshes at a ratio, from the same row as its depth; None: once per request."""
        row = bisect_right(self._ratios, ratio)
        return self.intervals[max(0, row - 1)] if self.intervals else self.refresh_interval

    @property
    def refreshes(self) -> bool:
        """Whether any row refreshes the prefix more than once per request."""
        return any(interval is not None for interval in (self.intervals or (self.refresh_interval,)))

    def capped(self, depth: int) -> "DepthProfile":
        """The same profile with no depth above `depth`."""
        return replace(self, table=tuple((ratio, min(own, depth)) for ratio, own in self.table))

    @property
    def max_depth(self) -> int:
        """The largest depth that it can choose; captures need not go deeper."""
        return self.table[-1][1] if self.table else 0

    @property
    def depths(self) -> tuple[int, ...]:
        """Distinct depths it can choose in (0, num_layers): where boundary states are needed. Ascending."""
        return tuple(sorted({depth for _, depth in self.table if 0 < depth < self.num_layers}))

    def floor_to(self, layers_per_band: int) -> "DepthProfile":
        """The same profile with depths rounded down to whole bands (a depth of all layers stays).

        Rows that then repeat the depth before them are left out, so that `depths` stays short.
        """
        _check_int("layers_per_band", layers_per_band, 1)
        rows: list[tuple[float, int]] = []
        intervals: list[int | None] = []
        for ratio, depth in self.table:
            whole = depth if depth == self.num_layers else depth // layers_per_band * layers_per_band
            interval = self.interval(ratio)
            if (whole, interval) != ((rows[-1][1], intervals[-1]) if rows else (0, interval)):
                rows.append((ratio, whole))
                intervals.append(interval)
        return replace(self, table=tuple(rows), intervals=tuple(intervals))

    @classmethod
    def constant(cls, depth: int, num_layers: int, *, capture: str = "first") -> "DepthProfile":
        """The same depth at every ratio; depth = num_layers is what an autoregressive server does."""
        return cls(num_layers=num_layers, table=((0.0, depth),), capture=capture, source=f"constant depth {depth}")

    @classmethod
    def builtin(cls, architecture: str, num_layers: int) -> "DepthProfile":
        """The table for "llada", "dream" or "a2d", scaled to `num_layers` (depths rounded down).

        Two are derived from published profiles of LLaDA-8B-Instruct (32 layers) and Dream-7B-Instruct (28 layers) with
        prefix-alone capture; capture from a first forward drifts less, so they err on the safe side. That of a2d
        models is what look-up questions bear in `text` (30 layers).
        """
        try:
            layers, rows = _BUILTIN[architecture]
        except KeyError:
            raise ProfileError(
                "architecture", f"no built-in table for {architecture!r}, only for {', '.join(_BUILTIN)}"
            ) from None
        _check_int("num_layers", num_layers, 1)
        table = tuple((percent / 100, depth * num_layers // layers) for percent, depth in rows)
        return cls(
            num_layers=num_layers,
            table=table,
            tolerance=None if architecture == "a2d" else 0.97,
            metric="look-up of `text`" if architecture == "a2d" else "cosine",
            source=f"built-in table for {architecture}, scaled from {layers} layers; not measured on this model",
        )

    @classmethod
    def conservative(cls, num_layers: int) -> "DepthProfile":
        """For a model of which nothing is known: a seventh of its layers from a prefix ratio of 0.3 on."""
        _check_int("num_layers", num_layers, 1)
        depth = num_layers // _UNKNOWN_SHARE
        source = f"conservative table: {depth} of {num_layers} layers from a prefix ratio of {_UNKNOWN_RATIO}"
        return cls(
            num_layers=num_layers,
            table=((_UNKNOWN_RATIO, depth),),
            source=f"{source}; not measured on this model",
        )

    def to_json(self) -> dict[str, Any]:
        """The content of a `depth_profile.json`; `from_json` undoes it."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "num_layers": self.num_layers,
            "table": [[ratio, depth, self.interval(ratio)] for ratio, depth in self.table],
            "capture": self.capture,
            "reuse_margin": self.reuse_margin,
            "max_drift": self.max_drift,
            "tolerance": self.tolerance,
            "metric": self.metric,
            "data_digest": self.data_digest,
            "model_digest": self.model_digest,
            "versions": dict(self.versions),
            "source": self.source,
        }

    @classmethod
    def from_json(cls, data: Any, *, num_layers: int | None = None, model_digest: str | None = None) -> "DepthProfile":
        """Build a profile from parsed JSON; unknown versions and keys are refused.

        With `num_layers` or `model_digest` given, a profile that belongs to another model is refused too (a profile
        without a digest passes the latter).
        """
        if not isinstance(data, dict):
            raise ProfileError("format", f"must be a JSON object, got {type(data).__name__}")
        rest = dict(data)
        if (found := rest.pop("format", None)) != FORMAT:
            raise ProfileError("format", f"must be {FORMAT!r}, got {found!r}")
        if (version := rest.pop("version", None)) not in READABLE_VERSIONS or isinstance(version, bool):
            known = " or ".join(map(str, READABLE_VERSIONS))
            raise ProfileError("version", f"must be {known}, got {version!r}: written by another version of shoal?")
        for name in ("num_layers", "table"):
            if name not in rest:
                raise ProfileError(name, "is missing")
        own = {"intervals", "refresh_interval"} if version > 1 else {"intervals", "reuse_margin", "max_drift"}
        unknown = sorted(set(rest) - (set(cls.__dataclass_fields__) - own))
        if unknown:
            raise ProfileError(unknown[0], f"is not a field of version {version}")
        if version > 1:
            rest["table"], rest["intervals"] = _split_rows(rest["table"])
        profile = cls(**rest)
        if num_layers is not None and profile.num_layers != num_layers:
            raise ProfileError("num_layers", f"the model has {num_layers}, the profile {profile.num_layers}")
        if model_digest and profile.model_digest and profile.model_digest != model_digest:
            raise ProfileError("model_digest", f"the model has {model_digest}, the profile {profile.model_digest}")
        return profile

    @classmethod
    def load(
        cls, path: str | Path, *, num_layers: int | None = None, model_digest: str | None = None
    ) -> "DepthProfile":
        """Read a `depth_profile.json`; the checks of `from_json` apply."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ProfileError("file", f"{path} is not JSON: {error}") from error
        return cls.from_json(data, num_layers=num_layers, model_digest=model_digest)

    def save(self, path: str | Path) -> None:
        """Write a `depth_profile.json`."""
        Path(path).write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_int(name: str, value: Any, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ProfileError(name, f"must be an integer of at least {low}, got {value!r}")


def _split_rows(table: Any) -> tuple[list[Any], tuple[Any, ...]]:
    """Rows [ratio, depth, refresh interval] of a version 2 file as rows [ratio, depth], and the intervals."""
    if not isinstance(table, list) or not all(isinstance(row, list) and len(row) == 3 for row in table):
        raise ProfileError("table", f"must be a list of [ratio, depth, refresh interval or null], got {table!r}")
    return [row[:2] for row in table], tuple(row[2] for row in table)


def _checked_table(table: Any, num_layers: int) -> tuple[tuple[float, int], ...]:
    if not isinstance(table, list | tuple):
        raise ProfileError("table", f"must be a list of [ratio, depth], got {table!r}")
    rows: list[tuple[float, int]] = []
    for row in table:
        if not isinstance(row, list | tuple) or len(row) != 2:
            raise ProfileError("table", f"must be a list of [ratio, depth], got row {row!r}")
        ratio, depth = row
        if not _is_number(ratio) or not 0 <= ratio <= 1:
            raise ProfileError("table", f"ratio must be in [0, 1], got {ratio!r}")
        if not isinstance(depth, int) or isinstance(depth, bool) or not 0 <= depth <= num_layers:
            raise ProfileError("table", f"depth must be an integer in [0, {num_layers}], got {depth!r}")
        if rows and ratio <= rows[-1][0]:
            raise ProfileError("table", f"ratios must ascend, got {ratio} after {rows[-1][0]}")
        if rows and depth < rows[-1][1]:
            raise ProfileError("table", f"depths must not descend, got {depth} after {rows[-1][1]}")
        rows.append((float(ratio), depth))
    return tuple(rows)
