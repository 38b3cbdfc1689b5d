"""Which masks of one request become which tokens after a forward, by its own rules of logits, grammar and guidance."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import EngineError
from ...grammar.state import GrammarState
from ...request.forward import AddRequest
from ..canvas import Canvas, Tokens
from ..executor import Ran
from ..grammars import Grammars
from ..logprobs import logprobs_of
from .commit_rules import Stability, by_entropy_bound, by_stability, decayed_threshold
from .logit_rules import LogitRules
from .sampler import choose_commits, choose_tokens, entropies
from .structured import choose_run


class _Chosen(NamedTuple):
    """Indices (int64 [n], sorted) of the masks to commit, their tokens (int64 [n]) and confidences (fp32 [n]).

    `entropy`: the largest entropy of one of these tokens, in nats, if the request has `refresh_entropy`.
    """

    indices: Tensor
    tokens: Tensor
    confidences: Tensor
    entropy: float = 0.0


@dataclass(frozen=True, slots=True)
class Chooser:
    """Chooses the commits of one request.

    Attributes:
        rules: change its logits.
        grammar: what its text must satisfy; None: it is free.
        generator: of its draws.
        stability: how its distributions move from pass to pass, for `kl_threshold`.
    """

    rules: LogitRules
    grammar: GrammarState | None
    generator: torch.Generator
    stability: Stability = field(default_factory=Stability)

    @classmethod
    def of(cls, message: AddRequest, eos: int, grammars: Grammars) -> Chooser:
        """The chooser of a request; `eos` is EOS as config.json has it."""
        rules = LogitRules(message.sampling, eos, message.end_ids, message.stop_ids)
        return cls(rules, grammars.open(message), torch.Generator().manual_seed(message.seed))

    def commit(self, canvas: Canvas, positions: Tokens, logits: Tensor, prompt: Tensor) -> tuple[Ran, Tensor, Tensor]:
        """Choose among the masks of the current block.

        Args:
            positions: int64 [masks], theirs in the whole sequence.
            logits: [masks, vocab].
            prompt: int64 [prompt tokens], on the logits' device.

        Returns the item's result, and what the caller writes to its copy of the sequence: positions and tokens, int64
        [n] each, on the logits' device. They are empty, and the result says so, where logits give no probabilities.
        """
        try:
            chosen = self._choose(canvas, positions, logits, prompt)
        except EngineError:
            none = torch.empty(0, dtype=torch.int64, device=logits.device)
            return Ran(finite=False), none, none
        committed = positions[chosen.indices.cpu().numpy()]
        block = canvas.block_tokens().copy()
        block[committed - canvas.block[0]] = chosen.tokens.cpu().numpy()
        logprobs = logprobs_of(logits[chosen.indices], chosen.tokens, canvas.sampling.logprobs)
        ran = Ran(
            block=block, confidences=chosen.confidences.tolist() if canvas.marks else (), logprobs=logprobs,
            entropy=chosen.entropy,
        )  # fmt: skip
        return ran, torch.from_numpy(committed).to(logits.device), chosen.tokens

    def _choose(self, canvas: Canvas, positions: Tokens, logits: Tensor, prompt: Tensor) -> _Chosen:
        """As `commit`. Raises EngineError for logits that give no probabilities."""
        changed = self.rules.apply(logits, positions - canvas.prompt_length, prompt, canvas.tokens)
        entropy = entropies(changed) if canvas.sampling.wants_entropy else None
        if self.grammar is not None:
            tokens, confidence = choose_run(changed, canvas, positions, self.grammar, self.generator)
            chosen = torch.arange(len(tokens), device=tokens.device)
        else:
            token, confidence = choose_tokens(changed, canvas.sampling, self.generator)
            confidence = self.rules.last(token, confidence)
            chosen = self._commits(canvas, positions, changed, confidence, entropy)
            tokens, confidence = token[chosen], confidence[chosen]
        most = 0.0 if entropy is None or not len(chosen) else float(entropy[chosen].max())
        return _Chosen(chosen, tokens, confidence, most)

    def _commits(
        self, canvas: Canvas, positions: Tokens, logits: Tensor, confidence: Tensor, entropy: Tensor | None
    ) -> Tensor:
        """Indices of the masks to commit, by the request's rule."""
        params, step = canvas.sampling, canvas.block_step
        if params.entropy_bound is not None and entropy is not None:
            return by_entropy_bound(entropy, params.entropy_bound)
        threshold = decayed_threshold(params, len(positions), canvas.block_masks)
        if params.kl_threshold is not None:
            passes = self.stability.passes(canvas.block, positions, logits, params.kl_threshold)
            return by_stability(confidence, passes >= params.kl_history, threshold)
        return choose_commits(confidence, params, canvas.due(step), self.generator, canvas.share(step), threshold)


def guided(logits: Tensor, without_prompt: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance as LLaDA's published generation has it (arXiv 2502.09992, 2410.18514), fp32.

    Both are [masks, vocab], of the sequence and of the one with its prompt masked; -inf stays -inf.
    """
    logits, without_prompt = logits.float(), without_prompt.float()
    found = without_prompt + (scale + 1) * (logits - without_prompt)
    return found.masked_fill(logits == -torch.inf, -torch.inf)
