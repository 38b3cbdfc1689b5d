"""An audit on the worker: an uncached pass over a request that reuses a prefix, compared with its first forward."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..model.decoder import Decoder
from ..request.forward import AuditReport, ForwardItem, StepResult
from .drift import cached_layer, cosine, divergence, relative_error, uncached_pass
from .pools import KVPool

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Begun:
    """What an uncached pass found: `logits` [masks, vocab] of the open masks, and the best token of each position."""

    report: AuditReport
    logits: Tensor | None = None
    tokens: dict[int, int] = field(default_factory=dict)


class AuditPass:
    """The audits of one forward: `begin` before it runs, `compare` with its logits, `end` with its results.

    It costs the request only time, and only reads its pages. An audit that fails (memory) is logged and dropped; the
    request goes on. Not so with ranks: the others wait for this one, so the error is raised.
    """

    def __init__(self, decoder: Decoder, kv: KVPool):
        self._decoder, self._kv = decoder, kv
        self._begun: dict[str, _Begun] = {}

    def begin(self, item: ForwardItem, tokens: Tensor, page_table: Tensor, masks: npt.NDArray[np.int64]) -> None:
        """Run the pass for a first forward whose `item.audit` says how many layers are reused.

        tokens int64 [prompt + canvas], page_table int64 [bands, pages], both on the decoder's device; masks int64 [n]
        are the current block's open positions, which the pass predicts if `item.audit_tokens`.
        """
        try:
            self._begun[item.rid] = self._run(item, tokens, page_table, masks)
        except Exception as error:
            if self._decoder.ranks is not None:
                raise
            logger.warning("the audit of request %s failed: %s: %s", item.rid, type(error).__name__, error)

    def compare(self, rid: str, logits: Tensor) -> None:
        """Take the forward's own logits [masks, vocab] of the open positions; the report gets the divergences."""
        begun = self._begun.get(rid)
        if begun is None or begun.logits is None:
            return
        try:
            begun.report.divergences = divergence(begun.logits, logits).cpu().numpy()
        except torch.OutOfMemoryError as error:
            logger.warning("the audit of request %s could not compare predictions: %s", rid, error)
        begun.logits = None

    def end(self, result: StepResult, greedy: bool) -> None:
        """Complete the report with how many committed tokens the uncached pass predicts too, if they were not drawn."""
        if result.rid not in self._begun:
            return
        begun = self._begun.pop(result.rid)
        if greedy and begun.tokens:
            pairs = [begun.tokens.get(p) == t for p, t in zip(result.positions, result.tokens, strict=True)]
            begun.report.compared, begun.report.agreed = len(pairs), sum(pairs)
        result.audit = begun.report

    def forget(self, rid: str) -> None:
        """A request has ended; an audit whose forward failed is dropped."""
        self._begun.pop(rid, None)

    @torch.inference_mode()
    def _run(self, item: ForwardItem, tokens: Tensor, page_table: Tensor, positions: npt.NDArray[np.int64]) -> _Begun:
        decoder, pool = self._decoder, self._kv
        cut, page_size = item.start, pool.page_size
        errors: list[Tensor] = []
        cosines: list[Tensor] = []

        def compare(layer: int, k: Tensor, v: Tensor) -> None:
            if layer >= item.audit:
                return
            cached_k, cached_v = cached_layer(pool, page_table, layer, cut)
            if (ranks := decoder.ranks) is not None:
                cached_k, cached_v, k, v = (ranks.gather(heads, 1) for heads in (cached_k, cached_v, k[:cut], v[:cut]))
            worst = torch.maximum(
                relative_error(cached_k, k[:cut], page_size), relative_error(cached_v, v[:cut], page_size)
            )
            least = torch.minimum(cosine(cached_k, k[:cut]).mean(), cosine(cached_v, v[:cut]).mean())
            if layer % pool.layers_per_band:
                errors[-1], cosines[-1] = torch.maximum(errors[-1], worst), torch.minimum(cosines[-1], least)
            else:
                errors.append(worst)
                cosines.append(least)

        if not item.audit_tokens:
            positions = positions[:0]
        rows = torch.from_numpy(positions - int(decoder.config.shift_logits)).to(tokens.device)
        hidden = uncached_pass(
            decoder, tokens[: item.keys], compare, rows, decoder.num_layers if len(positions) else item.audit
        )
        report = AuditReport(torch.stack(errors).cpu().numpy(), torch.stack(cosines).cpu().numpy())
        if not len(positions):
            return _Begun(report)
        logits = decoder.logits(hidden)
        logits[:, decoder.config.mask_token_id] = -torch.inf
        best = logits.argmax(-1).tolist()
        return _Begun(report, logits, dict(zip(positions.tolist(), best, strict=True)))
