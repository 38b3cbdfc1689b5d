"""Checks that prompt and canvas fit, and says what to send instead."""

from __future__ import annotations

from ..errors import InvalidRequestError, PoolTooSmallError
from .field_names import FieldNames


def check_length(prompt: int, canvas: int, *, model: int, pool: int, masks: int = 0, names: FieldNames) -> None:
    """Raise for a request that is longer than the model or the pool allows.

    Args:
        prompt: tokens of the prompt.
        canvas: positions of the canvas; 0 where the prompt is only computed.
        model: most tokens that the model takes.
        pool: most tokens that the KV pool holds.
        masks: behind a prompt that is only computed.
        names: the caller's names for prompt and canvas length.

    Raises InvalidRequestError (over the model's maximum) or PoolTooSmallError. The message says which canvas would fit,
    or by how many tokens the prompt is too long; `value` is the sum, `limit` the maximum.
    """
    total = prompt + (canvas or masks)
    if total <= min(model, pool):
        return
    kind: type[InvalidRequestError | PoolTooSmallError] = InvalidRequestError if total > model else PoolTooSmallError
    where = f"the model's maximum of {model}" if total > model else f"the {pool} that the KV pool holds"
    most = min(model, pool)
    called = "a canvas" if names.length == "canvas" else names.length
    least = canvas if names.length == "choices" else 1 if canvas else masks
    fixed = names.suffix
    room = most - prompt - names.suffix
    message = f"{names.prompt} has {_tokens(prompt)} and {_canvas(canvas, masks, names)}: {total}, over {where}; "
    if canvas and names.length != "choices" and room >= least:
        raise kind(f"{message}send {called} of at most {room}", field=names.length, value=total, limit=most)
    kept = canvas or masks
    shorter = "" if kept < most or kept == least + fixed else f", and send {called} of at most {least}"
    fits = most - (least + fixed if shorter else kept)
    if fits >= 1:
        message += f"shorten {names.prompt} by {_tokens(prompt - fits)}, to at most {fits}{shorter}"
        raise kind(message, field=names.prompt_field, value=total, limit=most)
    field = "suffix" if fixed else names.length
    raise kind(f"{message}nothing fits with them: shorten {field}", field=field, value=total, limit=most)


def _canvas(canvas: int, masks: int, names: FieldNames) -> str:
    if not canvas:
        return f"the masks behind it are {masks}"
    if names.length == "choices":
        return f"the longest of choices takes a canvas of {canvas}"
    if names.length == "canvas":
        return f"canvas {canvas} positions"
    behind = f" and suffix has {_tokens(names.suffix)}" if names.suffix else ""
    return f"{names.length} is {canvas - names.suffix}" + ("" if names.length_given else " by default") + behind


def _tokens(count: int) -> str:
    return f"{count} token" + "s" * (count != 1)
