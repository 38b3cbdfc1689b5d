"""A model folder's generation_config.json, and the ends that it and config.json name. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from ..errors import ModelLoadError, shorten

FILE = "generation_config.json"


def read_generation_config(folder: str | Path) -> dict[str, Any]:
    """The content of a model's generation_config.json; {} without one. Raises ModelLoadError for a broken one."""
    return _read(Path(folder) / FILE)


def eos_ids(folder: str | Path, vocabulary: int) -> tuple[int, ...]:
    """All ids of `eos_token_id` in config.json and generation_config.json, a number or a list in each; sorted.

    Raises ModelLoadError for an entry that is no id below `vocabulary`.
    """
    found: set[int] = set()
    for name in ("config.json", FILE):
        value = _read(Path(folder) / name).get("eos_token_id")
        for token in value if isinstance(value, list) else [] if value is None else [value]:
            if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < vocabulary:
                _refuse("eos_token_id", name, token, f"token ids below {vocabulary}")
            found.add(token)
    return tuple(sorted(found))


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError, RecursionError) as error:
        message = f"{path.name} in {str(path.parent)!r} can't be read: {error}"
        raise ModelLoadError(message, field=path.name, value=str(path), limit="a JSON object") from error
    if not isinstance(values, dict):
        message = f"{path.name} in {str(path.parent)!r} is {shorten(values)}; it must be a JSON object"
        raise ModelLoadError(message, field=path.name, value=str(path), limit="a JSON object")
    return values


def _refuse(field: str, file: str, value: object, limit: str) -> NoReturn:
    raise ModelLoadError(f"{field} in {file} has {shorten(value)}; it must hold {limit}", field=field, value=value,
                         limit=limit)  # fmt: skip
