"""Which implementation of a kernel runs: Triton on CUDA tensors, the torch reference on all others.

That is the backend `auto`, the default. `reference` or `triton` for every tensor is chosen for the whole process by
the environment variable SHOAL_KERNELS, read at the first call, or by `set_backend`. Triton is imported when one of its
kernels is first called, never before. It needs CUDA tensors, or its interpreter (TRITON_INTERPRET=1 in the environment
before Triton is imported).
"""

from __future__ import annotations

import logging
import os

from torch import OutOfMemoryError, Tensor

from .attention.batch import AttentionBatch
from .attention.groups import SharedGroups
from .attention.reference import attention_reference
from .layers.embed import embed_reference
from .layers.kv_write import rope_write_kv_reference
from .layers.rms_norm import rms_norm_reference
from .layers.row_norm import RowNorm
from .layers.swiglu import swiglu_reference
from .sampling.block_confidence import block_confidence_reference
from .sampling.canvas_state import CanvasState
from .sampling.commit import commit_reference
from .sampling.confidence import Confidence, confidence_reference
from .sampling.masked_rows import MaskedRows, masked_rows_reference

VARIABLE = "SHOAL_KERNELS"
HOPPER_VARIABLE = "SHOAL_HOPPER_ATTENTION"
"""0 in the environment: long queries on sm_90 do not take the kernel that is written for it."""
BACKENDS = ("auto", "reference", "triton")

_chosen: str | None = None
_hopper_missing = False
logger = logging.getLogger(__name__)


def set_backend(name: str | None) -> None:
    """Use the backend `name` from now on in this process; None means: as the environment says. ValueError else."""
    global _chosen
    _chosen = None if name is None else _checked(name)


def backend() -> str:
    """`auto`, `reference` or `triton`."""
    global _chosen
    if _chosen is None:
        _chosen = _checked(os.environ.get(VARIABLE, "auto"))
    return _chosen


def _checked(name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"kernel backend {name!r}: choose from {', '.join(BACKENDS)} ({VARIABLE} or set_backend)")
    return name


def uses_triton(x: Tensor) -> bool:
    """Whether Triton is to work on x. RuntimeError if it is but can not."""
    if backend() == "auto":
        return x.is_cuda
    if backend() == "reference":
        return False
    if not x.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(f"the kernel backend is triton, which needs CUDA tensors, not {x.device}")
    return True


def embed(table: Tensor, tokens: Tensor, slots: Tensor, requests: Tensor, positions: Tensor) -> Tensor:
    """Contract: `embed_reference`."""
    if not uses_triton(table):
        return embed_reference(table, tokens, slots, requests, positions)
    from .layers.embed_triton import embed_triton

    return embed_triton(table, tokens, slots, requests, positions)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Contract: `rms_norm_reference`."""
    if not uses_triton(x):
        return rms_norm_reference(x, weight, eps)
    from .layers.rms_norm_triton import rms_norm_triton

    return rms_norm_triton(x, weight, eps)


def swiglu(gate_up: Tensor, norm: RowNorm | None = None) -> Tensor:
    """Contract: `swiglu_reference`."""
    if not uses_triton(gate_up):
        return swiglu_reference(gate_up, norm)
    from .layers.swiglu_triton import swiglu_triton

    return swiglu_triton(gate_up, norm=norm)


def rope_write_kv(
    q: Tensor, k: Tensor, v: Tensor, cos_table: Tensor, sin_table: Tensor, positions: Tensor, rows: Tensor,
    batch: AttentionBatch, band: int, layer_pages: Tensor, *, q_out: Tensor | None = None, k_out: Tensor | None = None,
    norm: RowNorm | None = None, bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Contract: `rope_write_kv_reference`."""
    arguments = (q, k, v, cos_table, sin_table, positions, rows, batch, band, layer_pages)
    if not uses_triton(q):
        return rope_write_kv_reference(*arguments, q_out=q_out, k_out=k_out, norm=norm, bias=bias)
    from .layers.kv_write_triton import rope_write_kv_triton

    return rope_write_kv_triton(*arguments, q_out=q_out, k_out=k_out, norm=norm, bias=bias)


def attention(
    q: Tensor, layer_pages: Tensor, band: int, batch: AttentionBatch, *, num_splits: int = 1,
    fresh_kv: tuple[Tensor, Tensor] | None = None, out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Contract: `attention_reference`; the Triton kernel cuts each request's keys into num_splits parts."""
    if not uses_triton(q):
        return attention_reference(q, layer_pages, band, batch, fresh_kv=fresh_kv, out=out)
    group = q.shape[1] // layer_pages.shape[3]
    if num_splits == 1 and q.shape[0] * group > 64 * batch.num_requests and _hopper_fits(q, layer_pages, fresh_kv):
        from .attention.hopper_triton import attention_hopper

        try:
            return attention_hopper(q, layer_pages, band, batch, fresh_kv=fresh_kv, out=out)
        except OutOfMemoryError:
            raise
        except Exception as error:  # a launch fails when it is compiled; what else is wrong, the other kernel meets too
            _without_hopper("compile", error)
    from .attention.triton import attention_triton

    return attention_triton(q, layer_pages, band, batch, num_splits=num_splits, fresh_kv=fresh_kv, out=out)


def _hopper_fits(q: Tensor, layer_pages: Tensor, fresh_kv: tuple[Tensor, Tensor] | None) -> bool:
    """Whether the kernel for Hopper GPUs is there and can do it."""
    if not q.is_cuda or _hopper_missing or os.environ.get(HOPPER_VARIABLE) == "0":
        return False
    try:
        from .attention.hopper_triton import hopper_fits
    except Exception as error:
        _without_hopper("load", error)
        return False
    return hopper_fits(q, layer_pages, fresh_kv)


def _without_hopper(what: str, error: Exception) -> None:
    """From now on the portable kernel alone. Gluon is experimental: in another Triton things may be named otherwise."""
    global _hopper_missing
    _hopper_missing = True
    words = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    logger.warning("the attention kernel for Hopper GPUs does not %s (%s); the portable one runs", what, words)


def shared_attention(
    q: Tensor, layer_pages: Tensor, band: int, batch: AttentionBatch, groups: SharedGroups, *, num_splits: int = 1,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`attention`, in which the Triton kernels read the keys that requests share once a group."""
    if not uses_triton(q):
        return attention_reference(q, layer_pages, band, batch, out=out)
    from .attention.shared_triton import shared_attention_triton

    return shared_attention_triton(q, layer_pages, band, batch, groups, num_splits=num_splits, out=out)


def confidence(logits: Tensor) -> Confidence:
    """Contract: `confidence_reference`; the Triton kernel breaks ties of the best token towards the lower id."""
    if not uses_triton(logits):
        return confidence_reference(logits)
    from .sampling.confidence_triton import confidence_triton

    return confidence_triton(logits)


def masked_rows(
    state: CanvasState, batch: AttentionBatch, first_positions: Tensor, capacity: int, shift: int = 0
) -> MaskedRows:
    """Contract: `masked_rows_reference`."""
    if not uses_triton(state.tokens):
        return masked_rows_reference(state, batch, first_positions, capacity, shift)
    from .sampling.masked_rows_triton import masked_rows_triton

    return masked_rows_triton(state, batch, first_positions, capacity, shift)


def block_confidence(
    logits: Tensor, state: CanvasState, masked: MaskedRows, *, impossible_token: int | None = None, draw: bool = True
) -> Confidence:
    """Contract: `block_confidence_reference`."""
    if not uses_triton(logits):
        return block_confidence_reference(logits, state, masked, impossible_token=impossible_token, draw=draw)
    from .sampling.confidence_triton import block_confidence_triton

    return block_confidence_triton(logits, state, masked, impossible_token=impossible_token, draw=draw)


def commit(
    state: CanvasState, batch: AttentionBatch, masked: MaskedRows, confidence: Confidence, vocabulary: int
) -> None:
    """Contract: `commit_reference`."""
    if not uses_triton(state.tokens):
        return commit_reference(state, batch, masked, confidence, vocabulary)
    from .sampling.commit_triton import commit_triton

    return commit_triton(state, batch, masked, confidence, vocabulary)
