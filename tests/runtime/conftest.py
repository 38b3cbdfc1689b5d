"""Tiny models, written once a session."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .oracle import Dense
from .tiny import CONFIGS, state_of, write_model


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """All tests of this folder."""


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """An empty folder whose name leaves room for the names of Unix sockets: `tmp_path` may be too long."""
    with tempfile.TemporaryDirectory(prefix="test-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: write_model(root / name, name) for name in CONFIGS}


@pytest.fixture(scope="session")
def oracles() -> dict[str, Dense]:
    return {name: Dense(CONFIGS[name], state_of(name)) for name in CONFIGS}


@pytest.fixture(params=list(CONFIGS))
def name(request) -> str:
    return request.param


@pytest.fixture
def folder(folders, name) -> Path:
    return folders[name]


@pytest.fixture
def oracle(oracles, name) -> Dense:
    return oracles[name]


@pytest.fixture
def llada(folders) -> Path:
    return folders["llada"]
