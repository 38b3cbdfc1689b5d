"""An animated picture of two questions to `shop` about one price list, drawn from a run that is recorded here.

    python benchmarks/animation.py --out docs/denoising.svg

Both canvases fill in at the passes, and with the confidences, of the run. The second prompt takes its cut and depth
from the cache. Seconds in the picture are not those of the run: a pass of `shop` takes a few milliseconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from shoal import Engine, SamplingParams
from shoal.provenance import commit, hardware

ITEMS = (
    "red apple 42, blue pear 17, red plum 30, green lamp 63, white cup 18, black chair 71, brown boat 25, pink pen 14, "
    "blue hat 44, white bowl 36, black candle 29, green shirt 58, brown table 82, golden bell 51, teal scarf 23"
)
QUESTIONS = (
    "What do the red apple and the blue pear cost together? Answer in JSON.",
    "Which things are black? Answer in JSON.",
)
CELLS = 24
READ_S, PASS_S, HOLD_S, PAUSE_S = 1.6, 0.34, 4.0, 0.8
WIDTH, PANEL, LEFT, TOP = 960, 232, 28, 70
GRID_W, GRID_H, CELL_H, CANVAS_X = 330, 96, 30, 400
STYLE = """
text{font:15px system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;fill:#1d2321}
.soft{fill:#58625f;font-size:13px}.head{font-size:19px;font-weight:650}.cell{text-anchor:middle;font-size:14px}
.paper{fill:#fbfbf9}.box{fill:#fff;stroke:#dfe3e0}.mask{fill:#1d2321;fill-opacity:.07}
.read{fill:#0d7377;fill-opacity:.3}.kept{fill:#0d7377}.full{fill:#0d7377}
@media(prefers-color-scheme:dark){text{fill:#e8ecea}.soft{fill:#a3aeaa}.paper{fill:#141817}
.box{fill:#1b2120;stroke:#323b38}.mask{fill:#e8ecea}.read,.kept,.full{fill:#52c7c0}}
"""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One answer: what `Engine.stream` reported last, with a text, a pass and a confidence for each cell."""

    question: str
    texts: tuple[str, ...]
    steps: tuple[int, ...]
    confidences: tuple[float | None, ...]
    prompt_tokens: int
    cut: int
    depth: int
    layers: int

    @property
    def passes(self) -> int:
        """Passes that committed something."""
        return max(self.steps)


def record() -> list[Recorded]:
    """Ask `shop` both questions, the first with an empty cache."""
    prices = {"role": "system", "content": "Prices:\n " + ITEMS.replace(", ", "\n ")}
    sampling = SamplingParams(max_new_tokens=CELLS, block_length=CELLS, steps=CELLS // 2)
    found = []
    with Engine("shop") as engine:
        for question in QUESTIONS:
            chat = [prices, {"role": "user", "content": question}]
            *_, end = engine.stream(chat, sampling, stream_mode="denoise")
            shot = end.snapshot
            assert shot is not None
            found.append(
                Recorded(question, shot.texts, shot.steps, shot.confidences, end.prompt_tokens, end.cached_tokens,
                         end.depth, engine.model_config.num_layers)
            )  # fmt: skip
    return found


def draw(answers: Sequence[Recorded], provenance: str) -> str:
    """The SVG. It loops: each answer in turn, then all of them for a while."""
    starts, now = [], PAUSE_S
    for answer in answers:
        starts.append(now)
        now += READ_S + PASS_S * answer.passes + PAUSE_S
    total = now + HOLD_S
    height = TOP + PANEL * len(answers)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="Two questions about one list: the second takes part of its prompt from the cache">',
        f"<desc>{escape(provenance)}</desc><style>{STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{height}" rx="14"/>',
        f'<text class="head" x="{LEFT}" y="42">A diffusion model fills its canvas in any order; '
        "shoal keeps what it read</text>",
    ]
    for index, (answer, start) in enumerate(zip(answers, starts, strict=True)):
        parts += _panel(answer, TOP + PANEL * index, start, total, index)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(answer: Recorded, y: int, start: float, total: float, index: int) -> list[str]:
    x, grid, bottom = LEFT, y + 58, y + 58 + GRID_H
    cut_w = GRID_W * answer.cut / answer.prompt_tokens
    cut_h = GRID_H * answer.depth / answer.layers
    spared = answer.cut * answer.depth / (answer.prompt_tokens * answer.layers)
    words = (
        f"{answer.cut} of {answer.prompt_tokens} tokens, {answer.depth} of {answer.layers} layers deep, from the cache"
    )
    note = (
        f"{words}: {spared:.0%} not read again" if answer.cut else f"all {answer.prompt_tokens} prompt tokens are read"
    )
    out = [
        f'<rect class="box" x="{x - 12}" y="{y}" width="{WIDTH - 2 * LEFT + 24}" height="{PANEL - 16}" rx="12"/>',
        f'<text x="{x}" y="{y + 28}">{index + 1}. {escape(answer.question)}</text>',
        f'<text class="soft" x="{x}" y="{y + 50}">prompt tokens, by layers</text>',
        f'<text class="soft" x="{CANVAS_X}" y="{y + 50}">canvas</text>',
        f'<rect class="mask" x="{x}" y="{grid}" width="{GRID_W}" height="{GRID_H}" rx="4"/>',
    ]
    if answer.cut:
        out.append(
            f'<rect class="kept" x="{x}" y="{bottom - cut_h:.1f}" width="{cut_w:.1f}" height="{cut_h:.1f}" rx="4">'
            f"{_appear(start, total)}</rect>"
        )
        shallow = f"M{x + cut_w:.1f} {bottom}V{bottom - cut_h:.1f}H{x}V{grid}H{x + GRID_W}V{bottom}Z"
        out.append(f'<path class="read" d="{shallow}">{_appear(start + READ_S / 2, total, READ_S / 2)}</path>')
    else:
        out.append(
            f'<rect class="read" x="{x}" y="{grid}" height="{GRID_H}" width="{GRID_W}" rx="4">'
            f"{_animate('width', start, total, READ_S, 0, GRID_W)}</rect>"
        )
    out.append(f'<text class="soft" x="{x}" y="{grid + GRID_H + 26}">{note}{_appear(start + READ_S, total)}</text>')
    return out + _canvas(answer, grid, start + READ_S, total)


def _canvas(answer: Recorded, y: int, start: float, total: float) -> list[str]:
    out, x, right = [], CANVAS_X, WIDTH - LEFT
    for text, step, sure in zip(answer.texts, answer.steps, answer.confidences, strict=True):
        shown = "·" if text.startswith("<|") else text.strip()
        width = max(30, 12 + 9 * len(shown))
        if x + width > right:
            x, y = CANVAS_X, y + CELL_H + 6
        place = f'x="{x}" y="{y}" width="{width}" height="{CELL_H}" rx="6"'
        out.append(f'<rect class="mask" {place}/>')
        if step:
            at = start + PASS_S * step
            strength = 0.0 if shown == "·" else 0.1 + 0.4 * (sure or 0.0)
            out.append(f'<rect class="full" fill-opacity="{strength:.2f}" {place}>{_appear(at, total)}</rect>')
            middle = f'x="{x + width / 2:g}" y="{y + 20}"'
            out.append(f'<text class="cell" {middle}>{escape(shown)}{_appear(at, total)}</text>')
        x += width + 6
    return out


def _appear(at: float, total: float, takes: float = 0.18) -> str:
    return _animate("opacity", at, total, takes, 0, 1)


def _animate(name: str, at: float, total: float, takes: float, low: float, high: float) -> str:
    """From low to high at a time of the loop, kept to its end."""
    times = f"0;{at / total:.4f};{(at + takes) / total:.4f};1"
    return (
        f'<animate attributeName="{name}" dur="{total:.2f}s" repeatCount="indefinite" keyTimes="{times}" '
        f'values="{low};{low};{high};{high}"/>'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/denoising.svg"))
    arguments = parser.parse_args()
    provenance = f"python benchmarks/animation.py, commit {commit()}, {hardware()}"
    arguments.out.write_text(draw(record(), provenance), encoding="utf-8")


if __name__ == "__main__":
    main()
