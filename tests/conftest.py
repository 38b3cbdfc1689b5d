"""What tests of several folders share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of few long tests first, so that processes that share the files end at about the same time."""
    items.sort(key=lambda item: "/triton/" not in item.nodeid)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch computes in one thread: tensors here are too small for more, and threads that spin make tests slow on a
    busy machine. With one the order of sums, and so the last bit, does not depend on how busy it is.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
