"""One server process for all tests of this folder that need no flags of their own."""

from __future__ import annotations

import random
from collections.abc import Iterator

import httpx
import pytest

from shoal.shop.task import PriceList, make_list

from .process import ServerProcess

FLAGS = ("--kv-cache-tokens", "16384", "--max-running-requests", "16", "--check-invariants", "--max-n", "4",
         "--max-batch", "64", "--max-priority", "9", "--max-body-bytes", "1000000", "--log-requests")  # fmt: skip


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("server")
    with ServerProcess(folder / "server.log", *FLAGS, "--profile-dir", str(folder / "profiles")) as process:
        yield process


@pytest.fixture
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="session")
def prices() -> PriceList:
    return make_list(random.Random(7), 24, held_out=True)
