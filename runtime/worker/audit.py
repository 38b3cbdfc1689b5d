"""An audit on the worker: an uncached pass over a request that reuses a prefix, compared with the reused KVs."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..model.decoder import Decoder
from ..request.forward import AuditReport, ForwardItem, StepResult
from .drift import cached_layer, cosine, relative_error, uncached_pass
from .pools import KVPool

logger = logging.getLogger(__name__)


class AuditPass:
    """The audits of one forward: `begin` before it runs, `end` with its results.

    It costs the request only time, and only reads its pages. An audit that fails (memory) is logged and dropped; the
    request goes on. Not so with ranks: the others wait for this one, so the error is raised.
    """

    def __init__(self, decoder: Decoder, kv: KVPool):
        self._decoder, self._kv = decoder, kv
        self._begun: dict[str, tuple[AuditReport, dict[int, int]]] = {}

    def begin(self, item: ForwardItem, tokens: Tensor, page_table: Tensor, masks: npt.NDArray[np.int64]) -> None:
        """Run the pass for a first forward whose `item.audit` says how many layers are reused.

        tokens int64 [prompt + canvas], page_table int64 [bands, pages], both on the decoder's device; masks int64 [n]
        are the current block's open positions, whose tokens the pass predicts if `item.audit_tokens`.
        """
        try:
            self._begun[item.rid] = self._run(item, tokens, page_table, masks)
        except Exception as error:
            if self._decoder.ranks is not None:
                raise
            logger.warning("the audit of request %s failed: %s: %s", item.rid, type(error).__name__, error)

    def end(self, result: StepResult, greedy: bool) -> None:
        """Complete the report with how many committed tokens the uncached pass predicts too, if they were not drawn."""
        if result.rid not in self._begun:
            return
        report, predicted = self._begun.pop(result.rid)
        if greedy and predicted:
            pairs = [predicted.get(p) == t for p, t in zip(result.positions, result.tokens, strict=True)]
            report.compared, report.agreed = len(pairs), sum(pairs)
        result.audit = report

    def forget(self, rid: str) -> None:
        """A request has ended; an audit whose forward failed is dropped."""
        self._begun.pop(rid, None)

    @torch.inference_mode()
    def _run(
        self, item: ForwardItem, tokens: Tensor, page_table: Tensor, positions: npt.NDArray[np.int64]
    ) -> tuple[AuditReport, dict[int, int]]:
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
            return report, {}
        logits = decoder.logits(hidden)
        logits[:, decoder.config.mask_token_id] = -torch.inf
        best = logits.argmax(-1).tolist()
        return report, dict(zip(positions.tolist(), best, strict=True))
