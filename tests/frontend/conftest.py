"""An engine and a server with the bundled model, a price list, and a tiny engine that checks its pages."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch

from shoal.frontend import set_default_backend
from shoal.runtime.engine import Engine
from shoal.shop.task import PriceList, make_list

from ..engine.tiny import make_engine, write_model
from ..server.process import ServerProcess


@pytest.fixture(scope="session")
def shop() -> Iterator[Engine]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with Engine("shop") as engine:
        yield engine
        engine.check()
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Iterator[Engine]:
    with make_engine(write_model(tmp_path_factory.mktemp("models") / "llada", "llada")) as engine:
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
