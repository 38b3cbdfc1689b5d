"""Questions about plain documents, for users without questions: `shoal profile MODEL --data documents.txt`.

A document is a piece of the file with made-up facts strewn over it. The questions depend on single tokens of the
prefix: facts, sentences, words. Too deep a reuse loses such answers first (docs/text.md).
"""

from __future__ import annotations

import random
import re
from pathlib import Path

from ..runtime.errors import ConfigError
from ..runtime.text.tokenizer import Tokenizer
from .data import Groups, Row

SUFFIXES = (".txt", ".md")
"""Files that hold documents; all others hold rows."""
PIECE_TOKENS = 400
_LEAST_TOKENS = 64
_OF_A_KIND = 6
_PEOPLE = (
    "Alvarez", "Bauer", "Costa", "Dubois", "Eriksen", "Fischer", "Grant", "Haddad", "Ivanov", "Jensen", "Kimura",
    "Lopez",
)  # fmt: skip
_WORDS = (
    "amber", "anchor", "basket", "candle", "copper", "falcon", "garden", "harbor", "lantern", "marble", "orange",
    "pepper", "ribbon", "silver", "velvet",
)  # fmt: skip


def holds_documents(path: Path) -> bool:
    """Whether a data file is text to ask about, by its name."""
    return path.suffix.lower() in SUFFIXES


def make_questions(path: Path, tokenizer: Tokenizer | None, seed: int) -> Groups:
    """Questions of the kinds look-up, quotation and missing word about each piece of a file; a piece is a group.

    An answer is right if it contains the words looked for. Raises ConfigError (field "data") for a file that can't be
    read or is too short, and for a model without a tokenizer.
    """
    if tokenizer is None:
        raise ConfigError("data: the model has no tokenizer: give rows with tokens", field="data", value=str(path))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"data: {path} can't be read: {error}", field="data", value=str(path)) from error
    groups: Groups = {}
    for number, piece in enumerate(_pieces(text, tokenizer), 1):
        rng = random.Random(f"questions-{seed}-{number}")
        document, asked = _asked(rng, piece)
        groups[f"piece {number}"] = [
            Row(tuple(_prompt(tokenizer, document, question)), answer, kind, contains=True)
            for kind, question, answer in asked
        ]
    if not groups:
        limit = f"at least {_LEAST_TOKENS} tokens of text"
        raise ConfigError(f"data: {path} is too short: {limit} are needed", field="data", value=str(path), limit=limit)
    return groups


def _pieces(text: str, tokenizer: Tokenizer) -> list[str]:
    """Whole sentences of about PIECE_TOKENS tokens."""
    sentences = [s for part in re.split(r"\n\s*\n", text) for s in re.split(r"(?<=[.!?])\s+", " ".join(part.split()))]
    pieces: list[str] = []
    current: list[str] = []
    length = 0
    for sentence in filter(None, sentences):
        current.append(sentence)
        length += len(tokenizer.encode(sentence, add_special_tokens=False)) + 1
        if length >= PIECE_TOKENS:
            pieces.append(" ".join(current))
            current, length = [], 0
    if length >= (PIECE_TOKENS // 2 if pieces else _LEAST_TOKENS):
        pieces.append(" ".join(current))
    return pieces


def _asked(rng: random.Random, piece: str) -> tuple[str, list[tuple[str, str, str]]]:
    """The piece with facts in it, and (kind, question, answer) of each question."""
    sentences = re.split(r"(?<=[.!?])\s+", piece)
    long = [s for s in sentences if 8 <= len(s.split()) <= 40]
    people, words = rng.sample(_PEOPLE, _OF_A_KIND), rng.sample(_WORDS, _OF_A_KIND)
    asked = [("look-up", f"What is the code word of {who}?", word) for who, word in zip(people, words, strict=True)]
    for sentence in rng.sample(long, min(_OF_A_KIND, len(long))):
        parts = sentence.split()
        start = " ".join(parts[:4])
        asked.append(("quotation", f'Quote the sentence that begins with "{start}".', " ".join(parts[4:])))
        gaps = [i for i, part in enumerate(parts) if i and len(part) > 4 and part.isalpha()]
        if gaps:
            gap = rng.choice(gaps)
            holed = " ".join([*parts[:gap], "____", *parts[gap + 1 :]])
            asked.append(("missing word", f"Which word is missing here? {holed}", parts[gap]))
    for who, word in zip(people, words, strict=True):
        sentences.insert(rng.randint(0, len(sentences)), f"The code word of {who} is {word}.")
    rng.shuffle(asked)
    return " ".join(sentences), asked


def _prompt(tokenizer: Tokenizer, document: str, question: str) -> list[int]:
    if tokenizer.has_chat_template:
        return tokenizer.apply_chat_template([{"role": "user", "content": f"{document}\n\n{question}"}])
    return tokenizer.encode(f"{document}\n\nQuestion: {question}\nAnswer:")
