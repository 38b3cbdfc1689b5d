"""A canvas while it is denoised, and what an answer cost, for rich to print."""

from __future__ import annotations

from typing import Any

from rich.text import Text

MASK = "░░"
_SHADES = ("grey50", "steel_blue", "cyan", "bright_cyan")


def canvas_text(snapshot: dict[str, Any], stop_ids: frozenset[int]) -> Text:
    """A cell for each position: brighter where the model was surer, a bar between blocks, masks as shades."""
    text = Text()
    ends = frozenset(snapshot["blocks"][:-1])
    for at, token in enumerate(snapshot["tokens"]):
        if token < 0:
            text.append(MASK, style="dim")
        elif token in stop_ids:
            text.append("·", style="dim")
        else:
            style = _shade(snapshot["confidences"][at])
            text.append(printable(snapshot["texts"][at]), style=f"{style} reverse" if _is_new(snapshot, at) else style)
        text.append(" │ " if at + 1 in ends else " ", style="dim")
    text.append(f"\npass {snapshot['step']}", style="dim")
    return text


def cost_text(meta: dict[str, Any], usage: dict[str, Any], seconds: float, num_layers: int) -> Text:
    """One line: passes, speed, and what came from the cache."""
    depth, prompt = meta["depth"], usage["prompt_tokens"]
    cached = round(meta["reused_token_layers"] / depth) if depth else 0
    reuse = "nothing from the cache"
    if cached:
        reuse = f"{cached} of {prompt} prompt tokens from the cache, {depth} of {num_layers} layers deep"
    speed = usage["completion_tokens"] / max(seconds, 1e-9)
    return Text(f"{meta['cache_mode']}: {meta['nfe']} passes, {speed:.0f} tokens/s, {reuse}", style="dim")


def printable(text: str) -> str:
    """Text without characters that could steer a terminal: they are written out."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)


def _is_new(snapshot: dict[str, Any], at: int) -> bool:
    return bool(snapshot["steps"][at] == snapshot["step"])


def _shade(confidence: float | None) -> str:
    sure = 0.7 if confidence is None else min(1.0, max(0.0, confidence))
    return _SHADES[min(len(_SHADES) - 1, int(sure * len(_SHADES)))]
