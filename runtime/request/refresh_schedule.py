"""How a request's canvas grows and is refreshed: its own parameters over the engine's options."""

from __future__ import annotations

from ..config import CacheMode, EngineConfig
from ..errors import InvalidRequestError
from .sampling_params import SamplingParams


def with_schedule(params: SamplingParams, config: EngineConfig, mode: CacheMode, grows: bool) -> SamplingParams:
    """`params` with window and schedule resolved; `canvas_window` None: the whole canvas exists from the start.

    Args:
        config: of the engine, which has the defaults.
        mode: the request's cache mode.
        grows: whether the canvas can grow: templates and scoring requests need all of it.

    Raises InvalidRequestError for a window on a canvas that can't grow, and for a schedule in a mode without refreshes.
    """
    if params.canvas_window is not None and not grows:
        message = f"canvas_window is {params.canvas_window}; with a canvas template the whole canvas exists"
        raise InvalidRequestError(message, field="canvas_window", value=params.canvas_window, limit=None)
    if mode == "none" and params.refresh_schedule == "settled":
        message = "refresh_schedule is 'settled'; cache_mode 'none' computes everything at every step"
        raise InvalidRequestError(message, field="refresh_schedule", value="settled", limit="full")
    window = config.canvas_window if params.canvas_window is None else params.canvas_window
    if not grows or window is None or window >= params.max_new_tokens:
        window = None
    every = config.full_refresh_every if params.full_refresh_every is None else params.full_refresh_every
    entropy = config.refresh_entropy if params.refresh_entropy is None else params.refresh_entropy
    return params.changed(
        canvas_window=window, refresh_schedule=params.refresh_schedule or config.refresh_schedule,
        full_refresh_every=every, refresh_entropy=entropy,
    )  # fmt: skip
