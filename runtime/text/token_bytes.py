"""The bytes that each ordinary token adds to a text, for decoders that put the texts of tokens one after another."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from ..errors import ModelLoadError

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_BLANK = "\u2581"
_TRIED = 500


def load_token_bytes(folder: str | Path) -> dict[int, bytes]:
    """By token id; special and added tokens are left out. Raises ModelLoadError for a decoder that does more."""
    path = Path(folder) / "tokenizer.json"
    if path.is_file():
        backend = Backend.from_file(str(path))
    else:
        from .tokenizer import Tokenizer

        backend = Tokenizer.load(folder).fast_backend
    return token_bytes(backend)


def token_bytes(backend: Backend | None) -> dict[int, bytes]:
    """As `load_token_bytes`, of a tokenizer that is loaded.

    Known are byte-level BPE (GPT-2's letters for bytes), SentencePiece's blank and byte tokens, and tokens that are
    their own text. Whether they hold is tried on random sequences of three tokens.
    """
    if backend is None:
        raise _unknown("it has no tokenizer.json")
    settings = json.loads(backend.to_str())
    kinds = set(_kinds(settings.get("decoder")))
    if not kinds:
        raise _unknown("it has no decoder")
    added = backend.get_added_tokens_decoder()
    letters = _letters() if "ByteLevel" in kinds else None
    found = {}
    for word, token in backend.get_vocab(with_added_tokens=False).items():
        if token in added:
            continue
        if letters is not None:
            if all(letter in letters for letter in word):
                found[token] = bytes(letters[letter] for letter in word)
        elif "ByteFallback" in kinds and (byte := _BYTE.fullmatch(word)):
            found[token] = bytes([int(byte[1], 16)])
        else:
            found[token] = (word.replace(_BLANK, " ") if kinds & {"Metaspace", "Replace"} else word).encode()
    _try(backend, found)
    return {token: data for token, data in found.items() if data}


def _try(backend: Backend, found: dict[int, bytes]) -> None:
    """Raise ModelLoadError if a decoder gives three tokens another text than their bytes."""
    rng, ids = random.Random(0), sorted(found)
    for _ in range(_TRIED if ids else 0):
        first, second, third = rng.choice(ids), rng.choice(ids), rng.choice(ids)
        expected = found[first] + found[second] + found[third]
        text = backend.decode([first, second, third], skip_special_tokens=False)
        if text.lstrip(" ") != expected.decode(errors="replace").lstrip(" "):
            raise _unknown(f"its decoder gives {text!r} for the tokens {first}, {second} and {third}")


def _kinds(decoder: Any) -> list[str]:
    if not isinstance(decoder, dict):
        return []
    return [str(decoder.get("type")), *(kind for part in decoder.get("decoders") or () for kind in _kinds(part))]


def _letters() -> dict[str, int]:
    """GPT-2's letter for each byte: printable ones stand for themselves, the others for letters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + at): byte for at, byte in enumerate(rest)}


def _unknown(reason: str) -> ModelLoadError:
    message = f"structured output needs a tokenizer whose text is that of its tokens one after another, but {reason}"
    return ModelLoadError(
        message, field="tokenizer", limit="byte-level BPE, SentencePiece, or words with a Fuse decoder"
    )
