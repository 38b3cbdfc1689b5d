"""A tiny model folder, and one thread."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..runtime.tiny import write_model


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """All tests of this folder."""


@pytest.fixture(scope="session", params=["llada", "dream"])
def folder(request, tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp(request.param) / "model", request.param)


@pytest.fixture(scope="session")
def llada(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("llada") / "model", "llada")
