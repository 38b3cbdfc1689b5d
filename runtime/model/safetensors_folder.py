"""Read the weights of a model folder: one `model.safetensors`, or shards with an index.

Headers are parsed and checked against the file sizes before any weight is read, so a truncated download is
found at once; then one tensor at a time is read into memory. Format:
https://github.com/huggingface/safetensors (8 bytes little-endian header length, JSON header, data).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..errors import ModelLoadError, shorten
from .slices import Slice

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_MAX_HEADER_BYTES = 100_000_000
_FLOAT_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Place of one tensor: `size` bytes at `offset` of `file`, of safetensors type `dtype`."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


class SafetensorsFolder:
    """The tensors of a folder by name, opened by reading headers only: of the file `single`, or of shards.

    `entries` maps each tensor's name to its place. Raises ModelLoadError, on construction, for a folder
    without safetensors, a missing shard (named), a file that is truncated or not safetensors, and an index
    that disagrees with its shards.
    """

    def __init__(self, folder: str | Path, single: str = SINGLE_FILE):
        self.folder = Path(folder)
        self.entries: dict[str, TensorEntry] = {}
        self._single = single
        index = self.folder / INDEX_FILE
        if single == SINGLE_FILE and index.is_file():
            self._open_shards(index)
        elif (self.folder / single).is_file():
            self.entries = _read_header(self.folder / single)
        else:
            self._refuse_folder()

    def read(self, name: str, shape: tuple[int, ...], part: Slice | None = None) -> Tensor:
        """The tensor `name`, known to have this shape, or a slice of it, on the CPU in its stored dtype.

        Reads no more of the file than the slice. The memory is the caller's.
        """
        entry = self.entries[name]
        self.check_dtype(entry)
        dtype = _FLOAT_DTYPES[entry.dtype]
        if part is None:
            part = Slice(0, 0, shape[0])
        out = torch.empty(part.of(shape), dtype=dtype)
        if not out.numel():
            return out
        # Runs of bytes that lie together: one of a slice of rows, one in each row of a slice of columns.
        runs = out.view(torch.uint8).view(math.prod(shape[: part.dim]), -1).numpy()
        stride = math.prod(shape[part.dim :]) * dtype.itemsize
        start = entry.offset + part.start * math.prod(shape[part.dim + 1 :]) * dtype.itemsize
        with _opened(entry.file) as file:
            for number, run in enumerate(runs):
                file.seek(start + number * stride)
                if file.readinto(run.data) != run.size:
                    _corrupt(entry.file, f"ends inside tensor {name!r}")
        return out

    @staticmethod
    def check_dtype(entry: TensorEntry) -> None:
        """Raises: ModelLoadError when a tensor isn't stored in floating point."""
        if entry.dtype not in _FLOAT_DTYPES:
            names = ", ".join(_FLOAT_DTYPES)
            raise ModelLoadError(
                f"tensor {entry.name!r} in {entry.file.name} has dtype {entry.dtype}: expected {names} (quantised "
                "checkpoints are not supported)",
                field=entry.name,
                value=entry.dtype,
                limit=names,
            )

    def read_bytes(self, entry: TensorEntry, start: int, count: int) -> bytes:
        """Up to `count` raw bytes of a tensor from its byte `start` on."""
        with _opened(entry.file) as file:
            file.seek(entry.offset + start)
            return file.read(max(0, min(count, entry.size - start)))

    @property
    def num_bytes(self) -> int:
        """Size of all tensors together."""
        return sum(entry.size for entry in self.entries.values())

    def _open_shards(self, index: Path) -> None:
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            shards = sorted(set(weight_map.values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ModelLoadError(
                f"{INDEX_FILE} in {str(self.folder)!r} can't be read: {error!r}",
                field=INDEX_FILE,
                value=str(index),
                limit='a JSON object with a "weight_map" of tensor names to shard files',
            ) from error
        for shard in shards:
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise ModelLoadError(
                    f"{INDEX_FILE} names a shard outside its folder: {shorten(shard)}",
                    field="weight_map",
                    value=shard,
                    limit="a file name in the same folder",
                )
            path = self.folder / shard
            if not path.is_file():
                raise ModelLoadError(
                    f"shard {shard!r} is missing from {str(self.folder)!r}: {INDEX_FILE} lists {len(shards)} shards",
                    field=shard,
                    value=str(path),
                    limit="an existing file",
                )
            for name, entry in _read_header(path).items():
                if weight_map.get(name) == shard:
                    self.entries[name] = entry
        lost = sorted(set(weight_map) - set(self.entries))
        if lost:
            raise ModelLoadError(
                f"shard {weight_map[lost[0]]!r} lacks tensor {lost[0]!r}, which {INDEX_FILE} says it holds"
                + (f" ({len(lost)} tensors are lost like this)" if len(lost) > 1 else ""),
                field=lost[0],
                value=weight_map[lost[0]],
                limit="an index that agrees with its shards",
            )

    def _refuse_folder(self) -> NoReturn:
        names = sorted(path.name for path in self.folder.iterdir()) if self.folder.is_dir() else []
        pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
        shards = [name for name in names if name.endswith(".safetensors")]
        if pickled:
            reason = f"holds pickled weights ({pickled[0]}), which can run code when loaded and are never read"
        elif shards:
            reason = f"holds {shards[0]} but no {INDEX_FILE} that lists the shards"
        else:
            reason = "holds no weights"
        expected = f"{SINGLE_FILE}, or {INDEX_FILE} and its shards" if self._single == SINGLE_FILE else self._single
        raise ModelLoadError(
            f"{str(self.folder)!r} {reason}: expected {expected}",
            field="weights",
            value=next(iter(pickled or shards), None),
            limit=expected,
        )


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    """The file, open for reading. Raises: ModelLoadError when it can't be opened or read."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise ModelLoadError(
            f"{path.name} can't be read: {error}", field=path.name, value=str(path), limit="a file that can be read"
        ) from error


def _read_header(path: Path) -> dict[str, TensorEntry]:
    with _opened(path) as file:
        file_size = os.fstat(file.fileno()).st_size
        header_size = int.from_bytes(file.read(8), "little")
        if file_size < 8 or header_size > min(file_size - 8, _MAX_HEADER_BYTES):
            _corrupt(path, f"is {file_size} bytes long but announces a header of {header_size}")
        try:
            header: Any = json.loads(file.read(header_size))
            entries = [
                _entry(path, name, value, 8 + header_size) for name, value in header.items() if name != "__metadata__"
            ]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            _corrupt(path, f"has a header that can't be read ({error!r})", error)
    for entry in entries:
        if entry.offset + entry.size > file_size:
            _corrupt(
                path, f"is {file_size} bytes long, but tensor {entry.name!r} ends at byte {entry.offset + entry.size}"
            )
    return {entry.name: entry for entry in entries}


def _entry(path: Path, name: str, value: dict[str, Any], data_start: int) -> TensorEntry:
    start, end = value["data_offsets"]
    shape = tuple(int(size) for size in value["shape"])
    dtype = value["dtype"]
    if not (isinstance(start, int) and isinstance(end, int) and 0 <= start <= end) or min(shape, default=0) < 0:
        raise ValueError(f"tensor {name!r} lies at bytes {start} to {end}")
    if dtype in _FLOAT_DTYPES and math.prod(shape) * _FLOAT_DTYPES[dtype].itemsize != end - start:
        raise ValueError(f"tensor {name!r} of shape {list(shape)} and dtype {dtype} takes {end - start} bytes")
    return TensorEntry(name, path, dtype, shape, data_start + start, end - start)


def _corrupt(path: Path, reason: str, cause: Exception | None = None) -> NoReturn:
    raise ModelLoadError(
        f"{path.name} {reason}: the file is truncated or not a safetensors file; fetch it again",
        field=path.name,
        value=str(path),
        limit="a complete safetensors file",
    ) from cause
