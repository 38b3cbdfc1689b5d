"""For the files check_*.py, which `test_triton.py` runs in processes of their own."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def poisoned():
    """`torch.empty` gives NaN and huge integers; data are new in every run, and the seed is shown on failure."""
    print("torch.manual_seed", torch.seed())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
