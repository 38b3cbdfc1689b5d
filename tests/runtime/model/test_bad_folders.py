"""Depth profiles and model folders that do not fit: a shoal error that names field, value and limit."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from shoal.radix_cache.depth_profile import DepthProfile
from shoal.runtime.errors import (
    ConfigError,
    ModelLoadError,
)
from shoal.runtime.request.sampling_params import SamplingParams

from ..tiny import EOS, LLADA, make_engine

SMALL = SamplingParams(max_new_tokens=8, steps=1, ignore_eos=True)


# Depth profiles


def profile_json(**changes: Any) -> dict[str, Any]:
    return {**DepthProfile(num_layers=6, table=((0.2, 2),)).to_json(), **changes}


PROFILES: dict[str, Any] = {
    "wrong-version": profile_json(version=3),
    "no-version": {k: v for k, v in profile_json().items() if k != "version"},
    "other-model": profile_json(model_digest="0" * 64),
    "other-layers": {**profile_json(), "num_layers": 16},
    "falling": profile_json(table=[[0.2, 4, None], [0.4, 2, None]]),
    "too-deep": profile_json(table=[[0.2, 7, None]]),
    "unknown-key": profile_json(colour="red"),
    "other-format": profile_json(format="something-else"),
    "a-list": [1, 2],
    "table-of-text": profile_json(table="deep"),
    "interval": profile_json(table=[[0.2, 2, 0]]),
    "old-key": profile_json(refresh_interval=8),
}


@pytest.mark.parametrize("place", ["option", "beside-the-weights"])
@pytest.mark.parametrize("kind", [*PROFILES, "no-json", "no-text", "missing", "a-folder"])
def test_depth_profiles_that_do_not_fit(llada, tmp_path, kind, place):
    folder = llada
    path = tmp_path / "profile.json"
    if place == "beside-the-weights":
        folder = tmp_path / "model"
        shutil.copytree(llada, folder)
        path = folder / "depth_profile.json"
        if kind == "missing":
            pytest.skip("then the built-in table is used")
    if kind == "no-json":
        path.write_text("{")
    elif kind == "no-text":
        path.write_bytes(b"\xff\xfe\x00")
    elif kind == "a-folder":
        path.mkdir()
    elif kind != "missing":
        path.write_text(json.dumps(PROFILES[kind]))
    options = {"depth_profile": str(path)} if place == "option" else {"depth": None}
    with pytest.raises(ConfigError, match="depth_profile") as caught:
        make_engine(folder, **options)
    assert caught.value.field == "depth_profile"
    assert caught.value.value == str(path)


def test_a_profile_beside_the_weights_is_used_and_without_one_the_built_in_table(llada, tmp_path):
    with make_engine(llada, depth=None) as engine:
        assert "built-in" in engine.depth_profile.source
    folder = tmp_path / "model"
    shutil.copytree(llada, folder)
    (folder / "depth_profile.json").write_text(
        json.dumps(profile_json(table=[[0.0, 3, None], [0.5, 5, None], [0.9, 6, None]]))
    )
    with make_engine(folder, depth=None) as engine:
        assert engine.depth_profile.table == ((0.0, 2), (0.5, 4), (0.9, 6))  # whole bands


# Model folders


def broken(change: Callable[[Path], object]) -> Callable[[Path, Path], Path]:
    def make(source: Path, target: Path) -> Path:
        shutil.copytree(source, target)
        change(target)
        return target

    return make


def _config(**changes: Any) -> Callable[[Path], object]:
    return lambda folder: (folder / "config.json").write_text(json.dumps({**LLADA, **changes})) and None


def _shard(folder: Path) -> Path:
    return folder / "model-00002-of-00002.safetensors"


def _reshape(folder: Path) -> None:
    state = load_file(_shard(folder))
    name = next(name for name in state if "q_proj" in name)
    save_file({**state, name: state[name][:-1].contiguous()}, _shard(folder))


FOLDERS: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "no-such-folder": (lambda source, target: target, "model"),
    "a-file": (lambda source, target: source / "config.json", "model"),
    "empty": (
        lambda source, target: Path(shutil.copytree(source, target, ignore=lambda *_: os.listdir(source))),
        "config.json",
    ),
    "architecture": (broken(_config(model_type="gpt2")), "model_type"),
    "no-tokenizer": (broken(lambda folder: (folder / "tokenizer.json").unlink()), "tokenizer"),
    "broken-tokenizer": (broken(lambda folder: (folder / "tokenizer.json").write_text("{")), "tokenizer"),
    "config-not-json": (broken(lambda folder: (folder / "config.json").write_text("{")), "config.json"),
    "more-layers": (broken(_config(n_layers=8)), "model.transformer.blocks.6.attn_norm.weight"),
    "missing-shard": (broken(lambda folder: _shard(folder).unlink()), "model-00002-of-00002.safetensors"),
    "cut-shard": (
        broken(lambda folder: _shard(folder).write_bytes(_shard(folder).read_bytes()[:-100])),
        "model-00002-of-00002.safetensors",
    ),
    "garbage-shard": (
        broken(lambda folder: _shard(folder).write_bytes(b"\xff" * 500)),
        "model-00002-of-00002.safetensors",
    ),
    "wrong-shape": (broken(_reshape), "q_proj"),
    "generation-config": (
        broken(lambda folder: (folder / "generation_config.json").write_text("{")),
        "generation_config.json",
    ),
    "generation-block": (
        broken(lambda folder: (folder / "generation_config.json").write_text('{"block_length": -8}')),
        "block_length",
    ),
}


@pytest.mark.parametrize("kind", list(FOLDERS))
def test_model_folders(llada, tmp_path, kind):
    make, field = FOLDERS[kind]
    folder = make(llada, tmp_path / "model")
    with pytest.raises(ModelLoadError) as caught:
        make_engine(folder, block_length=None)
    assert field in str(caught.value.field)
    assert caught.value.limit is not None


def test_the_default_block_length_comes_from_option_then_folder(llada, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(llada, folder)
    (folder / "generation_config.json").write_text(json.dumps({"block_length": 4, "eos_token_id": EOS}))
    nfe = {}
    for block in (None, 2):
        with make_engine(folder, block_length=block) as engine:
            params = SamplingParams(max_new_tokens=8, threshold=1e-9, ignore_eos=True)
            nfe[block] = engine.generate([5], params, cache_mode="none").nfe
    assert nfe == {None: 2, 2: 4}  # every block in one pass
