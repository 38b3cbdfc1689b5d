"""A CSV that is written row by row: every result is on disk at once, whatever ends the run."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO


class Table:
    """Rows of one results file.

    The first row replaces an existing file and fixes the columns.

    Args:
        path: of the CSV; None keeps nothing.
        constant: last columns of every row: its provenance.
    """

    def __init__(self, path: Path | None, constant: Mapping[str, object]):
        self._path, self._constant = path, dict(constant)
        self._file: TextIO | None = None
        self._writer: csv.DictWriter[str] | None = None

    def add(self, row: Mapping[str, object]) -> None:
        """Write a row; ValueError for a column that the first row did not have. Columns that it lacks stay empty."""
        if self._path is None:
            return
        if self._file is None or self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("w", newline="", encoding="utf-8")
            self._writer = csv.DictWriter(self._file, fieldnames=[*row, *self._constant], lineterminator="\n")
            self._writer.writeheader()
        self._writer.writerow({**row, **self._constant})
        self._file.flush()


def write_table(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows of the same columns as one CSV; there must be a row."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
