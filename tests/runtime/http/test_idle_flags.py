"""Flags that have no effect beside others are refused at the start."""

from __future__ import annotations

import pytest

from shoal.idle_flags import IDLE_FLAGS, Options, check_idle_flags
from shoal.launch_server import main
from shoal.replicas import ReplicaConfig
from shoal.runtime.config import EngineConfig
from shoal.runtime.flags import HIDDEN
from shoal.runtime.http.config import ServerConfig
from shoal.runtime.pipeline.config import PipelineConfig

PAIRS = [
    ("--startup-timeout-s 5", "--in-process"),
    ("--watchdog-timeout-s 5", "--in-process"),
    ("--null-worker", "--in-process"),
    ("--null-tokens 3", "--in-process"),
    ("--null-delay-s 1", "--in-process"),
    ("--profile-dir .", "--in-process"),
    ("--router-policy random", "--dp-size 1"),
    ("--depth-profile x.json", "--depth 4"),
    ("--kv-cache-bytes 1000000", "--kv-cache-tokens 1024"),
    ("--mem-fraction-static 0.5", "--kv-cache-tokens 1024"),
    ("--mem-fraction-static 0.5", "--kv-cache-bytes 1000000"),
    ("--audit-tolerance 0.5", "--audit-rate 0"),
    ("--audit-divergence 0.5", "--audit-rate 0"),
    ("--random-seed 7", "--load-format auto"),
]


def test_every_pair_is_tried():
    named = [first.split()[0].removeprefix("--").replace("-", "_").replace("random_", "") for first, _ in PAIRS]
    assert named == [flag.field for flag in IDLE_FLAGS]


@pytest.mark.parametrize(("idle", "beside"), PAIRS)
def test_a_flag_without_effect_is_refused_by_name(idle, beside, capsys):
    assert main(["shop", *beside.split(), *idle.split()]) == 2
    error = capsys.readouterr().err
    flag = idle.split()[0].replace("random-", "")
    assert error.startswith(f"error: {flag} has no effect with "), error
    assert error.count("\n") == 1


def test_where_they_have_an_effect_they_are_taken():
    given = {flag.field for flag in IDLE_FLAGS} - HIDDEN - {"mem_fraction_static", "kv_cache_bytes"}
    options = Options(EngineConfig(audit_rate=0.1), PipelineConfig(), ServerConfig(), ReplicaConfig(dp_size=2))
    check_idle_flags(given, options)
    check_idle_flags({"seed"}, Options(EngineConfig(load_format="dummy"), PipelineConfig(), ServerConfig()))
    for own in ({"mem_fraction_static": 0.5}, {"kv_cache_bytes": 10**6}, {"kv_cache_tokens": 1024}):
        check_idle_flags(own, Options(EngineConfig(**own), PipelineConfig(), ServerConfig()))
