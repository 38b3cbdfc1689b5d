"""A tiny model folder, and one thread."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ..runtime.tiny import write_model


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", params=["llada", "dream"])
def folder(request, tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp(request.param) / "model", request.param)


@pytest.fixture(scope="session")
def llada(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("llada") / "model", "llada")
