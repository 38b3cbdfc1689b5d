from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from shoal.text.asks import Asker, Documents

from .tiny import write_base, write_data


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    return write_base(tmp_path_factory.mktemp("text") / "base")


@pytest.fixture(scope="session")
def data(tmp_path_factory, base) -> Path:
    return write_data(tmp_path_factory.mktemp("text") / "data", base)


@pytest.fixture(scope="session")
def tokenizer(base) -> Tokenizer:
    return Tokenizer.from_file(str(base / "tokenizer.json"))


@pytest.fixture(scope="session")
def asker(data, tokenizer) -> Asker:
    labels = json.loads((data / "labels.json").read_text())
    return Asker(Documents(np.load(data / "rows.npy"), labels, tokenizer))
