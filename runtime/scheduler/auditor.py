"""Watches drift while serving: chooses the hits to audit, and acts on the findings. Imports no torch."""

from __future__ import annotations

import logging
import random
from collections import deque
from typing import Any

import numpy as np

from ...radix_cache.match import Match
from ...radix_cache.node import Node
from ..config import DEFAULT_DIVERGENCE
from ..request.forward import AuditReport
from ..request.request import Request
from .memory import Memory
from .modes import MODES

logger = logging.getLogger(__name__)

DEFAULT_TOLERANCE = 0.25
"""Relative error of keys and values where a cosine of 0.97 (the published profiles' limit) lies: sqrt(2 (1 - 0.97))."""
PROFILE_SLACK = 1.5
"""A profile's largest harmless error comes from its data; other data may have somewhat larger ones."""

_WINDOW = 16  # the latest audits; while they found nothing every second one compares no predictions, which takes the
# layers above the reused ones
_FINDINGS = 2  # audits in the window that must have found drift or other predictions below a depth, and
_SHARE = 0.25  # more than this share of them, before nothing is reused to that depth any more
_PREDICTIONS = 64  # the latest audits that compared predictions; a rarer loss shows in these
_DIFFERENCES = 4  # of them with other predictions below a depth have the same consequence


class Auditor:
    """Chooses the hits to audit and acts on what audits find.

    Drift past the tolerance lowers the valid depth of the audited prefix's nodes to the first band that drifted.
    Predictions differ when KL(without the cache || with it) at any mask of the first block is above `divergence`: then
    the audit bears out the next lower depth alone. When more than a quarter of the latest 16 audits find either below
    some depth, or four of the latest 64 find other predictions, the profile itself is too deep: then no prefix is
    reused deeper than the audits bear out (`depth_limit`), until the engine is started again. That goes on from each
    depth to the next. Every audit compares predictions until the latest 16 have found nothing; then every second one
    does, until one finds something.

    Args:
        memory: has the tree, and the profile that limits matches.
        rate: share of hits to audit, 0 to 1.
        tolerance: largest relative error of a band's keys and values over a page; None: PROFILE_SLACK times what the
            profile measured, else DEFAULT_TOLERANCE.
        divergence: bound on the KL divergence of a mask's predictions, in nats. At a bound of 0.1 a token that one of
            the two distributions gives at least 0.9 (the default threshold) has at least 0.72 in the other: both
            predict what either would commit. For probabilities a without the cache and b with it the divergence is
            at least a log(a / b) + (1 - a) log((1 - a) / (1 - b)), whatever the other tokens have.
        seed: of the choice.
    """

    def __init__(
        self, memory: Memory, rate: float = 0.0, tolerance: float | None = None,
        divergence: float = DEFAULT_DIVERGENCE, seed: int = 0,
    ):  # fmt: skip
        self._memory = memory
        self._rate = rate
        self._draw = random.Random(f"audit-{seed}")
        profile = memory.profile
        measured = None if profile.max_drift is None else max(1e-3, PROFILE_SLACK * profile.max_drift)
        self.tolerance = tolerance if tolerance is not None else measured or DEFAULT_TOLERANCE
        self.divergence = divergence
        self.depth_limit: int | None = None
        self._predicts = False  # whether the latest audit compares predictions
        self.predictions = self.differed = self._masks = 0
        self._divergence = self._worst_divergence = 0.0
        self.audits = self.drifted = self.compared = self.agreed = self.shrunk_nodes = 0
        bands = memory.config.num_bands
        self._errors, self._cosines, self._counts = np.zeros(bands), np.zeros(bands), np.zeros(bands, np.int64)
        self._window: deque[int] = deque(maxlen=_WINDOW)  # depths that the latest audits bear out
        self._predicted: deque[int] = deque(maxlen=_PREDICTIONS)  # and those that predictions alone bear out

    def wants(self, request: Request) -> tuple[int, bool]:
        """Layers to audit of a request that is about to have its first forward, and whether to compare predictions.

        0 layers: do not audit it.
        """
        if not self._rate or MODES[request.spec.cache_mode].captures != "prompt" or not request.tally.cached_tokens:
            return 0, False
        if self._draw.random() >= self._rate:
            return 0, False
        clean = len(self._window) == _WINDOW and min(self._window) == self._memory.config.num_layers
        self._predicts = not clean or not self._predicts
        return request.tally.depth, self._predicts

    def record(self, request: Request, match: Match, report: AuditReport) -> None:
        """Take an audit's report into account; `match` is what the request reused (it may have been unlocked since)."""
        bands = len(report.errors)
        self.audits += 1
        self.compared += report.compared
        self.agreed += report.agreed
        self._errors[:bands] += report.errors.max(axis=1, initial=0.0)
        self._cosines[:bands] += report.cosines
        self._counts[:bands] += 1
        config = self._memory.config
        safe = borne_out = self._safe_depth(report.errors, match.depth)
        if report.divergences is not None and len(report.divergences):
            differ = self._compare(report.divergences)
            lower = config.levels[max(0, config.level_of(match.depth) - 1)]
            self._predicted.append(lower if differ else config.num_layers)
            if differ:  # then this depth is too deep, however small the drift
                borne_out = min(safe, lower)
        self._window.append(borne_out if borne_out < match.depth else config.num_layers)
        if safe < match.depth:
            self._found(request, match, report, safe)
        if borne_out < match.depth:
            self._limit()

    def _compare(self, divergences: np.ndarray[Any, Any]) -> bool:
        """Whether predictions differ: some mask's divergence is above the bound (or is no number)."""
        worst = float(divergences.max())
        differ = not worst <= self.divergence
        self.predictions += 1
        self.differed += differ
        self._masks += len(divergences)
        self._divergence += float(divergences.sum())
        self._worst_divergence = max(self._worst_divergence, worst)
        return differ

    def _found(self, request: Request, match: Match, report: AuditReport, safe: int) -> None:
        """Drift past the tolerance."""
        self.drifted += 1
        self._shrink(match, report.errors)
        logger.info(
            "audit of request %s: cached prefix of %d tokens drifted: depth %d is safe, %d was used; "
            "error by band: %s, tolerance %.3f, tokens agreed: %d of %d",
            request.rid, match.cut, safe, match.depth, np.round(report.errors.max(axis=1), 3).tolist(), self.tolerance,
            report.agreed, report.compared,
        )  # fmt: skip

    def numbers(self) -> dict[str, Any]:
        """The audit's fields of SchedulerStats."""
        seen = self._counts > 0
        counts = np.maximum(self._counts, 1)
        return {
            "audits": self.audits,
            "audits_drifted": self.drifted,
            "audit_tokens": self.compared,
            "audit_tokens_agreed": self.agreed,
            "audit_predictions": self.predictions,
            "audits_differed": self.differed,
            "audit_divergence": self._divergence / self._masks if self._masks else None,
            "audit_worst_divergence": self._worst_divergence if self._masks else None,
            "audit_nodes_shrunk": self.shrunk_nodes,
            "audit_depth_limit": self.depth_limit,
            "audit_band_errors": tuple((self._errors / counts)[seen].tolist()),
            "audit_band_cosines": tuple((self._cosines / counts)[seen].tolist()),
        }

    def _safe_depth(self, errors: np.ndarray[Any, Any], depth: int) -> int:
        """The level below the first band with an error over the tolerance; `depth` when there is none."""
        bad = np.flatnonzero((errors > self.tolerance).any(axis=1))
        if not len(bad):
            return depth
        config = self._memory.config
        return config.levels[config.level_of(min(depth, int(bad[0]) * config.layers_per_band))]

    def _shrink(self, match: Match, errors: np.ndarray[Any, Any]) -> None:
        """Lower each node of the match to the depth that its own pages bear, and its descendants with it."""
        tree, page_size = self._memory.tree, self._memory.config.page_size
        path: list[Node] = []
        node = match.node
        while node is not None and not node.is_root:
            path.append(node)
            node = node.parent
        for node in reversed(path):
            if node.parent is None:  # dropped meanwhile
                continue
            start, stop = (node.end - node.num_tokens) // page_size, min(node.end, match.cut) // page_size
            safe = self._safe_depth(errors[:, start:stop], match.depth)
            if safe < match.depth and node.level > self._memory.config.level_of(safe):
                tree.shrink(node, safe)
                self.shrunk_nodes += 1

    def _limit(self) -> None:
        """Lower `depth_limit` to the deepest level that enough of the latest audits bear out."""
        config = self._memory.config
        top = config.num_layers if self.depth_limit is None else self.depth_limit
        levels = [level for level in config.levels if level <= top]
        for level in reversed(levels):
            findings = sum(safe < level for safe in self._window)
            often = findings >= _FINDINGS and findings > _SHARE * len(self._window)
            if not often and sum(safe < level for safe in self._predicted) < _DIFFERENCES:
                break
        if level >= min(top, self._memory.profile.max_depth):
            return
        self.depth_limit = level
        self._memory.reuse_profile = self._memory.profile.capped(level)
        self._window.clear()
        self._predicted.clear()
        logger.warning(
            "too many of the latest audits found drift, or other predictions, past depth %d: no prefix is reused "
            "deeper from now on. The depth profile (%s) does not fit: run `shoal profile` on data like what is served.",
            level, self._memory.profile.source or "without a source",
        )  # fmt: skip
