"""The requests of one `Engine.score`, a group at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from ..config import CacheMode
from ..request.field_names import FieldNames
from ..request.input import Prompt
from ..request.intake import Intake
from ..request.sampling_params import SamplingParams
from ..request.scoring import ScorePlan, choice_tokens
from ..request.spec import RequestSpec

WARM_UP = SamplingParams(max_new_tokens=0)
_NAMES = FieldNames(length="choices")


def score_groups(
    intake: Intake, prompt: Prompt, choices: Sequence[str | Sequence[int]], method: str, cache_mode: CacheMode | None,
    cache_salt: str, shared_prefix: int,
) -> tuple[ScorePlan, Iterator[list[RequestSpec]]]:  # fmt: skip
    """The plan for some choices, and its requests in groups to run one after the other.

    The first group computes the prompt (it is empty if there is only one request). The others score, as many at a time
    as may run together, so that a call holds little memory and other callers get turns.

    Raises InvalidRequestError or PoolTooSmallError, before anything runs, for all that is wrong.
    """
    tokens = intake.encode(prompt, "prompt")
    ids = choice_tokens(choices, lambda text: intake.encode_text(text, "choices", False))
    plan = ScorePlan(ids, method, intake.block_length, prompt_tokens=len(tokens))
    intake.check_choices(ids)
    prompts = [tokens] if plan.needs_warm_up else []
    warm_up = intake.specs(prompts, WARM_UP, cache_mode, cache_salt, None, shared_prefix, names=_NAMES)
    size = intake.max_running_requests

    def group(start: int) -> list[RequestSpec]:
        chosen = range(start, min(start + size, plan.num_forwards))
        canvases, targets = [plan.canvas(i) for i in chosen], [plan.targets[i] for i in chosen]
        prompts = [tokens] * len(chosen)
        return intake.specs(prompts, None, cache_mode, cache_salt, canvases, len(tokens), targets, _NAMES)

    first = group(0)  # every group has the longest canvas, so the first check finds a canvas that does not fit
    return plan, itertools.chain((warm_up, first), map(group, range(size, plan.num_forwards, size)))
