"""The measurements on disk: JSON lines from which a stopped profile continues."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..runtime.errors import ConfigError

FILE = "measurements.jsonl"
FORMAT = "shoal-profile-measurements"
VERSION = 1


class Store:
    """Records by key in `folder/measurements.jsonl`, each written at once.

    `settings` is everything that the records depend on; a file of other settings is refused (ConfigError, field "out")
    unless `restart` deletes it. A last line that a stop cut off is dropped.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], restart: bool = False):
        self.path = folder / FILE
        self.records: dict[str, dict[str, Any]] = {}
        settings = json.loads(json.dumps(settings))
        head = {"format": FORMAT, "version": VERSION, "settings": settings}
        folder.mkdir(parents=True, exist_ok=True)
        if restart or not self.path.exists():
            self.path.write_text(json.dumps(head) + "\n", encoding="utf-8")
            return
        lines = _whole_lines(self.path)
        if not lines or lines[0] != head:
            changed = _differences(lines[0].get("settings", {}) if lines else {}, settings)
            message = f"out: {self.path} is of another profile ({changed}): choose another folder, or --restart"
            raise ConfigError(message, field="out", value=str(folder))
        self.records = {line["key"]: line for line in lines[1:]}
        text = "".join(json.dumps(line) + "\n" for line in lines)
        self.path.write_text(text, encoding="utf-8")

    def add(self, record: dict[str, Any]) -> None:
        """Keep a record under its `key`."""
        self.records[record["key"]] = record
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").split("\n")
    out = []
    for line in lines[:-1]:
        try:
            out.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return out


def _differences(one: dict[str, Any], other: dict[str, Any]) -> str:
    names = [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]
    return f"other {', '.join(names)}" if names else "not a file of this version"
