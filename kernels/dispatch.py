"""Which implementation of a kernel runs: the torch reference, or Triton on request.

The reference is the default on every device. Triton is chosen for the whole process by the environment variable
SHOAL_KERNELS=triton, read at the first call, or by `set_backend`; both accept `reference` too. Triton is imported when
one of its kernels is first called, never before. The Triton kernels need CUDA tensors, or Triton's interpreter
(TRITON_INTERPRET=1 in the environment before Triton is imported).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from torch import Tensor

from .confidence import Confidence, confidence_reference
from .paged_attention import paged_attention_reference, write_kv_reference
from .rms_norm import rms_norm_reference
from .rope import apply_rope_reference
from .swiglu import swiglu_reference

VARIABLE = "SHOAL_KERNELS"
BACKENDS = ("reference", "triton")

_chosen: str | None = None


def set_backend(name: str | None) -> None:
    """Use the backend `name` from now on in this process; None means: as the environment says. ValueError else."""
    global _chosen
    _chosen = None if name is None else _checked(name)


def backend() -> str:
    """`reference` or `triton`."""
    global _chosen
    if _chosen is None:
        _chosen = _checked(os.environ.get(VARIABLE, "reference"))
    return _chosen


def _checked(name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"kernel backend {name!r}: choose from {', '.join(BACKENDS)} ({VARIABLE} or set_backend)")
    return name


def _triton(x: Tensor) -> bool:
    """Whether Triton is to work on x. RuntimeError if it is but can not."""
    if backend() == "reference":
        return False
    if not x.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(f"the kernel backend is triton, which needs CUDA tensors, not {x.device}")
    return True


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Contract: `rms_norm_reference`."""
    if not _triton(x):
        return rms_norm_reference(x, weight, eps)
    from .rms_norm_triton import rms_norm_triton

    return rms_norm_triton(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(normed sum, sum) of x and residual [T, H], the sum rounded to their dtype before it is normalised."""
    if not _triton(x):
        total = x + residual
        return rms_norm_reference(total, weight, eps), total
    from .rms_norm_triton import add_rms_norm_triton

    return add_rms_norm_triton(x, residual, weight, eps)


def swiglu(gate_up: Tensor) -> Tensor:
    """Contract: `swiglu_reference`."""
    if not _triton(gate_up):
        return swiglu_reference(gate_up)
    from .swiglu_triton import swiglu_triton

    return swiglu_triton(gate_up)


def rope_write_kv(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, layer_pages: Tensor, pages: Tensor, offsets: Tensor
) -> Tensor:
    """Rotate q and k [tokens, heads or kv_heads, head_dim]; write k, rotated, and v to the pool; return the rotated q.

    Contract: `apply_rope_reference` of q and of k, then `write_kv_reference`.
    """
    if not _triton(q):
        write_kv_reference(layer_pages, apply_rope_reference(k, cos, sin), v, pages, offsets)
        return apply_rope_reference(q, cos, sin)
    from .kv_write_triton import rope_write_kv_triton

    return rope_write_kv_triton(q, k, v, cos, sin, layer_pages, pages, offsets)


def paged_attention(
    q: Tensor, layer_pages: Tensor, page_tables: Sequence[Tensor], query_lengths: Sequence[int],
    key_lengths: Sequence[int],
) -> Tensor:  # fmt: skip
    """Contract: `paged_attention_reference`. Builds the batch's tables at every call.

    A caller with many layers builds a `PagedBatch` once and calls `paged_attention_triton` itself.
    """
    if not _triton(q):
        return paged_attention_reference(q, layer_pages, page_tables, query_lengths, key_lengths)
    from .paged_attention_triton import PagedBatch, paged_attention_triton

    return paged_attention_triton(q, layer_pages, PagedBatch.build(page_tables, query_lengths, key_lengths))[0]


def confidence(logits: Tensor) -> Confidence:
    """Contract: `confidence_reference`; the Triton kernel breaks ties of the best token towards the lower id."""
    if not _triton(logits):
        return confidence_reference(logits)
    from .confidence_triton import confidence_triton

    return confidence_triton(logits)
