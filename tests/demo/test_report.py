"""Figures, tables, tree and plot from answers made up here, without a model."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from shoal.demo.main import DemoOptions
from shoal.demo.plot import plot_depths
from shoal.demo.progress import lines
from shoal.demo.report import depth_figures, mode_figures, print_report, print_tree
from shoal.demo.tally import Answer, Tally
from shoal.demo.workload import make_workload

ASKED = make_workload(0, (8,), 8).asked


def output(text: str, **other: Any) -> Answer:
    values: dict[str, Any] = {
        "prompt_tokens": 100, "completion_tokens": 5, "cached_tokens": 0, "depth": 0, "nfe": 4,
        "reused_token_layers": 0, "computed_token_layers": 1000,
    }  # fmt: skip
    return Answer(text=text, **{**values, **other})


def tally(wrong: str = "", seconds: float = 2.0, **other: Any) -> Tally:
    """Everything right but the kind `wrong`."""
    made = Tally(16)
    texts = ["?" if asked.question.kind == wrong else asked.question.answer for asked in ASKED]
    made.add(ASKED, [output(text, **other) for text in texts], seconds, 1.5 * seconds)
    return made


@pytest.fixture
def modes():
    shared: dict[str, Any] = {"cached_tokens": 80, "depth": 8, "reused_token_layers": 640}
    return {"none": tally(seconds=8), "dual": tally(seconds=4), "lm": tally("colour"), "bicache": tally(**shared)}


def printed(print_to) -> str:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_to(console)
    return console.export_text()


def test_a_line_shows_the_first_results_and_then_one_now_and_then(modes):
    times = iter([0.0, 1.0, 4.9, 5.0, 6.0, 13.0])

    def answer(console: Console) -> None:
        advance = lines(console, 60, clock=lambda: next(times))
        for mode in ("none", "none", "dual", "dual", "lm"):
            advance(mode, 8, modes[mode])

    assert printed(answer).splitlines() == [
        "loading",
        "none: 8 of 8 right, 5 tokens/s (8 of 60 questions, 1 s)",
        "dual: 8 of 8 right, 10 tokens/s (32 of 60 questions, 6 s)",
        "lm: 5 of 8 right, 20 tokens/s (40 of 60 questions, 13 s)",
    ]


def test_nothing_is_written_that_was_not_asked_for():
    options = DemoOptions()
    assert (options.plot, options.json) == (None, None)


def test_figures_of_modes(modes):
    figures = mode_figures(modes)
    assert figures["none"]["accuracy"] == figures["bicache"]["agreement"] == 1.0
    assert figures["lm"]["accuracy"] == figures["lm"]["agreement"] == 5 / 8
    assert figures["lm"]["accuracy_by_kind"]["colour"] == 0.0
    assert figures["lm"]["accuracy_by_kind"]["price"] == 1.0
    bicache = figures["bicache"]
    assert (bicache["cached_share"], bicache["reused_share"]) == (0.8, 0.4)
    assert (bicache["nfe"], bicache["seconds"], bicache["completion_tokens"]) == (4.0, 2.0, 40)
    assert bicache["cpu_seconds"] == 3.0
    assert (bicache["tokens_per_s"], bicache["speedup_over_none"], bicache["speedup_over_dual"]) == (20.0, 4.0, 2.0)


def test_without_the_mode_to_compare_with_there_is_no_ratio(modes):
    figures = mode_figures({"bicache": modes["bicache"]})["bicache"]
    assert figures["agreement"] is figures["speedup_over_none"] is figures["speedup_over_dual"] is None


def test_figures_of_depths():
    figures = depth_figures({0: tally(), 8: tally(seconds=1), 16: tally("colour", seconds=0.5)})
    assert [f["speedup_over_dual"] for f in figures.values()] == [1.0, 2.0, 4.0]
    assert [f["accuracy_colour"] for f in figures.values()] == [1.0, 1.0, 0.0]


def test_report_shows_every_mode_with_its_numbers(modes):
    report = {"modes": mode_figures(modes), "depths": depth_figures({0: tally(), 16: tally("colour", seconds=0.5)})}
    text = printed(lambda console: print_report(console, report))
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.split()[:1]}
    first = {line.split()[0]: line.split()[1:] for line in reversed(text.splitlines()) if line.split()[:1]}
    assert first["bicache"] == ["100.0%", "100.0%", "4.0", "80%", "40%", "2.0", "40", "20.0", "4.00", "2.00"]
    assert rows["lm"][:3] == ["62.5%", "0%", "colour"]
    assert rows["bicache"][:3] == ["100.0%", "100%", "-"]
    assert rows["16"] == ["62.5%", "0.0%", "0%", "0.5", "40", "80.0", "4.00"]


def node(hits: int, children: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    return {"depth": 8, "tokens": 16, "ratio": 0.9, "hits": hits, "locks": 0, "pins": 0, "drifted": False,
            "first_tokens": [hits], "children": list(children)}  # fmt: skip


def test_tree_shows_the_most_used_children_and_counts_the_rest():
    below = tuple(node(hits, (node(100 + hits),)) for hits in range(5))
    snapshot: dict[str, Any] = {
        "num_layers": 16, "num_nodes": 11, "num_tokens": 176, "kv_pages": 22, "boundary_pages": 11,
        "namespaces": [{"salt": "", "capture": "first", "nodes": [node(50, below)]}],
    }  # fmt: skip
    text = printed(lambda console: print_tree(console, snapshot, lambda ids: f"text {ids[0]}"))
    assert "depth 8/16" in text
    assert [hits for hits in range(5) if f"'text {hits}'" in text] == [2, 3, 4]
    assert "'text 104'" in text
    assert "4 nodes more" in text
    assert len(snapshot["namespaces"][0]["nodes"][0]["children"]) == 5


@pytest.mark.parametrize(("suffix", "magic"), [("png", b"\x89PNG\r\n"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_plot_is_a_picture(tmp_path, suffix, magic):
    depths = depth_figures({0: tally(), 8: tally(seconds=1), 16: tally("colour", seconds=0.5)})
    path = tmp_path / f"plot.{suffix}"
    plot_depths(depths, path, caption="caption", safe_depth=8)
    assert path.read_bytes().startswith(magic)
    assert 5_000 < path.stat().st_size < 200_000


def test_plot_without_colour_questions(tmp_path):
    depths = {"0": {"accuracy": 1.0, "accuracy_colour": None, "speedup_over_dual": 1.0}}
    plot_depths(depths, tmp_path / "plot.png", caption="")
    assert (tmp_path / "plot.png").stat().st_size > 5_000
