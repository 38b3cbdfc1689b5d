"""`shoal profile`: measure, choose, write the profile and the report."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from .. import __version__
from ..provenance import hardware
from ..radix_cache.depth_profile import DEFAULT_REUSE_MARGIN, DepthProfile
from ..runtime.checks import OPTION
from ..runtime.config import EngineConfig
from ..runtime.model.digest import model_digest
from ..runtime.model.hub import resolve_model_folder
from ..runtime.model.registry import load_config
from ..runtime.model.settings import layers_of_band, load_tokenizer
from ..runtime.request.sampling_params import SamplingParams
from ..runtime.worker.device import choose_device
from .choice import Cell, Limits, choose, has_answers, make_cells, noise_of, unanswered_kinds
from .data import data_digest, load_groups
from .lab import Lab
from .margins import choose_margin, measure_margins
from .measure import Measurer
from .options import GPU_BATCH, ONCE, ProfileOptions
from .plan import Unit, make_units
from .questions import holds_documents, make_questions
from .report import write_report
from .store import Store
from .verdicts import verdicts

_CAPTURES = 6
"""Sequences that the captures of a unit may hold on a CPU, beside the rows."""
_SETTINGS = (
    "ratios", "captures", "intervals", "margins", "groups", "questions", "seed", "page_size", "layers_per_band",
)  # fmt: skip


def run_profile(options: ProfileOptions, console: Console) -> DepthProfile:
    """Complete the measurements, write `depth_profile.json`, `report.html` and `cells.csv`; returns the profile.

    Raises ConfigError or ModelLoadError for options, data and models that don't fit.
    """
    folder = resolve_model_folder(options.model)
    model = load_config(folder, options.mask_token_id)
    options = replace(options, layers_per_band=layers_of_band(options.layers_per_band, model.num_layers))
    depths = _depths(options, model.num_layers)
    sampling = _sampling(options, folder)
    config = EngineConfig(
        model_path=options.model, device=options.device, dtype=options.dtype, page_size=options.page_size,
        layers_per_band=options.layers_per_band, reuse_margin=0, block_length=options.block_length,
        mask_token_id=options.mask_token_id, lora=options.lora,
    )  # fmt: skip
    path = Path(options.data)
    tokenizer = load_tokenizer(config, folder)
    if holds_documents(path):
        groups = make_questions(path, tokenizer, options.seed)
    else:
        groups = load_groups(path, tokenizer)
    units = make_units(
        groups, options.ratios, per_ratio=options.groups, rows=options.questions, canvas=sampling.max_new_tokens,
        margin=DEFAULT_REUSE_MARGIN, page_size=options.page_size, max_tokens=model.max_position_embeddings,
        seed=options.seed,
    )  # fmt: skip
    for ratio in sorted(set(options.ratios) - {unit.ratio for unit in units}):
        console.print(f"no rows reach a ratio of {ratio:g}: left out")
    digests = {"data": data_digest(path), "model": model_digest(folder, options.mask_token_id, options.lora)}
    out = Path(options.out or f"profile-{folder.name if options.model != 'shop' else 'shop'}")
    settings = {name: getattr(options, name) for name in _SETTINGS}
    settings |= {"depths": depths, "sampling": _plain(sampling), "digests": digests, "version": __version__}
    store = Store(out, settings, options.restart)
    lab = Lab(_sized(config, options, units, sampling), depths)
    measurer = Measurer(
        lab, sampling, captures=options.captures, depths=depths, intervals=options.intervals
    )  # fmt: skip
    settings |= {"hardware": hardware(), "dtype": lab.parts.facts.dtype, "groups_measured": len(groups)}
    _measure(units, measurer, store)
    cells = make_cells(record for record in store.records.values() if "cells" in record)
    unanswered = unanswered_kinds(cells)
    if unanswered:
        console.print(
            f"mode none answers fewer than half rightly of: {', '.join(unanswered)}; their answers can't show a loss"
        )
    limits = Limits(options.max_accuracy_drop, options.min_agreement, options.cosine).or_default(
        has_answers(cells) and not unanswered
    )
    noise = None if options.strict else noise_of(cells)
    picked = choose(cells, limits, model.num_layers, noise=noise)
    margins = []
    if picked and any(len(rows) > 1 for rows in groups.values()):
        longest = max(len(row.tokens) for unit in units for row in unit.rows)
        margins = measure_margins(
            groups, longest, picked[-1], measurer, store, options.margins, options.page_size
        )  # fmt: skip
    margin = choose_margin(margins, limits, noise)
    profile = _profile(picked, limits, margin, options, model.num_layers, digests, lab)
    profile.save(out / "depth_profile.json")
    _write_csv(cells, out / "cells.csv")
    write_report(out / "report.html", profile, cells, picked, margins, list(store.records.values()), settings)
    _print(console, profile, cells, picked, out)
    return profile


def _depths(options: ProfileOptions, layers: int) -> tuple[int, ...]:
    band = layers_of_band(options.layers_per_band, layers)
    if options.depths is None:
        return (*range(band, layers, band), layers)
    depths = sorted(set(options.depths))
    if not depths or depths[0] < 1 or depths[-1] > layers or any(d % band and d != layers for d in depths):
        OPTION.refuse("depths", list(options.depths), f"whole bands of {band} layers up to {layers}")
    return tuple(depths)


def _sampling(options: ProfileOptions, folder: Path) -> SamplingParams:
    path = folder / "generation_config.json"
    values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    canvas = options.max_new_tokens or values.get("max_new_tokens") or SamplingParams().max_new_tokens
    return SamplingParams(max_new_tokens=canvas, steps=options.steps, threshold=options.threshold)


def _plain(sampling: SamplingParams) -> dict[str, Any]:
    return {name: value for name, value in asdict(sampling).items() if value not in (None, (), "")}


def _sized(
    config: EngineConfig, options: ProfileOptions, units: Sequence[Unit], sampling: SamplingParams
) -> EngineConfig:
    """The configuration with room for a batch of rows and the captures of a unit.

    A GPU decodes as many rows together as its memory holds, without graphs: large batches hide launches.
    """
    on_gpu = choose_device(config.device).startswith("cuda")
    batch = options.batch or (GPU_BATCH if on_gpu else max(len(unit.rows) for unit in units))
    tokens = options.kv_cache_tokens
    if tokens is None and not on_gpu:
        longest = max(len(row.tokens) for unit in units for row in unit.rows)
        tokens = (batch + _CAPTURES) * (longest + 2 * sampling.max_new_tokens)
    return replace(config, kv_cache_tokens=tokens, max_running_requests=batch, disable_cuda_graph=True)


def _measure(units: Sequence[Unit], measurer: Measurer, store: Store) -> None:
    cells = measurer.cells_per_unit
    done = sum(unit.key in store.records for unit in units)
    with tqdm(total=len(units) * cells, initial=done * cells, unit="cell", smoothing=0.05) as bar:
        for unit in units:
            if unit.key not in store.records:
                bar.set_postfix_str(unit.key)
                store.add(measurer.measure_unit(unit))
                bar.update(cells)


def _profile(
    picked: Sequence[Cell], limits: Limits, margin: int, options: ProfileOptions, layers: int,
    digests: Mapping[str, str], lab: Lab,
) -> DepthProfile:  # fmt: skip
    import torch

    rows: dict[float, Cell] = {}
    for cell in picked:  # the smallest ratio of a row that was measured stands for the cell
        rows.setdefault(round(cell.lowest_ratio, 4), cell)
    tolerance, metric = limits.words
    return DepthProfile(
        num_layers=layers,
        table=tuple((ratio, cell.depth) for ratio, cell in rows.items()),
        intervals=tuple(None if cell.interval == ONCE else cell.interval for cell in rows.values()),
        reuse_margin=margin,
        max_drift=max((round(cell.worst_error, 4) for cell in picked), default=None),
        tolerance=tolerance,
        metric=metric,
        data_digest=digests["data"],
        model_digest=digests["model"],
        versions={"shoal": __version__, "torch": torch.__version__.split("+")[0]},
        source=f"shoal profile, seed {options.seed}, {sum(c.all.rows for c in picked)} rows at the chosen cells, "
        f"{lab.parts.facts.dtype} on {lab.parts.decoder.device.type}",
    )


def _write_csv(cells: Sequence[Cell], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ("capture", "ratio", "lowest_ratio", "depth", "interval", "kind", "rows", "agreement", "token_agreement",
             "accuracy", "accuracy_none", "nfe", "refreshes", "cosine", "worst_error")
        )  # fmt: skip
        for cell in cells:
            for kind, tally in {"all": cell.all, **cell.kinds}.items():
                if kind == "all" and tally is not cell.all:
                    continue  # the data's only kind
                none = None if tally.right_none is None else tally.right_none / tally.rows
                writer.writerow(
                    (cell.capture, cell.ratio, cell.lowest_ratio, cell.depth, cell.interval or "once", kind, tally.rows,
                     *(_rounded(v) for v in (tally.agreement, tally.token_agreement, tally.accuracy, none, tally.nfe,
                                             tally.refreshes, cell.cosine, cell.worst_error)))
                )  # fmt: skip


def _rounded(value: float | None) -> float | str:
    return "" if value is None else round(value, 4)


def _print(console: Console, profile: DepthProfile, cells: Sequence[Cell], picked: Sequence[Cell], out: Path) -> None:
    table = Table(title=f"depth of {profile.num_layers} layers that keeps: {profile.metric} {profile.tolerance:g}")
    for name in ("ratio", "depth", "refresh", "rows", "agreement", "worst kind", "accuracy", "none"):
        table.add_column(name, justify="right")
    by_ratio = {cell.ratio: cell for cell in picked}
    for ratio in sorted({cell.ratio for cell in cells}):
        cell = by_ratio.get(ratio)
        if cell is None:
            table.add_row(f"{ratio:g}", "0", *[""] * 6)
            continue
        tally = cell.all
        table.add_row(
            f"{ratio:g}", str(cell.depth), str(cell.interval or "once"), str(tally.rows), f"{tally.agreement:.3f}",
            f"{cell.worst_agreement:.3f}", "" if tally.accuracy is None else f"{tally.accuracy:.3f}",
            "" if tally.right_none is None else f"{tally.right_none / tally.rows:.3f}",
        )  # fmt: skip
    console.print(table)
    for verdict in verdicts(cells, picked):
        console.print(verdict.words)
    console.print(f"reuse margin {profile.reuse_margin} tokens, largest harmless drift {profile.max_drift}")
    console.print(f"written: {out / 'depth_profile.json'}, report.html, cells.csv")
