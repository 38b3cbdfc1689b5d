"""Decoding parameters of one request: canvas, blocks, which masks to commit when, and when to stop."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

from ...kernels.sampling.strategies import STRATEGIES
from ..checks import PARAMETER
from ..errors import InvalidRequestError, shorten
from ..nearest_name import did_you_mean

MAX_STOP_STRINGS = 16
MAX_STOP_TOKEN_IDS = 1024
DEFAULT_THRESHOLD = 0.9
DEFAULT_MAX_NEW_TOKENS = 1024
"""Canvas of a request that names none, where generation_config.json says nothing; or what fits, if that is less."""
RULES = ("steps", "threshold", "factor")
"""What decides how many masks a forward commits: one of them."""
MAX_TEMPERATURE = 1e30
"""Above, noise times temperature overflows fp32. All tokens are equally probable long before."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Decoding parameters of one request; checked on construction (InvalidRequestError names the field).

    Attributes:
        max_new_tokens: canvas length. 0 computes and caches the prompt and generates nothing.
        block_length: canvas positions decoded together; the last block is shorter where it does not divide
            max_new_tokens. None: the engine's default.
        steps: fixed quota: forward passes for the whole canvas, spread evenly over its blocks, early ones first; each
            commits its share of the block's masks. A block takes at least one, and at most one a mask.
        threshold: commit every mask whose confidence is at least this, at least one a pass (Fast-dLLM).
        factor: commit the n most confident masks as long as the n-th has confidence >= 1 - factor / (n + 1)
            (Fast-dLLM), at least one a pass. Where one mask of the block would be left, it is committed too.
            At most one of steps, threshold and factor; without any, threshold = 0.9.
        strategy: what confidence is: `low_confidence` (probability of the chosen token), `margin` (probability of
            the best token less that of the second), `entropy` (1 - entropy / log vocabulary) or `random`.
        temperature: 0 takes the most probable token; above, tokens are drawn with Gumbel noise.
        seed: of the draws; the same seed gives the same tokens whatever else runs. None draws one.
        stop: strings (or one string) that end the text; they are not part of it. One that spells a special token is
            that token. Kept as a tuple.
        stop_token_ids: at most 1,024 token ids that end the text, beside the model's own. Kept as a tuple.
        ignore_eos: go on to the end of the canvas; the model's ends and stop_token_ids are then ordinary tokens.
        split_special_tokens: of a prompt that is text: encode what spells a special token as ordinary text (True), or
            as that token (False); None: the engine's default. Contents of messages are always ordinary text.
    """

    max_new_tokens: int = 128
    block_length: int | None = None
    steps: int | None = None
    threshold: float | None = None
    factor: float | None = None
    strategy: str = "low_confidence"
    temperature: float = 0.0
    seed: int | None = None
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    split_special_tokens: bool | None = None

    def __new__(cls, *args: Any, **options: Any) -> Any:
        """Raises InvalidRequestError, with the nearest name, for an unknown argument."""
        for name in options:
            if name not in cls.__dataclass_fields__:
                message = f"{name} is no sampling parameter{did_you_mean(name, cls.__dataclass_fields__)}"
                known = tuple(cls.__dataclass_fields__)
                raise InvalidRequestError(message, field=name, value=options[name], limit=known)
        return object.__new__(cls)

    def __post_init__(self) -> None:
        for name in ("stop", "stop_token_ids"):
            value = getattr(self, name)
            if value is None:
                value = ()
            elif isinstance(value, str):
                value = (value,)
            elif not isinstance(value, Sequence | Set):
                PARAMETER.refuse(name, value, "a list")
            most = {"stop": MAX_STOP_STRINGS, "stop_token_ids": MAX_STOP_TOKEN_IDS}[name]
            if len(value) > most:
                message = f"{name} has {len(value)} entries; it must have at most {most}"
                raise InvalidRequestError(message, field=name, value=len(value), limit=most)
            object.__setattr__(self, name, tuple(value))
        PARAMETER.integer("max_new_tokens", self.max_new_tokens, 0)
        for name in ("block_length", "steps"):
            if getattr(self, name) is not None:
                PARAMETER.integer(name, getattr(self, name), 1)
        chosen = [name for name in RULES if getattr(self, name) is not None]
        if len(chosen) > 1:
            field, value, limit = chosen[1], getattr(self, chosen[1]), "at most one of steps, threshold, factor"
            message = f"{field} is {shorten(value)}, but {chosen[0]} is given too; a request takes {limit}"
            raise InvalidRequestError(message, field=field, value=value, limit=limit)
        if self.threshold is not None:
            PARAMETER.number("threshold", self.threshold, 0.0, 1.0, above=True)
        if self.factor is not None:
            PARAMETER.number("factor", self.factor, 0.0, above=True)
        PARAMETER.number("temperature", self.temperature, 0.0, MAX_TEMPERATURE)
        PARAMETER.one_of("strategy", self.strategy, STRATEGIES)
        if self.seed is not None:
            PARAMETER.integer("seed", self.seed, 0)
        for text in self.stop:
            if not isinstance(text, str) or not text:
                PARAMETER.refuse("stop", text, "strings of at least one character")
        for token in self.stop_token_ids:
            PARAMETER.integer("stop_token_ids", token, 0)
        PARAMETER.flag("ignore_eos", self.ignore_eos)
        if self.split_special_tokens is not None:
            PARAMETER.flag("split_special_tokens", self.split_special_tokens)

    def blocks(self, default_block_length: int) -> tuple[tuple[int, int], ...]:
        """(start, stop) of each block in canvas positions."""
        size = self.block_length or default_block_length
        return tuple((at, min(at + size, self.max_new_tokens)) for at in range(0, self.max_new_tokens, size))

    def steps_of_block(self, index: int, blocks: int) -> int | None:
        """Forward passes for block `index` of so many; None: there is no quota."""
        if self.steps is None:
            return None
        return max(1, self.steps // blocks + (index < self.steps % blocks))
