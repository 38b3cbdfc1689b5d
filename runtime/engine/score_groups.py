"""The requests of one `Engine.score`, a group at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..request.field_names import FieldNames
from ..request.input import GenerateInput, Prompt
from ..request.intake import Intake
from ..request.sampling_params import SamplingParams
from ..request.scoring import ScorePlan, choice_tokens
from ..request.spec import RequestSpec
from .inputs import ScoreOptions

WARM_UP = SamplingParams(max_new_tokens=0)
_NAMES = FieldNames(length="choices")


def score_groups(
    intake: Intake, prompt: Prompt, choices: Sequence[str | Sequence[int]], method: str, options: ScoreOptions
) -> tuple[ScorePlan, Iterator[list[RequestSpec]]]:
    """The plan for some choices, and its requests in groups to run one after the other.

    The first group computes the prompt (it is empty if there is only one request). The others score, as many at a time
    as may run together, so that a call holds little memory and other callers get turns.

    Raises InvalidRequestError or PoolTooSmallError, before anything runs, for all that is wrong.
    """
    tokens = intake.encode(prompt, "prompt")
    ids = choice_tokens(choices, lambda text: intake.encode_text(text, "choices", False))
    plan = ScorePlan(ids, method, intake.block_length, prompt_tokens=len(tokens))
    intake.check_choices(ids)
    asked = GenerateInput(prompt=tokens, names=_NAMES, **options)
    warm_up = intake.specs([replace(asked, sampling=WARM_UP)] if plan.needs_warm_up else [])
    size = intake.max_running_requests

    def group(start: int) -> list[RequestSpec]:
        return intake.specs(
            replace(asked, canvas=plan.canvas(i), targets=plan.targets[i], shared_prefix=len(tokens))
            for i in range(start, min(start + size, plan.num_forwards))
        )

    first = group(0)  # every group has the longest canvas, so the first check finds a canvas that does not fit
    return plan, itertools.chain((warm_up, first), map(group, range(size, plan.num_forwards, size)))
