"""The report of a profile: one HTML file with heat maps, curves and tables, and nothing to load from elsewhere."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..radix_cache.depth_profile import DepthProfile
from .choice import Cell, Tally, noise_of
from .margins import Margin
from .options import ONCE
from .verdicts import verdicts

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .2rem .7rem; text-align: right }
th { border-bottom: 1px solid #999; font-weight: 600 } tr:nth-child(even) td { background: #f4f4f4 }
img { max-width: 100% } code { background: #f0f0f0; padding: 0 .2em } .note { color: #555 }
"""
_CAPTURES = {
    "first": "another request's first forward (canvas of masks)",
    "alone": "a forward of the prefix alone",
    "final": "another request's finished sequence",
}


def write_report(
    path: Path, profile: DepthProfile, cells: Sequence[Cell], picked: Sequence[Cell],
    margins: Sequence[Margin], records: Sequence[Mapping[str, Any]], settings: Mapping[str, Any],
) -> None:  # fmt: skip
    """Write the report; `records` are the units' (see `measure_unit`), `settings` what they were made with."""
    parts = [
        "<h1>Depth profile</h1>", _summary(profile), _choice_table(cells, picked),
        "<h2>Agreement with mode none, by depth</h2>",
        "<p>Share of texts equal to those of mode none; below it, the same for the worst kind of row. Refreshed once "
        "per request.</p>",
        _image(_agreement_figure(cells)),
        "<h2>Drift of keys and values, by layer</h2>",
        "<p>Cached keys and values of the shared prefix against those of an uncached first forward.</p>",
        _image(_drift_figure(records)),
        "<h2>Drift and answers side by side</h2>",
        "<p>Capture <code>first</code>, refreshed once per request. Left: right answers of the worst kind of row "
        "against mode none (without known answers, agreement). Right: the smallest mean cosine of a layer below the "
        "depth.</p>",
        _image(_together_figure(cells)), _verdicts(cells, picked),
        "<h2>Refresh intervals</h2>",
        "<p>Capture <code>first</code>; all ratios together. An interval acts at the next start of a block.</p>",
        _image(_interval_figure(cells)),
        "<h2>Kinds of rows</h2>", _kinds_table(cells, picked),
        "<h2>Reuse margin</h2>", _margin_table(profile, margins),
        "<h2>How it was made</h2>", _settings_table(profile, settings),
    ]  # fmt: skip
    body = "\n".join(part for part in parts if part)
    title = "shoal depth profile"
    path.write_text(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"</head><body>\n{body}\n</body></html>\n",
        encoding="utf-8",
    )


def _summary(profile: DepthProfile) -> str:
    if not profile.table:
        return (
            "<p><b>No depth keeps the limits at the largest ratio: nothing will be reused across requests.</b> "
            "See below which limit fails where.</p>"
        )
    return (
        f"<p>Kept: {html.escape(profile.metric)} {profile.tolerance:g}. Below a ratio of {profile.table[0][0]:g} "
        f"nothing is reused. Largest relative error of a page where reuse is allowed: {profile.max_drift} (audits take "
        "one and a half times that for drift).</p>"
    )


def _choice_table(cells: Sequence[Cell], picked: Sequence[Cell]) -> str:
    by_ratio = {cell.ratio: cell for cell in picked}
    rows = []
    for ratio in sorted({cell.ratio for cell in cells}):
        cell = by_ratio.get(ratio)
        if cell is None:
            rows.append([f"{ratio:g}", "0", *[""] * 9])
            continue
        rows.append(
            [f"{ratio:g}", str(cell.depth), _interval(cell.interval), str(cell.all.rows), *_tally(cell.all),
             f"{cell.worst_agreement:.3f}", f"{cell.cosine:.4f}", f"{cell.worst_error:.3f}"]
        )  # fmt: skip
    return _table(
        ("ratio", "depth", "refresh", "rows", "agreement", "tokens", "accuracy", "none", "worst kind", "cosine",
         "worst error"), rows,
    )  # fmt: skip


def _verdicts(cells: Sequence[Cell], picked: Sequence[Cell]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(verdict.words)}</li>" for verdict in verdicts(cells, picked)) + "</ul>"


def _kinds_table(cells: Sequence[Cell], picked: Sequence[Cell]) -> str:
    depths: dict[int, dict[str, list[Tally]]] = {}
    for cell in cells:
        if cell.capture == "first" and cell.interval == ONCE:
            for kind, tally in cell.kinds.items():
                depths.setdefault(cell.depth, {}).setdefault(kind, []).append(tally)
    kinds = sorted({kind for of in depths.values() for kind in of})
    rows = []
    for depth, of in sorted(depths.items()):
        shares = (sum(t.same for t in of[k]) / sum(t.rows for t in of[k]) if k in of else None for k in kinds)
        rows.append([str(depth), *("" if share is None else f"{share:.3f}" for share in shares)])
    chosen = sorted({cell.depth for cell in picked})
    noise = [
        [kind, str(tally.rows), *("" if share is None else f"{share / tally.rows:.3f}" for share in
         (tally.same, None if tally.drop is None else tally.drop * tally.rows,
          None if tally.right is None else tally.changed))]
        for kind, tally in noise_of(cells).items()
    ]  # fmt: skip
    return (
        "<p>What mode <code>bicache</code> changes with nothing reused, all ratios together. Unless "
        "<code>--strict</code> was given, a loss that can't be told from this does not count.</p>"
        + _table(("kind", "rows", "agreement", "drop", "answers changed"), noise)
        + "<p>Agreement with mode none by kind, capture <code>first</code>, refreshed once per request, all ratios "
        f"together. Chosen depths: {', '.join(map(str, chosen)) or 'none'}.</p>" + _table(("depth", *kinds), rows)
    )


def _margin_table(profile: DepthProfile, margins: Sequence[Margin]) -> str:
    if not margins:
        return f"<p>Not measured (no groups of rows that begin alike); {profile.reuse_margin} tokens are kept.</p>"
    rows = []
    for part in margins:
        near = ["0", "", "", "", "", ""]
        if part.cell is not None:
            near = [str(part.near), *_tally(part.cell.all), f"{part.cell.worst_agreement:.3f}"]
        rows.append([str(part.margin), *near, str(part.all.rows), f"{part.all.agreement:.3f}"])
    return (
        "<p>A prefix reused up to so many tokens before the place where two prompts part, at the deepest choice. Reuse "
        "ends at whole pages: the <i>near</i> rows are those that ended within half a page of the margin. Chosen: "
        f"{profile.reuse_margin}.</p>"
        + _table(
            ("margin", "near rows", "agreement", "tokens", "accuracy", "none", "worst kind", "all rows", "agreement"),
            rows,
        )
    )


def _settings_table(profile: DepthProfile, settings: Mapping[str, Any]) -> str:
    values = {**settings, "source": profile.source, **profile.versions}
    return _table(("setting", "value"), [[html.escape(str(k)), html.escape(str(v))] for k, v in values.items()])


def _tally(tally: Tally) -> list[str]:
    none = None if tally.right_none is None else tally.right_none / tally.rows
    return [
        f"{tally.agreement:.3f}", f"{tally.token_agreement:.3f}",
        "" if tally.accuracy is None else f"{tally.accuracy:.3f}", "" if none is None else f"{none:.3f}",
    ]  # fmt: skip


def _interval(interval: int) -> str:
    return "once" if interval == ONCE else str(interval)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + line(head, "th") + "".join(line(row, "td") for row in rows) + "</table>"


# Figures


def _figure(rows: int, columns: int, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * columns + 0.6, height * rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _image(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _agreement_figure(cells: Sequence[Cell]) -> Any:
    captures = [name for name in _CAPTURES if any(cell.capture == name for cell in cells)]
    ratios = sorted({cell.ratio for cell in cells})
    depths = sorted({cell.depth for cell in cells if cell.depth})
    figure, axes = _figure(2, len(captures), 2.9)
    for column, capture in enumerate(captures):
        for row, worst in enumerate((False, True)):
            grid = np.full((len(ratios), len(depths)), np.nan)
            for cell in cells:
                if cell.capture == capture and cell.interval == ONCE and cell.depth:
                    value = cell.worst_agreement if worst else cell.all.agreement
                    grid[ratios.index(cell.ratio), depths.index(cell.depth)] = value
            title = f"{capture}, worst kind" if worst else capture
            _heat(figure, axes[row][column], grid, title, "depth", depths, ratios, 0.0, 1.0, "RdYlGn")
    return figure


def _drift_figure(records: Sequence[Mapping[str, Any]]) -> Any:
    units = [record for record in records if "drift" in record]
    captures = [name for name in _CAPTURES if any(name in unit["drift"] for unit in units)]
    ratios = sorted({unit["ratio"] for unit in units})
    layers = len(next(iter(units[0]["drift"].values()))[0])
    figure, axes = _figure(4, len(captures), 2.5)
    shown = (("cosine_k", "cosine K"), ("cosine_v", "cosine V"), ("error_k", "error K"), ("error_v", "error V"))
    for column, capture in enumerate(captures):
        for row, (name, words) in enumerate(shown):
            grid = np.full((len(ratios), layers), np.nan)
            for index, ratio in enumerate(ratios):
                rows = [r for unit in units if unit["ratio"] == ratio for r in unit["drift"][capture]]
                grid[index] = np.mean([[layer[name] for layer in of_row] for of_row in rows], axis=0)
            low, high, colours = (0.8, 1.0, "viridis") if name.startswith("cosine") else (0.0, 0.6, "viridis_r")
            _heat(figure, axes[row][column], grid, f"{capture}: {words}", "layer", range(layers), ratios, low, high,
                  colours, numbers=False)  # fmt: skip
    return figure


def _together_figure(cells: Sequence[Cell]) -> Any:
    mine = [cell for cell in cells if cell.capture == "first" and cell.interval == ONCE and cell.depth]
    ratios, depths = sorted({cell.ratio for cell in mine}), sorted({cell.depth for cell in mine})
    answers, drift = (np.full((len(ratios), len(depths)), np.nan) for _ in range(2))
    for cell in mine:
        place = ratios.index(cell.ratio), depths.index(cell.depth)
        answers[place] = cell.worst_agreement if cell.worst_drop is None else 1 - cell.worst_drop
        drift[place] = cell.cosine
    figure, axes = _figure(1, 2, 2.9)
    _heat(figure, axes[0][0], answers, "answers kept, worst kind", "depth", depths, ratios, 0.0, 1.0, "RdYlGn")
    _heat(figure, axes[0][1], drift, "worst cosine", "depth", depths, ratios, 0.8, 1.0, "RdYlGn")
    return figure


def _interval_figure(cells: Sequence[Cell]) -> Any:
    mine = [cell for cell in cells if cell.capture == "first" and cell.depth]
    intervals = sorted({cell.interval for cell in mine}, key=lambda interval: interval or 10**9)
    figure, axes = _figure(1, 2, 3.2)
    for depth in sorted({cell.depth for cell in mine}):
        mean, worst = [], []
        for interval in intervals:
            of = [cell for cell in mine if (cell.depth, cell.interval) == (depth, interval)]
            mean.append(sum(cell.all.same for cell in of) / max(1, sum(cell.all.rows for cell in of)))
            worst.append(min((cell.worst_agreement for cell in of), default=float("nan")))
        for axis, values in zip(axes[0], (mean, worst), strict=True):
            axis.plot(range(len(intervals)), values, "o-", label=f"depth {depth}")
    for axis, title in zip(axes[0], ("agreement, all rows", "agreement, worst kind and ratio"), strict=True):
        axis.set_xticks(range(len(intervals)), [_interval(interval) for interval in intervals])
        axis.set_xlabel("NFE between prefix refreshes")
        axis.set_ylim(-0.04, 1.04)
        axis.set_title(title, loc="left", fontsize=10)
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    return figure


def _heat(
    figure: Any, axis: Any, grid: np.ndarray[Any, Any], title: str, label: str, columns: Sequence[int],
    ratios: Sequence[float], low: float, high: float, colours: str, *, numbers: bool = True,
) -> None:  # fmt: skip
    image = axis.imshow(grid, vmin=low, vmax=high, cmap=colours, aspect="auto", origin="lower")
    axis.set_title(title, loc="left", fontsize=10)
    axis.set_xlabel(label)
    axis.set_ylabel("prefix ratio")
    axis.set_yticks(range(len(ratios)), [f"{ratio:g}" for ratio in ratios])
    step = max(1, len(columns) // 8)
    axis.set_xticks(range(0, len(columns), step), list(columns)[::step])
    if numbers:
        for (y, x), value in np.ndenumerate(grid):
            if not np.isnan(value):
                axis.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=8)
    figure.colorbar(image, ax=axis, shrink=0.85)
