"""Two gateways before one replica."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from benchmarks.ray_cluster import ray_application, wait_until

pytest.importorskip("ray", reason="needs pip install shoal[ray]")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of Ray's own classes
]
ARGS = {"model_path": "shop", "device": "cpu", "num_gateways": 2, "kv_cache_tokens": 8192,
        "log_level": "warning", "drain_timeout_s": 2.0}  # fmt: skip
LONG = {"max_new_tokens": 512, "block_length": 16, "ignore_eos": True, "steps": 512}


@pytest.fixture(scope="module")
def url():
    with ray_application(ARGS) as running:
        assert wait_until(lambda: running.running() == 1, 120)
        yield running.url


def generate(url: str, rid: str):
    """The reply's meta_info; a connection of its own, so that either gateway may get it."""
    reply = httpx.post(f"{url}/generate", json={"text": "red", "rid": rid, "sampling_params": LONG}, timeout=120)
    assert reply.status_code == 200, reply.text
    return reply.json()["meta_info"]


def abort(url: str, **which) -> int:
    return httpx.post(f"{url}/abort_request", json=which, timeout=60).json()["aborted"]


def aborted(url: str, rid: str) -> bool:
    """Whether an abort ended it; False before a replica has it."""
    return abort(url, rid=rid) == 1


def test_an_abort_finds_a_running_request_through_either_gateway(url):
    with ThreadPoolExecutor(4) as pool:
        for number in range(4):  # so that some aborts meet the other gateway
            rid = f"running-{number}"
            running = pool.submit(generate, url, rid)
            assert wait_until(functools.partial(aborted, url, rid), 30)
            assert running.result(60)["finish_reason"]["type"] == "abort"
