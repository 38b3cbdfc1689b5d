"""Measures units: drift of every capture, and answers at every depth and refresh interval beside those of mode none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from ..runtime.request.output import RequestOutput
from ..runtime.request.sampling_params import SamplingParams
from .data import Row
from .lab import Captured, Lab
from .options import ONCE
from .plan import Unit, common_length

Record = dict[str, Any]
"""JSON-able; see `measure_unit`."""

_DRIFT_ROWS = 2
SALT = "profile"


def edit_distance(one: Sequence[int], other: Sequence[int]) -> int:
    """Levenshtein distance of two token sequences."""
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
        self._captures, self._depths, self._intervals = captures, depths, intervals
        self._reference: dict[tuple[int, ...], RequestOutput] = {}

    @property
    def cells_per_unit(self) -> int:
        """Batches that `measure_unit` decodes."""
        return 1 + len(self._depths) * (len(self._captures) + len(self._intervals) - 1)

    def reference(self, rows: Sequence[Row]) -> list[RequestOutput]:
        """Answers of mode none."""
        missing = [row for row in rows if row.tokens not in self._reference]
        outputs = self._lab.decode([row.tokens for row in missing], self._sampling, "none")
        self._reference.update((row.tokens, output) for row, output in zip(missing, outputs, strict=True))
        return [self._reference[row.tokens] for row in rows]

    def measure_unit(self, unit: Unit, advance: Callable[[], None] = lambda: None) -> Record:
        """One unit: {key, ratio, group, natural, drift: {capture: [rows][layers]}, cells: [...]}.

        A cell is one (capture, depth, interval) with a list of rows: ratio, kind, whether the text is that of mode none
        (`same`), the edit distance of the tokens and the longer length, right answers (None without one) of both, NFE.
        """
        lab, canvas = self._lab, self._sampling.max_new_tokens
        captured = {kind: self._capture(kind, unit) for kind in self._captures}
        drift = self._drift(unit, captured)
        reference = self.reference(unit.rows)
        cells = []

        def add(capture: str, depth: int, interval: int, outputs: Sequence[RequestOutput]) -> None:
            advance()
            rows = [
                _compared(row, output, exact, canvas)
                for row, output, exact in zip(unit.rows, outputs, reference, strict=True)
            ]
            cells.append({"capture": capture, "depth": depth, "interval": interval, "rows": rows})

        prompts = [row.tokens for row in unit.rows]
        add("first", 0, ONCE, lab.decode(prompts, self._sampling, "bicache", salt=SALT))
        for capture in self._captures:
            for depth in self._depths:
                once: list[RequestOutput] | None = None
                for interval in sorted(self._intervals) if capture == "first" else (ONCE,):
                    if once is None or any(output.nfe > interval for output in once):
                        outputs = lab.decode(
                            prompts, self._sampling, "bicache", salt=SALT, capture=capture, depth=depth,
                            interval=interval, cut=unit.cut,
                        )  # fmt: skip
                    else:
                        outputs = once  # too few passes for this interval: no refresh would come due
                    once = once or outputs
                    add(capture, depth, interval, outputs)
        lab.forget()
        return {
            "key": unit.key, "ratio": unit.ratio, "group": unit.group, "natural": unit.natural, "cut": unit.cut,
            "drift": drift, "cells": cells,
        }  # fmt: skip

    def measure_margin(self, unit: Unit, margins: Sequence[int], depth: int, interval: int) -> list[Record]:
        """Answers when a prefix is reused up to each margin before the place where donor and row part.

        Rows have a `distance` too: from that place to where reuse ended (None when nothing was reused).
        """
        lab, canvas = self._lab, self._sampling.max_new_tokens
        lab.capture(SALT, "first", unit.donor, len(unit.donor), canvas)
        reference = self.reference(unit.rows)
        out = []
        for margin in margins:
            outputs = lab.decode(
                [row.tokens for row in unit.rows], self._sampling, "bicache", salt=SALT, capture="first", depth=depth,
                interval=interval, cut=len(unit.donor), margin=margin,
            )  # fmt: skip
            rows = []
            for row, output, exact in zip(unit.rows, outputs, reference, strict=True):
                reused = output.cached_tokens
                distance = common_length([unit.donor, row.tokens]) - reused if reused else None
                rows.append({**_compared(row, output, exact, canvas), "distance": distance})
            out.append({"margin": margin, "depth": depth, "interval": interval, "rows": rows})
        lab.forget()
        return out

    def _capture(self, kind: str, unit: Unit) -> Captured:
        lab, canvas = self._lab, self._sampling.max_new_tokens
        if kind == "first":
            return lab.capture(SALT, kind, unit.donor, unit.cut, canvas)
        if kind == "alone":
            return lab.capture(SALT, kind, unit.donor[: unit.cut], unit.cut)
        (output,) = lab.decode([unit.donor], self._sampling, "dual")
        return lab.capture(SALT, kind, (*unit.donor, *output.token_ids), unit.cut)

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
