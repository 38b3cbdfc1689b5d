"""Chooses the attention kernel of a GPU: the one for Hopper GPUs where it fits, else the portable one."""

from __future__ import annotations

import logging
import os

from torch import OutOfMemoryError, Tensor

from .batch import AttentionBatch

HOPPER_VARIABLE = "SHOAL_HOPPER_ATTENTION"
"""0 in the environment turns the kernel for Hopper GPUs off."""

_hopper_missing = False
logger = logging.getLogger(__name__)


def attention_gpu(
    q: Tensor, layer_pages: Tensor, band: int, batch: AttentionBatch, *, num_splits: int = 1,
    fresh_kv: tuple[Tensor, Tensor] | None = None, fresh_only: bool = False, out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`attention` in Triton. Long queries take the kernel for Hopper GPUs if this GPU and this Triton have it."""
    group = q.shape[1] // layer_pages.shape[3]
    long = num_splits == 1 and q.shape[0] * group > 64 * batch.num_requests
    if long and _hopper_fits(q, layer_pages, fresh_kv, fresh_only):
        from .hopper_triton import attention_hopper

        try:
            return attention_hopper(q, layer_pages, band, batch, fresh_kv=fresh_kv, fresh_only=fresh_only, out=out)
        except OutOfMemoryError:
            raise
        except Exception as error:  # a launch fails when it is compiled; what else is wrong, the other kernel meets too
            _without_hopper("compile", error)
    from .triton import attention_triton

    return attention_triton(q, layer_pages, band, batch, num_splits=num_splits, fresh_kv=fresh_kv, out=out)


def _hopper_fits(q: Tensor, layer_pages: Tensor, fresh_kv: tuple[Tensor, Tensor] | None, fresh_only: bool) -> bool:
    """Whether the kernel for Hopper GPUs loads and takes these arguments."""
    if not (q.is_cuda or q.is_meta) or _hopper_missing or os.environ.get(HOPPER_VARIABLE) == "0":
        return False
    try:
        from .hopper_triton import hopper_fits
    except Exception as error:
        _without_hopper("load", error)
        return False
    return hopper_fits(q, layer_pages, fresh_kv, fresh_only)


def _without_hopper(what: str, error: Exception) -> None:
    """Use the portable kernel from now on. Gluon is experimental: names may differ in another Triton."""
    global _hopper_missing
    _hopper_missing = True
    words = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    logger.warning("the attention kernel for Hopper GPUs does not %s (%s); the portable one runs", what, words)
