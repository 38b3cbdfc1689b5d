"""Decoding parameters of one request: canvas, blocks, which masks to commit when, and when to stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter, is_not
from typing import Any, cast

from ..errors import InvalidRequestError, shorten
from ..nearest_name import did_you_mean
from .parameter_checks import CHECKS

STRUCTURES = ("json_schema", "regex", "choice")
"""What says what the text must be: one of them."""
MAX_STRUCTURE = 1 << 16
"""Characters of one of them."""
_AGAINST_STRUCTURE = (
    "stop", "stop_token_ids", "ignore_eos", "min_tokens", "logits_eos_inf", "confidence_eos_eot_inf", "alg_temp",
    "threshold_decay", "kl_threshold",
)  # fmt: skip
DEFAULT_THRESHOLD = 0.9
DEFAULT_MAX_NEW_TOKENS = 1024
"""Canvas of a request that names none, where generation_config.json says nothing; or what fits, if that is less."""
DEFAULT_KL_HISTORY = 2
RULES = ("steps", "threshold", "factor", "entropy_bound")
"""What decides how many masks a forward commits: one of them."""
OF_THRESHOLD = ("threshold_decay", "kl_threshold")
"""What changes the rule `threshold`."""
MAX_TIMED_STEPS = 1 << 14
"""Most steps of a schedule that has a time for each: `linear`, or the strategy `origin`."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Decoding parameters of one request; checked on construction (InvalidRequestError names the field).

    Attributes:
        max_new_tokens: canvas length. 0 computes and caches the prompt and generates nothing.
        block_length: canvas positions decoded together; the last block is shorter where it does not divide
            max_new_tokens. None: the engine's default.
        steps: fixed quota: forward passes for the whole canvas, spread evenly over its blocks, early ones first; each
            commits its share of the block's masks. A block takes at least one, and at most one a mask. With schedule
            `linear` or strategy `origin` at most 16,384.
        canvas_window: masks that exist behind the current block; the canvas grows by a block at a time. At least
            max_new_tokens: the whole canvas exists from the start. None: the engine's default.
        refresh_schedule: what a block start computes, but for the prompt, as far as that is reused: `full`, the whole
            canvas; `settled`, the blocks that were filled since the latest refresh, the current block and what exists
            behind it. Mode `none` has no schedule. None: the engine's default.
        full_refresh_every: with the schedule `settled`, every so many block starts are `full`. None: the engine's
            default.
        refresh_entropy: bound, in nats. A block start is `full`, and in mode `bicache` a prefix refresh, when the
            entropy of any token committed since the latest refresh was above it (the idea of EntropyCache, arXiv
            2603.18489); it takes the place of refresh_interval, unless that is 1. None: the engine's default.
        threshold: commit every mask whose confidence is at least this, at least one a pass (Fast-dLLM).
        factor: commit the n most confident masks as long as the n-th has confidence >= 1 - factor / (n + 1)
            (Fast-dLLM), at least one a pass. Where one mask of the block would be left, it is committed too.
        entropy_bound: sort masks by entropy (in nats) and commit the longest prefix whose sum less its maximum is at
            most this (EB-sampler, arXiv 2505.24857), at least one a pass. It goes with no `strategy` but `entropy`.
            At most one of steps, threshold, factor and entropy_bound; without any, threshold = 0.9.
        threshold_decay: alpha, 0 to 1: the threshold is threshold * (1 - alpha * (1 - r)), r being the share of the
            block's masks that is left (Streaming-dLLM, arXiv 2601.17917).
        kl_threshold: beside the threshold, a mask is committed only if its distribution p has settled:
            KL(p_t || p_{t-1}) of consecutive passes was below this in the last kl_history passes (KLASS, arXiv
            2511.05664); where none is, the most confident mask.
        kl_history: of kl_threshold, passes of the block.
        strategy: what confidence is: `low_confidence` (probability of the chosen token; Dream calls it maskgit_plus),
            `margin` (probability of the best token less that of the second; topk_margin), `entropy`
            (1 - entropy / log vocabulary) or `random`. `origin` needs steps: each mask is committed with the
            probability 1 - s / t of Dream's schedule, whatever its confidence.
        schedule: of steps: `even` (LLaDA's: each forward of a block commits as many masks) or `linear` (Dream's; see
            `commits_of_block`). None: the model family's.
        eps: where the times of Dream's schedule end, above 0 and below 1.
        alg_temp: with steps, above 0: masks are drawn without replacement from softmax(confidence / alg_temp) (of
            `entropy` its negative in nats) in place of the most confident ones, as in Dream.
        temperature: 0 takes the most probable token; above, tokens are drawn from softmax(logits / temperature), cut by
            top_k, top_p and min_p.
        top_k: draw from so many most probable tokens; 1 is greedy; 0 or -1: from all.
        top_p: draw from the most probable tokens that together reach this probability, at temperature.
        min_p: draw from tokens at least this many times as probable as the best one, at temperature.
        ranking: which distribution confidence is of: `model` (undisturbed logits, as LLaDA does) or `sampled` (at
            temperature and cut, as Dream does). None: the model family's.
        repetition_penalty: logits of tokens in the prompt or committed are divided by it where positive, else
            multiplied (0.01 to 100); presence_penalty and frequency_penalty are subtracted from the logits of committed
            tokens, once or for each time that they are committed. Tokens committed in the same forward don't see each
            other.
        logit_bias: added to the logits of tokens, {token id: bias}; at most 1,024. Kept as pairs.
        min_tokens: tokens that end the text are impossible in so many first canvas positions.
        eos_penalty: subtracted from the logits of all tokens that end the model's texts.
        logits_eos_inf: EOS, as config.json has it, is impossible (LLaDA's evaluation).
        confidence_eos_eot_inf: masks for which a token that ends the model's texts is chosen are committed last.
        cfg_scale: w of LLaDA's classifier-free guidance, in cache mode `none` alone: each step runs a second forward
            with the prompt masked, and decodes by u + (w + 1) * (c - u) of that one's logits u and the usual ones c.
        logprobs: give with each token its natural log-probability, by the model's distribution (guided, but undisturbed
            by temperature, cuts, penalties and biases) in the forward that committed it, and those of so many (0 to
            20) most probable tokens there. None: none.
        json_schema: the text must be JSON that satisfies this schema, which is an object, or its text.
        regex: the text must match this regular expression as a whole.
        choice: the text must be one of these. At most one of json_schema, regex and choice; the text is then committed
            from left to right, and always complete: see docs/structured-output.md.
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
    canvas_window: int | None = None
    refresh_schedule: str | None = None
    full_refresh_every: int | None = None
    refresh_entropy: float | None = None
    steps: int | None = None
    threshold: float | None = None
    factor: float | None = None
    entropy_bound: float | None = None
    threshold_decay: float = 0.0
    kl_threshold: float | None = None
    kl_history: int = DEFAULT_KL_HISTORY
    strategy: str = "low_confidence"
    schedule: str | None = None
    eps: float = 1e-3
    alg_temp: float = 0.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    ranking: str | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] = ()
    min_tokens: int = 0
    eos_penalty: float = 0.0
    logits_eos_inf: bool = False
    confidence_eos_eot_inf: bool = False
    cfg_scale: float = 0.0
    logprobs: int | None = None
    json_schema: str | Mapping[str, Any] | bool | None = None
    regex: str | None = None
    choice: Sequence[str] = ()
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
        # Every process that a request passes constructs it anew, and most fields are at their defaults.
        values = _values(self)
        given = [
            (_NAMES[at], values[at])
            for at, changed in enumerate(map(is_not, values, _DEFAULTS))
            if changed and (type(values[at]) is not type(_DEFAULTS[at]) or values[at] != _DEFAULTS[at])
        ]
        for name, value in given:
            kept = CHECKS[name](name, value)
            if kept is not value:
                object.__setattr__(self, name, kept)
        if given:
            self._check_rules()
            self._check_structure()

    def changed(self, **values: Any) -> SamplingParams:
        """A copy with other values of some fields, which must be valid and as they are kept.

        For what intake fills in; `dataclasses.replace` would check all fields again.
        """
        copy: SamplingParams = object.__new__(SamplingParams)
        for keep, value in zip(_KEEP, _values(self), strict=True):
            keep(copy, value)
        for name, value in values.items():
            object.__setattr__(copy, name, value)
        return copy

    def _check_rules(self) -> None:
        """Rules, and the fields that go with some of them alone."""
        chosen = [name for name in RULES if getattr(self, name) is not None]
        if len(chosen) > 1:
            field, value, limit = chosen[1], getattr(self, chosen[1]), f"at most one of {', '.join(RULES)}"
            message = f"{field} is {shorten(value)}, but {chosen[0]} is given too; a request takes {limit}"
            raise InvalidRequestError(message, field=field, value=value, limit=limit)
        if self.entropy_bound is not None and self.strategy not in ("low_confidence", "entropy"):
            message = f"strategy is {shorten(self.strategy)}, but entropy_bound sorts masks by entropy: leave it out"
            raise InvalidRequestError(message, field="strategy", value=self.strategy, limit="entropy")
        others = [name for name in chosen if name != "threshold"]
        for name in OF_THRESHOLD:
            if getattr(self, name) and others:
                message = f"{name} is {shorten(getattr(self, name))}, which goes with a threshold, not with {others[0]}"
                raise InvalidRequestError(message, field=name, value=getattr(self, name), limit="threshold")
        if self.steps is None and (self.strategy == "origin" or self.alg_temp):
            name = "alg_temp" if self.alg_temp else "strategy"
            message = f"{name} is {shorten(getattr(self, name))}, which draws as many masks as steps allows: give steps"
            raise InvalidRequestError(message, field=name, value=getattr(self, name), limit="steps")

    def _check_structure(self) -> None:
        """What can't be had beside a field that says what the text must be."""
        given = [name for name in STRUCTURES if getattr(self, name) not in (None, ())]
        if not given:
            return
        name, value = given[-1], getattr(self, given[-1])
        if len(given) > 1:
            message = f"{name} is {shorten(value)}, but {given[0]} is given too; a request takes at most one"
            raise InvalidRequestError(message, field=name, value=shorten(value), limit=", ".join(STRUCTURES))
        size = sum(map(len, value))
        if size > MAX_STRUCTURE:
            message = f"{name} has {size} characters; it must have at most {MAX_STRUCTURE}"
            raise InvalidRequestError(message, field=name, value=size, limit=MAX_STRUCTURE)
        out = [other for other in _AGAINST_STRUCTURE if getattr(self, other)]
        out += ["strategy"] if self.strategy == "origin" else []
        out += ["entropy_bound"] if self.entropy_bound is not None else []
        for other in out:
            message = f"{other} is {shorten(getattr(self, other))}, which can't be used with {name}"
            raise InvalidRequestError(message, field=other, value=getattr(self, other), limit=name)

    @property
    def structure(self) -> str | None:
        """Which of STRUCTURES it has; None: the text is free."""
        return next((name for name in STRUCTURES if getattr(self, name) not in (None, ())), None)

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        """(token, bias) pairs of `logit_bias`."""
        return cast(tuple[tuple[int, float], ...], self.logit_bias)

    @property
    def wants_entropy(self) -> bool:
        """Whether the entropy of masks decides anything, apart from `strategy`."""
        return self.entropy_bound is not None or self.refresh_entropy is not None

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn."""
        return self.temperature > 0 and self.top_k != 1

    @property
    def passes(self) -> int:
        """Forward passes of a step."""
        return 2 if self.cfg_scale else 1

    @property
    def cuts(self) -> bool:
        """Whether top_k, top_p or min_p leave tokens out."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    @property
    def changes_logits(self) -> bool:
        """Whether logits are changed before anything else, by penalties, biases or bans."""
        return bool(
            self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty or self.logit_bias
            or self.min_tokens or self.eos_penalty or self.logits_eos_inf
        )  # fmt: skip

    @property
    def ranks_sampled(self) -> bool:
        """Whether confidence is of the distribution that tokens are drawn from, and that is another one."""
        return self.ranking == "sampled" and (self.temperature > 0 or self.cuts)

    @property
    def uses_cuts(self) -> bool:
        """Whether what top_k, top_p and min_p leave out shows in tokens or confidences."""
        return self.cuts and (self.draws or self.ranks_sampled)

    @property
    def shapes(self) -> bool:
        """Whether tokens and confidences are of another distribution than the logits', temperature aside."""
        return self.changes_logits or self.uses_cuts or self.ranks_sampled

    def blocks(self, default_block_length: int) -> tuple[tuple[int, int], ...]:
        """(start, stop) of each block in canvas positions."""
        size = self.block_length or default_block_length
        return tuple((at, min(at + size, self.max_new_tokens)) for at in range(0, self.max_new_tokens, size))

    def steps_of_block(self, index: int, blocks: int) -> int | None:
        """Forward passes for block `index` of so many; None: there is no quota."""
        if self.steps is None:
            return None
        return max(1, self.steps // blocks + (index < self.steps % blocks))


DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(SamplingParams)}
"""The default of each field."""
_NAMES, _DEFAULTS = tuple(DEFAULTS), tuple(DEFAULTS.values())
_values = attrgetter(*_NAMES)
_KEEP = [getattr(SamplingParams, name).__set__ for name in _NAMES]
"""Sets each field of a copy: the slots' own way, which asks no frozen class."""
