"""The demo's figures as JSON-able data and as rich tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ..radix_cache.snapshot import render_tree
from ..shop.task import KINDS
from .tally import Tally

CHILDREN_SHOWN = 3
_GROUPS = (*KINDS, "json", "follow_up")


def mode_figures(tallies: Mapping[str, Tally]) -> dict[str, dict[str, Any]]:
    """Figures of each mode, with agreement and speed-ups; None if the mode to compare with did not run."""
    found: dict[str, dict[str, Any]] = {}
    for mode, tally in tallies.items():
        figures = tally.figures()
        figures["agreement"] = tally.agreement(tallies["none"]) if "none" in tallies else None
        for base in ("none", "dual"):
            figures[f"speedup_over_{base}"] = _ratio(tally, tallies.get(base))
        found[mode] = figures
    return found


def depth_figures(tallies: Mapping[int, Tally]) -> dict[str, dict[str, Any]]:
    """Figures of each depth; the speed-up is over depth 0, which does what mode `dual` does."""
    found: dict[str, dict[str, Any]] = {}
    for depth, tally in tallies.items():
        figures = tally.figures()
        figures["accuracy_colour"] = figures["accuracy_by_kind"].get("colour")
        figures["speedup_over_dual"] = _ratio(tally, tallies.get(0))
        found[str(depth)] = figures
    return found


def print_report(console: Console, report: Mapping[str, Any]) -> None:
    """Print the tables of `report["modes"]` and `report["depths"]`, with the meaning of the columns."""
    console.print(modes_table(report["modes"]))
    console.print(COLUMNS, style="dim", highlight=False)
    console.print(kinds_table(report["modes"]))
    if report["depths"]:
        console.print(depths_table(report["depths"]))


COLUMNS = """\
same: answers with the same text as in mode none.  NFE: forward passes a request.
cached: prompt tokens whose KVs came from another request.  reused: the same times the layers they
were reused in, of all prompt tokens times all layers.  tokens: those of the answers, before EOS
(a mode that answers wrongly may answer shorter: look at the seconds too).
"""


def modes_table(modes: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row a mode."""
    table = _table("Cache modes")
    for name in ("accuracy", "same", "NFE", "cached", "reused", "seconds", "tokens", "tok/s", "x none", "x dual"):
        table.add_column(name, justify="right")
    for mode, f in modes.items():
        table.add_row(
            mode, _percent(f["accuracy"]), _percent(f["agreement"]), f"{f['nfe']:.1f}", _percent(f["cached_share"], 0),
            _percent(f["reused_share"], 0), f"{f['seconds']:.1f}", str(f["completion_tokens"]),
            f"{f['tokens_per_s']:.1f}", _times(f["speedup_over_none"]), _times(f["speedup_over_dual"]),
            style="bold" if mode == "bicache" else "",
        )  # fmt: skip
    return table


def kinds_table(modes: Mapping[str, Mapping[str, Any]]) -> Table:
    """Accuracy by kind of question, one row a mode, with the mean and the worst kind."""
    table = _table("Accuracy by kind of question")
    names = [name for name in _GROUPS if any(name in f["accuracy_by_kind"] for f in modes.values())]
    for name in ("mean", "worst kind", *(n.replace("_", "-") for n in names)):
        table.add_column(name, justify="right")
    for mode, f in modes.items():
        by_kind = f["accuracy_by_kind"]
        worst = min((kind for kind in by_kind if kind in KINDS), key=lambda kind: by_kind[kind])
        table.add_row(
            mode, _percent(f["accuracy"]), f"{_percent(by_kind[worst], 0)} {worst if by_kind[worst] < 1 else '-'}",
            *(_percent(by_kind.get(name), 0) for name in names),
        )  # fmt: skip
    return table


def depths_table(depths: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row a depth."""
    table = _table("Mode bicache at a constant depth (0: nothing reused, as in mode dual)", "depth")
    for name in ("accuracy", "colour questions", "reused", "seconds", "tokens", "tok/s", "x dual"):
        table.add_column(name, justify="right")
    for depth, f in depths.items():
        table.add_row(
            depth, _percent(f["accuracy"]), _percent(f["accuracy_colour"]), _percent(f["reused_share"], 0),
            f"{f['seconds']:.1f}", str(f["completion_tokens"]), f"{f['tokens_per_s']:.1f}",
            _times(f["speedup_over_dual"]),
        )  # fmt: skip
    return table


def print_tree(console: Console, snapshot: Mapping[str, Any], decode: Callable[[Sequence[int]], str]) -> None:
    """Print the radix tree with the text that each node begins with.

    Shows only the most used children of a node, with a line for the number of others.
    """
    shown = deepcopy(dict(snapshot))
    nodes = [node for space in shown["namespaces"] for node in space["nodes"]]
    left_out = sum(_prune(node) for node in nodes)
    while nodes:
        node = nodes.pop()
        node["first_tokens"] = repr(decode(node["first_tokens"]))
        nodes += node["children"]
    console.print("\nThe cache of mode bicache at the end:", style="bold")
    console.print(render_tree(shown), no_wrap=True, overflow="ellipsis", highlight=False)
    if left_out:
        console.print(
            f"... and {left_out} nodes more (of each node's children the {CHILDREN_SHOWN} most used are shown)"
        )


def _prune(node: dict[str, Any]) -> int:
    """Keep the `CHILDREN_SHOWN` most used children of every node, in order; returns the number of dropped nodes."""
    children = node["children"]
    by_use = sorted(children, key=lambda child: -child["hits"])
    kept = [child for child in children if any(child is other for other in by_use[:CHILDREN_SHOWN])]
    gone = sum(_size(child) for child in children if not any(child is other for other in kept))
    node["children"] = kept
    return gone + sum(_prune(child) for child in kept)


def _size(node: Mapping[str, Any]) -> int:
    return 1 + sum(_size(child) for child in node["children"])


def _table(title: str, first: str = "mode") -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column(first)
    return table


def _ratio(tally: Tally, base: Tally | None) -> float | None:
    return tally.tokens_per_s / base.tokens_per_s if base is not None and base.tokens_per_s else None


def _percent(share: float | None, digits: int = 1) -> str:
    return "-" if share is None else f"{100 * share:.{digits}f}%"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"
