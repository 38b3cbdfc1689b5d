"""What a request makes of logits before anything is chosen by them: penalties, biases, and tokens that are impossible.

Repetition penalty: arXiv 1909.05858, over the prompt and what is committed. Presence and frequency penalties: OpenAI's
API, over what is committed. A diffusion model commits in any order, so "committed" is wherever in the canvas.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...request.sampling_params import SamplingParams

Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LogitRules:
    """The rules of one request.

    Attributes:
        params: its decoding parameters.
        eos: EOS as config.json has it.
        end_ids: all tokens that end the model's texts.
        stop_ids: those that end this text.
    """

    params: SamplingParams
    eos: int
    end_ids: frozenset[int]
    stop_ids: frozenset[int]

    def apply(self, logits: Tensor, places: Tokens, prompt: Tensor, canvas: Tokens) -> Tensor:
        """Logits [masks, vocab] by the rules, fp32; the same tensor when there are none.

        Args:
            places: int64 [masks], canvas positions of the rows.
            prompt: int64 [prompt tokens], on the logits' device.
            canvas: int64 [canvas length], -1 where a mask is.
        """
        params = self.params
        if not params.changes_logits:
            return logits
        logits = logits.float().clone()
        width = logits.shape[-1]
        committed = torch.from_numpy(canvas[(canvas >= 0) & (canvas < width)]).to(logits.device)
        if params.repetition_penalty != 1:
            seen = torch.cat((prompt[prompt < width], committed)).unique()
            some = logits[:, seen]
            logits[:, seen] = torch.where(some > 0, some / params.repetition_penalty, some * params.repetition_penalty)
        if params.presence_penalty or params.frequency_penalty:
            counts = torch.bincount(committed, minlength=width)
            logits -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
        if params.biases:
            tokens, biases = zip(*params.biases, strict=True)
            logits.index_add_(1, torch.tensor(tokens, device=logits.device),
                              torch.tensor(biases, device=logits.device).expand(len(logits), -1))  # fmt: skip
        logits[:, _ids(self.end_ids, logits)] -= params.eos_penalty
        if params.logits_eos_inf:
            logits[:, _ids((self.eos,), logits)] = -torch.inf
        early = torch.from_numpy(places < params.min_tokens).to(logits.device)
        ends = _ids(self.stop_ids, logits)
        if len(ends):
            logits[:, ends] = logits[:, ends].masked_fill(early[:, None], -torch.inf)
        return logits

    def last(self, token: Tensor, confidence: Tensor) -> Tensor:
        """`confidence` [masks] of tokens [masks] with those that `confidence_eos_eot_inf` puts last at -inf."""
        if not self.params.confidence_eos_eot_inf:
            return confidence
        return confidence.masked_fill(torch.isin(token, _ids(self.end_ids, confidence)), -torch.inf)


def _ids(ids: Iterable[int], like: Tensor) -> Tensor:
    """int64 ids, sorted, as far as logits have them."""
    width = like.shape[-1] if like.dim() == 2 else None
    return torch.tensor(sorted(t for t in ids if width is None or t < width), dtype=torch.int64, device=like.device)
