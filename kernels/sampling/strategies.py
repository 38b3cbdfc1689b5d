"""Names of the confidences by which masks are committed; kernels know each by its place here. Imports no torch."""

from __future__ import annotations

STRATEGIES = ("low_confidence", "margin", "entropy", "random")
"""Probability of the chosen token, its lead over the second, 1 - entropy / log vocabulary, or a random number."""
