"""Which token stands for an unfilled position of the canvas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import ModelLoadError
from .config_fields import Fields
from .family import Family


def mask_token_id(fields: Fields, family: Family, folder: Path | None, given: int | None) -> int:
    """The option, else `config.json`, else the family's published models, else the tokenizer's `mask_token`.

    Raises: ModelLoadError that names the ways out.
    """
    if given is not None:
        return given
    if "mask_token_id" in fields:
        return fields.token_id("mask_token_id")
    found = family.mask_token_id
    if found is None and folder is not None:
        found = _of_tokenizer(folder)
    if found is None:
        limit = "a value: the key is required where neither the tokenizer nor --mask-token-id names the mask"
        message = (
            "no mask token is known: config.json has no 'mask_token_id', the tokenizer's files name no 'mask_token', "
            f"and shoal's table has none for the family {family.name!r}. Add either key, or say --mask-token-id "
            "(mask_token_id=... in Python)"
        )
        raise ModelLoadError(message, field="mask_token_id", value=None, limit=limit)
    return found


def _of_tokenizer(folder: Path) -> int | None:
    """Id of `mask_token` in a tokenizer's files; None where they name none or give it no id."""
    settings = [_read(folder / name) for name in ("tokenizer_config.json", "special_tokens_map.json")]
    token = next((token for values in settings if (token := _content(values.get("mask_token")))), None)
    if token is None:
        return None
    return token_id_of(folder, token)


def token_id_of(folder: Path, token: str) -> int | None:
    """Id of the text of one token in a tokenizer's files; None where they have none."""
    added = _read(folder / "tokenizer_config.json").get("added_tokens_decoder")
    for number, entry in (added if isinstance(added, dict) else {}).items():
        if _content(entry) == token and number.isdecimal():
            return int(number)
    whole = _read(folder / "tokenizer.json")
    entries = whole.get("added_tokens")
    ids = {_content(entry): entry.get("id") for entry in entries if isinstance(entry, dict)} if entries else {}
    model = whole.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    places = (ids, _read(folder / "added_tokens.json"), vocabulary, _read(folder / "vocab.json"))
    found = next((place[token] for place in places if isinstance(place, dict) and token in place), None)
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def _content(token: Any) -> str | None:
    """A token is written as its text, or as an object with it."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none: loading the tokenizer says what is wrong with its files."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
