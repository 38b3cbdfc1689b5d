"""An engine and a server with the bundled model, a price list, and a tiny engine that checks its pages."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from shoal.frontend import set_default_backend
from shoal.runtime.engine.engine import Engine
from shoal.shop.task import PriceList, make_list

from ..runtime.http.process import ServerProcess
from ..runtime.tiny import make_engine, write_model


@pytest.fixture(scope="session")
def shop() -> Iterator[Engine]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with Engine("shop") as engine:
        yield engine
        engine.check()
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llada", "llada")


@pytest.fixture(scope="session")
def tiny(tiny_model) -> Iterator[Engine]:
    """Reuses nothing: what a test gets does not depend on the tests before it."""
    with make_engine(tiny_model, cache_mode="none") as engine:
        yield engine
        engine.check()


@pytest.fixture(scope="session")
def sharing(tiny_model) -> Iterator[Engine]:
    """Reuses prefixes across requests."""
    with make_engine(tiny_model) as engine:
        yield engine
        engine.check()


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("server") / "server.log") as process:
        yield process


@pytest.fixture(autouse=True)
def no_default() -> Iterator[None]:
    yield
    set_default_backend(None)


@pytest.fixture(scope="session")
def prices() -> PriceList:
    return make_list(random.Random(11), 30, held_out=True)
