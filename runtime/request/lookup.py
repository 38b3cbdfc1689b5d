"""What a prompt would reuse, looked up without running it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CacheLookup:
    """A dry run of admission.

    Attributes:
        prompt_tokens: length of the prompt; `total_tokens` with the canvas, as far as it exists at the start.
        cached_tokens: leading prompt tokens that are in the tree, whole pages.
        cut, depth: tokens and layers that the request would reuse; 0 and 0: nothing.
        num_layers: of the model.
    """

    prompt_tokens: int
    total_tokens: int
    cached_tokens: int
    cut: int
    depth: int
    num_layers: int
