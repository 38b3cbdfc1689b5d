"""The benchmark of a model on a CPU, on a tiny shape: what it loads, what it asks, and the rows it writes."""

from __future__ import annotations

import csv
import json

import pytest
import torch

from benchmarks import cpu_speed
from benchmarks.checkpoint import write_adapter, write_checkpoint
from shoal.runtime.model.loader import load_model


def test_a_checkpoint_is_one_file_or_shards_and_its_adapter_changes_every_matrix_of_the_layers(tmp_path):
    single = write_checkpoint("tiny", tmp_path / "single")
    sharded = write_checkpoint("tiny", tmp_path / "sharded", 100_000)
    assert [path.name for path in single.glob("*.safetensors*")] == ["model.safetensors"]
    shards = set(json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"].values())
    assert len(shards) > 2
    assert shards == {path.name for path in sharded.glob("*.safetensors")}
    plain, adapted = load_model(sharded), load_model(single, lora=write_adapter(single, tmp_path / "adapter"))
    assert torch.equal(plain.head.weight_t, adapted.head.weight_t)
    for one, other in zip(plain.layers, adapted.layers, strict=True):
        for name in ("qkv", "attention_out"):
            assert not torch.equal(getattr(one, name).weight_t, getattr(other, name).weight_t)
        for before, after in zip(one.mlp.inputs, other.mlp.inputs, strict=True):
            assert not torch.equal(before.weight_t, after.weight_t)


def test_loading_counts_the_bytes_of_the_parameters(tmp_path):
    path = str(write_checkpoint("tiny", tmp_path))
    whole, half = (cpu_speed.loading(path, dtype, None) for dtype in ("float32", "bfloat16"))
    count = load_model(path).config.num_parameters
    assert (whole["weights_mib"], half["weights_mib"]) == (round(4 * count / 2**20), round(2 * count / 2**20))
    assert whole["before_mib"] <= whole["peak_mib"] <= half["before_mib"] + half["weights_mib"] + 64


def test_every_load_and_mode_is_a_row(tmp_path, monkeypatch):
    out, called = tmp_path / "cpu_speed.csv", []

    def call(name, **arguments):
        called.append((name, arguments["dtype"]))
        return getattr(cpu_speed, name)(**arguments)

    monkeypatch.setattr(cpu_speed, "in_new_process", call)
    words = ["--out", str(out), "--shape", "tiny", "--prefix", "48", "--canvas", "64", "--nfe", "4"]
    monkeypatch.setattr("sys.argv", ["cpu_speed", *words, "--dtypes", "bfloat16"])
    cpu_speed.main()
    assert called == [("loading", "bfloat16")] * 4 + [("answering", "bfloat16")]
    with out.open() as file:
        rows = list(csv.DictReader(file))
    loads, speeds = ([row for row in rows if row["part"] == part] for part in ("load", "speed"))
    assert [row["lora"] for row in loads] == ["no", "yes"] * 2
    assert loads[0]["files"] == "1"
    assert loads[2]["files"] != "1"
    assert [(row["mode"], row["nfe"]) for row in speeds] == [("none", "8"), ("dual", "8"), ("bicache", "8")]
    assert [int(row["cached_tokens"]) > 0 for row in speeds] == [False, False, True]
    for row in speeds:
        assert float(row["tokens_per_s"]) == pytest.approx(64 / float(row["seconds"]), rel=0.2)
    assert all(row["load_average"] and row["command"].endswith("--dtypes bfloat16") for row in rows)
