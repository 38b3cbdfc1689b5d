"""`python -m sglang.bench_serving` against a real server process."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from .process import wait_idle

GROUPS, PROMPTS, OUTPUT = 2, 4, 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("sglang")
    return tmp_path_factory.mktemp("bench")


@pytest.mark.parametrize("backend", ["sglang", "sglang-oai"])
def test_generated_shared_prefix(server, client, folder, backend):
    wait_idle(client)
    client.post("/flush_cache").raise_for_status()
    tokenizer = client.get("/get_model_info").json()["tokenizer_path"]
    out = folder / f"{backend}.jsonl"
    command = [
        sys.executable, "-m", "sglang.bench_serving", "--backend", backend, "--host", "127.0.0.1",
        "--port", str(server.port), "--dataset-name", "generated-shared-prefix", "--gsp-num-groups", str(GROUPS),
        "--gsp-prompts-per-group", str(PROMPTS), "--gsp-system-prompt-len", "128", "--gsp-question-len", "16",
        "--gsp-output-len", str(OUTPUT), "--tokenizer", tokenizer, "--num-prompts", str(GROUPS * PROMPTS),
        "--max-concurrency", "4", "--request-rate", "50", "--output-file", str(out), "--flush-cache",
        "--warmup-requests", "1", "--disable-tqdm", *(["--profile"] if backend == "sglang" else []),
    ]  # fmt: skip
    profiles = server.log.parent / "profiles"
    before = set(profiles.glob("*"))
    environment = {**os.environ, "HOME": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    result = json.loads(out.read_text().splitlines()[-1])
    assert result["completed"] == GROUPS * PROMPTS
    assert result["total_output_tokens"] == GROUPS * PROMPTS * OUTPUT
    assert result["median_e2e_latency_ms"] > 0
    if backend == "sglang":
        assert len(set(profiles.glob("*.trace.json.gz")) - before) == 1
        assert client.get("/cache").json()["num_nodes"] > 0
