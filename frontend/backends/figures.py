"""The figures of an output that programs report."""

from __future__ import annotations

from typing import Any

FIGURES = (
    "prompt_tokens", "completion_tokens", "cached_tokens", "depth", "nfe", "reused_token_layers",
    "computed_token_layers",
)  # fmt: skip


def figures_of(output: Any) -> dict[str, Any]:
    """Those of FIGURES that an output (an object or a mapping) has."""
    if isinstance(output, dict):
        return {name: output[name] for name in FIGURES if name in output}
    return {name: getattr(output, name) for name in FIGURES if hasattr(output, name)}
