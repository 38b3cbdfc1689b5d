"""The rows of a profile's data file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runtime.errors import ConfigError, ShoalError, shorten
from ..runtime.text.tokenizer import Tokenizer

_PROMPTS = ("messages", "prompt", "tokens")
_OTHERS = ("answer", "kind", "group")


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt as token ids, its right answer (None: not known), and its kind.

    With `contains` an answer is right if it contains that text, ignoring case and spaces; otherwise if it equals it.
    """

    tokens: tuple[int, ...]
    answer: str | None
    kind: str
    contains: bool = False

    def is_right(self, text: str) -> bool | None:
        """Whether a text is the right answer; None if that is not known."""
        if self.answer is None:
            return None
        if self.contains:
            return " ".join(self.answer.lower().split()) in " ".join(text.lower().split())
        return text.strip() == self.answer.strip()


Groups = dict[str, list[Row]]


def data_digest(path: Path) -> str:
    """SHA-256 (hex) of the file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_groups(path: Path, tokenizer: Tokenizer | None) -> Groups:
    """Rows by group, in the file's order; a row without a group is one of its own.

    Raises ConfigError (field "data") with the number of the first line that is wrong.
    """
    groups: Groups = {}
    try:
        for number, values in _lines(path):
            name = values.get("group")
            key = f"row {number}" if name is None else str(name)
            groups.setdefault(key, []).append(_row(path, number, values, tokenizer))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"data: {path} can't be read: {error}", field="data", value=str(path)) from error
    if not groups:
        raise ConfigError(f"data: {path} has no rows", field="data", value=str(path), limit="at least one row")
    return groups


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except json.JSONDecodeError as error:
                _refuse(path, number, f"is not JSON: {error}")
            if not isinstance(values, dict):
                _refuse(path, number, "must be a JSON object")
            yield number, values


def _row(path: Path, number: int, values: dict[str, Any], tokenizer: Tokenizer | None) -> Row:
    unknown = sorted(set(values) - {*_PROMPTS, *_OTHERS})
    if unknown:
        _refuse(path, number, f"has {unknown[0]!r}; known: {', '.join((*_PROMPTS, *_OTHERS))}")
    given = [name for name in _PROMPTS if values.get(name) is not None]
    if len(given) != 1:
        _refuse(path, number, f"must have exactly one of {', '.join(_PROMPTS)}")
    prompt, answer = values[given[0]], values.get("answer")
    if answer is not None and not isinstance(answer, str):
        _refuse(path, number, f"answer must be text, got {shorten(answer)}")
    if given[0] == "tokens":
        if not isinstance(prompt, list) or not all(isinstance(token, int) and token >= 0 for token in prompt):
            _refuse(path, number, "tokens must be a list of token ids")
        ids = prompt
    elif tokenizer is None:
        _refuse(path, number, "has text, but the model has no tokenizer: give tokens")
    else:
        try:
            ids = tokenizer.encode(prompt) if given[0] == "prompt" else tokenizer.apply_chat_template(prompt)
        except (ShoalError, TypeError, ValueError) as error:
            _refuse(path, number, f"{given[0]} can't be tokenized: {error}")
    if not ids:
        _refuse(path, number, f"{given[0]} is empty")
    return Row(tuple(int(token) for token in ids), answer, str(values.get("kind") or "all"))


def _refuse(path: Path, number: int, words: str) -> Any:
    message = f"data: line {number} of {path} {words}"
    raise ConfigError(message, field="data", value=number, limit="rows as `shoal profile --help` says")
