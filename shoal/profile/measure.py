"""Measures units: drift of every capture, and answers at every depth and refresh interval beside those of mode none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..runtime.request.output import RequestOutput
from ..runtime.request.sampling_params import SamplingParams
from .data import Row
from .lab import Asked, Captured, Lab, Tokens, Wanted
from .options import ONCE
from .plan import Unit, common_length

Record = dict[str, Any]
"""JSON-able; see `measure_unit`."""

Outputs = list[RequestOutput]
_DRIFT_ROWS = 2
SALT = "profile"


def edit_distance(one: Sequence[int], other: Sequence[int]) -> int:
    """Levenshtein distance of two token sequences."""
    if one == other:
        return 0
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(other, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


class Measurer:
    """Measures with one lab and one set of decoding parameters; caches the answers of mode none."""

    def __init__(
        self, lab: Lab, sampling: SamplingParams, *, captures: Sequence[str], depths: Sequence[int],
        intervals: Sequence[int],
    ):  # fmt: skip
        self._lab = lab
        self._sampling = sampling
        self._captures, self._depths, self._intervals = captures, depths, sorted(intervals)
        self._reference: dict[tuple[int, ...], RequestOutput] = {}

    @property
    def cells_per_unit(self) -> int:
        """Cells of `measure_unit`."""
        return 1 + len(self._depths) * (len(self._captures) + len(self._intervals) - 1)

    def measure_unit(self, unit: Unit) -> Record:
        """One unit: {key, ratio, group, natural, drift: {capture: [rows][layers]}, cells: [...]}.

        A cell is one (capture, depth, interval) with a list of rows: ratio, kind, whether the text is that of mode none
        (`same`), the edit distance of the tokens and the longer length, right answers (None without one) of both, NFE.
        Rows of all cells are decoded together.
        """
        captured = self._capture(unit)
        drift = self._drift(unit, captured)
        once = self._decode(unit, [("first", 0, ONCE)] + [(c, d, ONCE) for c in self._captures for d in self._depths])
        repeated = [
            (depth, interval)
            for depth in self._depths for interval in self._intervals
            if interval != ONCE and self._comes_due(once["first", depth, ONCE], interval)
        ]  # fmt: skip
        answers = once | self._decode(unit, [("first", depth, interval) for depth, interval in repeated])
        self._lab.forget()
        reference = [self._reference[row.tokens] for row in unit.rows]
        cells = []
        for capture, depth in [("first", 0), *((c, d) for c in self._captures for d in self._depths)]:
            for interval in self._intervals if depth and capture == "first" else (ONCE,):
                outputs = answers.get((capture, depth, interval), answers[capture, depth, ONCE])
                rows = [
                    _compared(row, output, exact, self._sampling.max_new_tokens)
                    for row, output, exact in zip(unit.rows, outputs, reference, strict=True)
                ]
                cells.append({"capture": capture, "depth": depth, "interval": interval, "rows": rows})
        return {
            "key": unit.key, "ratio": unit.ratio, "group": unit.group, "natural": unit.natural, "cut": unit.cut,
            "drift": drift, "cells": cells,
        }  # fmt: skip

    def measure_margins(
        self, units: Sequence[Unit], margins: Sequence[int], depth: int, interval: int
    ) -> list[list[Record]]:
        """Of each unit, answers when a prefix is reused up to each margin before the place where donor and row part.

        Rows have a `distance` too: from that place to where reuse ended (None when nothing was reused).
        """
        lab, canvas = self._lab, self._sampling.max_new_tokens
        # Donors may begin alike: each has a tree of its own.
        lab.capture([
            Wanted(salt=unit.key, kind="first", tokens=unit.donor, length=len(unit.donor), canvas=canvas)
            for unit in units
        ])  # fmt: skip
        self._answer_exactly([row for unit in units for row in unit.rows])
        outputs = iter(
            lab.decode([
                Asked(
                    prompt=row.tokens, sampling=self._sampling, mode="bicache", salt=unit.key, depth=depth,
                    interval=interval, cut=len(unit.donor), margin=margin,
                )
                for unit in units for margin in margins for row in unit.rows
            ])
        )  # fmt: skip
        lab.forget()
        return [
            [
                {"margin": margin, "depth": depth, "interval": interval,
                 "rows": [self._parted(unit, row, next(outputs)) for row in unit.rows]}
                for margin in margins
            ]
            for unit in units
        ]  # fmt: skip

    def _parted(self, unit: Unit, row: Row, output: RequestOutput) -> Record:
        reused = output.cached_tokens
        distance = common_length([unit.donor, row.tokens]) - reused if reused else None
        exact = self._reference[row.tokens]
        return {**_compared(row, output, exact, self._sampling.max_new_tokens), "distance": distance}

    def _answer_exactly(self, rows: Sequence[Row], donor: Tokens | None = None) -> RequestOutput | None:
        """Get the answers of mode none to rows that have none yet, and at the same time that of `dual` to a donor."""
        missing = list({row.tokens for row in rows if row.tokens not in self._reference})
        asked = [Asked(prompt=tokens, sampling=self._sampling, mode="none") for tokens in missing]
        if donor is not None:
            asked.append(Asked(prompt=donor, sampling=self._sampling, mode="dual"))
        outputs = self._lab.decode(asked)
        self._reference.update(zip(missing, outputs, strict=False))
        return outputs[-1] if donor is not None else None

    def _capture(self, unit: Unit) -> dict[str, Captured]:
        """Every kind of capture of a unit's prefix."""
        canvas, cut = self._sampling.max_new_tokens, unit.cut
        finished = self._answer_exactly(unit.rows, unit.donor if "final" in self._captures else None)
        wanted = {
            "first": Wanted(salt=SALT, kind="first", tokens=unit.donor, length=cut, canvas=canvas),
            "alone": Wanted(salt=SALT, kind="alone", tokens=unit.donor[:cut], length=cut),
        }
        if finished is not None:
            wanted["final"] = Wanted(salt=SALT, kind="final", tokens=(*unit.donor, *finished.token_ids), length=cut)
        made = self._lab.capture([wanted[kind] for kind in self._captures])
        return dict(zip(self._captures, made, strict=True))

    def _decode(self, unit: Unit, cells: Sequence[tuple[str, int, int]]) -> dict[tuple[str, int, int], Outputs]:
        """Answers to the unit's rows in each (capture, depth, interval)."""
        outputs = self._lab.decode([
            Asked(
                prompt=row.tokens, sampling=self._sampling, mode="bicache", salt=SALT, capture=capture, depth=depth,
                interval=interval, cut=unit.cut if depth else 0,
            )
            for capture, depth, interval in cells for row in unit.rows
        ])  # fmt: skip
        count = len(unit.rows)
        return {cell: outputs[at * count : (at + 1) * count] for at, cell in enumerate(cells)}

    def _comes_due(self, outputs: Outputs, interval: int) -> bool:
        """Whether a refresh can come due: at the start of a block, so many NFE after the first forward."""
        block = self._sampling.block_length or self._lab.parts.facts.block_length
        return self._sampling.max_new_tokens > block and any(output.nfe > interval for output in outputs)

    def _drift(self, unit: Unit, captured: dict[str, Captured]) -> dict[str, list[Any]]:
        out: dict[str, list[Any]] = {kind: [] for kind in captured}
        for row in unit.rows[:_DRIFT_ROWS]:
            drifts = self._lab.drift(row.tokens, self._sampling.max_new_tokens, list(captured.values()), unit.cut)
            for kind, layers in zip(captured, drifts, strict=True):
                out[kind].append([{name: round(value, 6) for name, value in asdict(d).items()} for d in layers])
        return out


def _compared(row: Row, output: RequestOutput, exact: RequestOutput, canvas: int) -> Record:
    return {
        "ratio": round(output.cached_tokens / (output.prompt_tokens + canvas), 4),
        "kind": row.kind,
        "same": output.token_ids == exact.token_ids,
        "edits": edit_distance(output.token_ids, exact.token_ids),
        "length": max(len(output.token_ids), len(exact.token_ids)),
        "right": row.is_right(output.text),
        "right_none": row.is_right(exact.text),
        "nfe": output.nfe,
        "refreshes": output.prefix_refreshes,
    }
