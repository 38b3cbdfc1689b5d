"""Documents as tokens: training rows, held-out documents, and pieces of text for the rows that ask."""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

ROW = 1024
END = 0
"""`<|endoftext|>`: between documents, and behind an answer to the end of its canvas."""
_LEAST = 32


def read_documents(file: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of each line `[name, text]` of a JSON-lines file, which may be compressed with xz."""
    with lzma.open(file, "rt", encoding="utf-8") if file.suffix == ".xz" else file.open(encoding="utf-8") as lines:
        for line in lines:
            name, text = json.loads(line)
            yield name, text


def is_held_out(name: str) -> bool:
    """Whether a document is kept for evaluation: about half of Brown's and a 33rd of the others', by their names."""
    number = int(hashlib.md5(name.encode(), usedforsecurity=False).hexdigest(), 16)
    return number % (2 if name.startswith("brown:") else 33) == 0


def label_of(name: str) -> str:
    """The package that a document came from."""
    return name.split(":")[0]


def prepare(documents: Path, tokenizer: Tokenizer, out: Path, row: int = ROW) -> None:
    """Write `rows.npy` [n, row] uint16 and `labels.json`, a row's package each, and `held.npz`, held-out documents.

    A long document gives whole rows; what is left of each is joined with its neighbours', END between.
    """
    rows: list[np.ndarray] = []
    labels: list[str] = []
    rest: list[np.ndarray] = []
    held: list[np.ndarray] = []
    names: list[str] = []
    for name, ids in _encoded(documents, tokenizer):
        if is_held_out(name):
            held.append(ids)
            names.append(name)
            continue
        whole = len(ids) // row
        rows += [ids[i * row : (i + 1) * row] for i in range(whole)]
        labels += [label_of(name)] * whole
        if len(ids) - whole * row >= _LEAST:
            rest.append(np.append(ids[whole * row :], END).astype(np.uint16))
    tail = np.concatenate(rest) if rest else np.zeros(0, np.uint16)
    count = len(tail) // row
    rows += list(tail[: count * row].reshape(count, row))
    labels += [""] * count
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "rows.npy", np.stack(rows))
    (out / "labels.json").write_text(json.dumps(labels))
    offsets = np.cumsum([0] + [len(ids) for ids in held])
    tokens = np.concatenate(held) if held else np.zeros(0, np.uint16)
    np.savez(out / "held.npz", names=np.array(names), offsets=offsets, tokens=tokens)


def held_out(file: Path, length: int, count: int) -> tuple[np.ndarray, list[str]]:
    """`count` held-out documents' first `length` tokens [count, length], half of them of Brown, and their names.

    At most eight of a package; fewer than `count` where there are not as many.
    """
    stored = np.load(file)
    names, offsets, tokens = [str(n) for n in stored["names"]], stored["offsets"], stored["tokens"]
    random = np.random.RandomState(5)
    brown, others = [], []
    taken: dict[str, int] = {}
    for i in random.permutation(len(names)):
        if offsets[i + 1] - offsets[i] < length:
            continue
        label = label_of(names[i])
        if label == "brown":
            brown.append(i)
        elif taken.get(label, 0) < 8:
            taken[label] = taken.get(label, 0) + 1
            others.append(i)
    of_brown = min(len(brown), max(count // 2, count - len(others)))
    chosen = brown[:of_brown] + others[: count - of_brown]
    chosen = [chosen[i] for i in random.permutation(len(chosen))]
    rows = [tokens[offsets[i] : offsets[i] + length].astype(np.int64) for i in chosen]
    return np.stack(rows), [names[i] for i in chosen]


def _encoded(documents: Path, tokenizer: Tokenizer, batch: int = 500) -> Iterator[tuple[str, np.ndarray]]:
    pending: list[tuple[str, str]] = []
    for pair in read_documents(documents):
        pending.append(pair)
        if len(pending) == batch:
            yield from _encode(pending, tokenizer)
            pending = []
    yield from _encode(pending, tokenizer)


def _encode(pairs: list[tuple[str, str]], tokenizer: Tokenizer) -> Iterator[tuple[str, np.ndarray]]:
    encodings = tokenizer.encode_batch_fast([text for _, text in pairs], add_special_tokens=False)
    for (name, _), encoding in zip(pairs, encodings, strict=True):
        yield name, np.array(encoding.ids, dtype=np.uint16)


def main(arguments: list[str] | None = None) -> None:
    """Command line: documents in, tokens out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=Path, required=True, help="what shoal.text.documents wrote")
    parser.add_argument("--base", type=Path, required=True, help="folder of the causal base")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    prepare(options.documents, Tokenizer.from_file(str(options.base / "tokenizer.json")), options.out)


if __name__ == "__main__":
    main()
