"""Tiny models, written once a session."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from .oracle import Dense
from .tiny import CONFIGS, state_of, write_model


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors here are too small for more, and threads that spin make the tests slow on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
