"""Scores of given answers: how probable a diffusion model finds each of several choices behind a prompt.

A masked diffusion model has no probability of a text read from left to right. It has, for every masked position, a
distribution over tokens given everything around it. Take a choice c of n tokens on a canvas of L positions: the longest
choice and at least one position more, in whole blocks, with masks behind the choice. The score of its token i is

    pseudo     log p(c_i | prompt, c without c_i, masks behind): of c only position i is masked; n forwards a choice,
               fewer where choices differ in one position only
    one_shot   log p(c_i | prompt, L masks): one forward for all choices

with p the softmax over the vocabulary without the mask token. Their sum is the pseudo-log-likelihood of Salazar et al.,
arXiv 1910.14659 (`pseudo`), and what the first denoising step believes (`one_shot`): comparable between choices, and no
log-probability of the text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import InvalidRequestError, RequestAbortedError, shorten
from .output import RequestOutput

ScoreMethod = Literal["pseudo", "one_shot"]
SCORE_METHODS: tuple[ScoreMethod, ...] = ("pseudo", "one_shot")
MAX_CHOICES = 256
MAX_POSITIONS = 1 << 26
"""Most token positions, prompt and canvas over all forwards, of one call to an engine: minutes on a fast GPU."""


@dataclass(frozen=True, slots=True)
class ChoiceScore:
    """One choice: its tokens and, for each, the score (a natural logarithm, at most 0)."""

    token_ids: tuple[int, ...]
    token_scores: tuple[float, ...]

    @property
    def total(self) -> float:
        """Sum over the tokens."""
        return sum(self.token_scores)

    @property
    def mean(self) -> float:
        """Mean over the tokens: the score by which choices of different lengths are compared."""
        return self.total / len(self.token_scores)


@dataclass(frozen=True, slots=True)
class ScoreOutput:
    """Scores of all choices, in order, and the work they took: sums over all requests, a warm-up of the prompt included
    (so the prompt's tokens count once for each)."""

    choices: tuple[ChoiceScore, ...]
    method: ScoreMethod
    prompt_tokens: int
    nfe: int
    cached_tokens: int
    reused_token_layers: int
    computed_token_layers: int

    @property
    def best(self) -> int:
        """Index of the choice with the highest mean; of equals the first."""
        return max(range(len(self.choices)), key=lambda index: (self.choices[index].mean, -index))


class ScorePlan:
    """The canvases that score some choices, and the merge of their results.

    Canvases are made when they are asked for, so that a plan stays as small as its choices.

    Args:
        choices: token ids of each choice.
        method: one of SCORE_METHODS.
        block_length: the canvas's length is a multiple of it.
        prompt_tokens: length of the prompt.
        max_forwards: most forwards that the choices may take, shared ones counted for each.
        max_positions: most token positions (prompt and canvas) of these forwards together.

    Raises InvalidRequestError for an unknown method, no choices, one without tokens, and past any limit, before
    anything of the size of the work is made.
    """

    def __init__(
        self, choices: Sequence[Sequence[int]], method: str, block_length: int, *, prompt_tokens: int = 0,
        max_forwards: int | None = None, max_positions: int = MAX_POSITIONS,
    ):  # fmt: skip
        if method not in SCORE_METHODS:
            limit = ", ".join(SCORE_METHODS)
            raise InvalidRequestError(f"method is {shorten(method)}; it must be one of {limit}", field="method",
                                      value=method, limit=limit)  # fmt: skip
        if not 1 <= len(choices) <= MAX_CHOICES:
            message = f"choices has {len(choices)} entries; it must have from 1 to {MAX_CHOICES}"
            raise InvalidRequestError(message, field="choices", value=len(choices), limit=MAX_CHOICES)
        for index, choice in enumerate(choices):
            if not len(choice):
                message = f"choices[{index}] is empty; it must have at least one token"
                raise InvalidRequestError(message, field="choices", value=choice, limit=1)
        self.method: ScoreMethod = method
        self.canvas_length = (max(map(len, choices)) // block_length + 1) * block_length
        self._check_cost(choices, prompt_tokens, max_forwards, max_positions)
        self._choices = [tuple(int(token) for token in choice) for choice in choices]
        self.targets: list[list[tuple[int, int]]] = []
        self._where: list[list[tuple[int, int]]] = []
        self._made_of: list[tuple[int, int]] = []  # the choice that a canvas holds, and the position it leaves out
        index_of: dict[bytes, int] = {}
        for number, choice in enumerate(self._choices):
            where = []
            canvas = np.array(choice, np.int64)
            for position, token in enumerate(choice):
                at = index_of.setdefault(self._digest(canvas, position), len(self.targets))
                if at == len(self.targets):
                    self._made_of.append((number, position))
                    self.targets.append([])
                where.append((at, len(self.targets[at])))
                self.targets[at].append((position, token))
            self._where.append(where)

    def _check_cost(
        self, choices: Sequence[Sequence[int]], prompt_tokens: int, max_forwards: int | None, max_positions: int
    ) -> None:
        forwards = sum(map(len, choices)) if self.method == "pseudo" else 1
        if max_forwards is not None and forwards > max_forwards:
            message = (
                f"choices has {forwards} tokens in {len(choices)} entries, and method 'pseudo' takes a forward pass "
                f"for each; at most {max_forwards} are taken in one request (max_score_forwards): score fewer at a time"
            )
            raise InvalidRequestError(message, field="choices", value=forwards, limit=max_forwards)
        each = prompt_tokens + self.canvas_length
        if forwards * each > max_positions:
            message = (
                f"choices takes {forwards} forward passes over {each} tokens each, {forwards * each} token positions; "
                f"at most {max_positions} are taken in one request (max_request_tokens): score fewer at a time"
            )
            raise InvalidRequestError(message, field="choices", value=forwards * each, limit=max_positions)

    def _digest(self, choice: npt.NDArray[np.int64], position: int) -> bytes:
        """A digest of the canvas of a choice without the token at `position`, or of masks alone."""
        if self.method == "one_shot":
            return b""
        token, choice[position] = choice[position], -1
        digest = hashlib.blake2b(choice.tobytes(), digest_size=32).digest()
        choice[position] = token
        return digest

    @property
    def num_forwards(self) -> int:
        """Scoring requests, of one forward each."""
        return len(self.targets)

    def canvas(self, index: int) -> list[int]:
        """The canvas of scoring request `index`: token ids, -1 for masks. Its targets are `targets[index]`."""
        number, position = self._made_of[index]
        choice = self._choices[number]
        canvas = [-1] * self.canvas_length
        if self.method == "pseudo":
            canvas[: len(choice)] = choice
            canvas[position] = -1
        return canvas

    @property
    def needs_warm_up(self) -> bool:
        """Whether to compute the prompt on its own first, because several requests share it."""
        return self.num_forwards > 1

    def gather(self, outputs: Sequence[RequestOutput], warm_up: Sequence[RequestOutput]) -> ScoreOutput:
        """The scores out of the outputs of the scoring requests, in their order.

        Raises RequestAbortedError when one of the requests was aborted.
        """
        every = [*warm_up, *outputs]
        if any(output.finish_reason == "abort" for output in every):
            raise RequestAbortedError("the request was aborted before all choices were scored", field="rid")
        return ScoreOutput(
            tuple(
                ChoiceScore(choice, tuple(outputs[canvas].scores[target] for canvas, target in where))
                for choice, where in zip(self._choices, self._where, strict=True)
            ),
            self.method,
            *(
                sum(getattr(output, name) for output in every)
                for name in ("prompt_tokens", "nfe", "cached_tokens", "reused_token_layers", "computed_token_layers")
            ),
        )


def choice_tokens(choices: Any, encode: Any) -> list[list[int]]:
    """Token ids of choices that are texts (`encode` gives their ids) or token ids.

    Raises InvalidRequestError for what is neither.
    """
    if not isinstance(choices, Sequence) or isinstance(choices, str | bytes):
        message = f"choices is {shorten(choices)}; it must be a list of texts or of token ids"
        raise InvalidRequestError(message, field="choices", value=choices)
    tokens = []
    for index, choice in enumerate(choices):
        if isinstance(choice, str):
            tokens.append(list(encode(choice)))
        elif isinstance(choice, Sequence) and all(isinstance(t, int) and not isinstance(t, bool) for t in choice):
            tokens.append(list(choice))
        else:
            message = f"choices[{index}] is {shorten(choice)}; it must be text or token ids"
            raise InvalidRequestError(message, field="choices", value=choice)
    return tokens
