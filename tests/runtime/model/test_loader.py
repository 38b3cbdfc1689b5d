"""Loading weights from folders, and every way a folder can be wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from shoal.runtime.errors import ModelLoadError
from shoal.runtime.model import digest as digest_module
from shoal.runtime.model.decoder import Decoder
from shoal.runtime.model.digest import model_digest
from shoal.runtime.model.linear import Linear
from shoal.runtime.model.loader import load_model
from shoal.runtime.model.registry import published, read_config
from shoal.runtime.model.safetensors_folder import INDEX_FILE, SINGLE_FILE, SafetensorsFolder

from .checkpoints import write_folder
from .oracle import DREAM_TINY, LLADA_TINY, TINY, random_state_dict

BOTH = pytest.mark.parametrize("config", [LLADA_TINY, DREAM_TINY], ids=["llada", "dream"])


def first_layer(folder, **options):
    """Everything the decoder does with weights, except attention, on fixed tokens."""
    decoder = load_model(folder, **options)
    hidden = decoder.embed(torch.arange(9))
    hidden = decoder.layer(0, hidden, torch.arange(9), lambda index, q, k, v: q)
    return decoder.logits(hidden)


def refused(folder, **options) -> ModelLoadError:
    with pytest.raises(ModelLoadError) as caught:
        load_model(folder, **options)
    assert caught.value.field
    return caught.value


@BOTH
def test_one_file_and_shards_load_alike(tmp_path, config):
    state = random_state_dict(config)
    single = write_folder(tmp_path / "single", config, state)
    sharded = write_folder(tmp_path / "sharded", config, state, shards=4)
    assert not (sharded / SINGLE_FILE).exists()
    assert torch.equal(first_layer(single), first_layer(sharded))


@BOTH
@pytest.mark.parametrize("stored", [torch.float64, torch.float16, torch.bfloat16])
def test_stored_dtype_is_converted_to_the_one_asked_for(tmp_path, config, stored):
    state = random_state_dict(config, dtype=stored)
    folder = write_folder(tmp_path / "stored", config, state)
    single = {name: tensor.float() for name, tensor in state.items()}
    assert torch.equal(first_layer(folder), first_layer(write_folder(tmp_path / "single", config, single)))
    assert first_layer(folder, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_rope_buffers_and_the_head_of_a_tied_model_are_skipped(tmp_path):
    config = {**DREAM_TINY, "tie_word_embeddings": True}
    state = random_state_dict(config)
    plain = first_layer(write_folder(tmp_path / "plain", config, state))
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    state["lm_head.weight"] = torch.zeros(93, 48)
    assert torch.equal(first_layer(write_folder(tmp_path / "more", config, state)), plain)


def test_a_missing_shard_is_named(tmp_path):
    folder = write_folder(tmp_path, LLADA_TINY, random_state_dict(LLADA_TINY), shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    error = refused(folder)
    assert error.field == "model-00002-of-00003.safetensors"
    assert "missing" in str(error)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1, -5000])
def test_a_truncated_file_is_refused_before_any_weight_is_read(tmp_path, keep):
    folder = write_folder(tmp_path, LLADA_TINY, random_state_dict(LLADA_TINY), shards=2)
    path = folder / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelLoadError, match="truncated") as caught:
        SafetensorsFolder(folder)
    assert caught.value.field == path.name


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path):
    folder = write_folder(tmp_path, LLADA_TINY, random_state_dict(LLADA_TINY))
    weights = SafetensorsFolder(folder)
    last = max(weights.entries.values(), key=lambda entry: entry.offset)
    path = folder / SINGLE_FILE
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ModelLoadError, match="ends inside") as caught:
        weights.read(last.name, last.shape)
    assert caught.value.field == SINGLE_FILE


@pytest.mark.parametrize(
    "header",
    [
        b"not json at all",
        b"[]",
        b'{"a": 3}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}',
        b'{"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0.0, 4.0]}}',
        b"[" * 200_000,
    ],
)
def test_a_corrupt_header_is_refused(tmp_path, header):
    folder = write_folder(tmp_path, LLADA_TINY, random_state_dict(LLADA_TINY))
    (folder / SINGLE_FILE).write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    error = refused(folder)
    assert "\n" not in str(error)
    assert error.field == SINGLE_FILE
    assert "header" in str(error)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    folder = write_folder(tmp_path, LLADA_TINY, random_state_dict(LLADA_TINY))
    weights = SafetensorsFolder(folder)
    first = next(iter(weights.entries.values()))
    (folder / SINGLE_FILE).unlink()
    (folder / SINGLE_FILE).mkdir()
    with pytest.raises(ModelLoadError, match="can't be read") as caught:
        weights.read(first.name, first.shape)
    assert caught.value.field == SINGLE_FILE


def test_a_header_length_beyond_the_file_is_refused_without_reading_it(tmp_path):
    folder = write_folder(tmp_path, LLADA_TINY, random_state_dict(LLADA_TINY))
    (folder / SINGLE_FILE).write_bytes(b"\xff" * 64)
    assert refused(folder).field == SINGLE_FILE


@BOTH
def test_a_missing_tensor_is_named_with_its_shape(tmp_path, config):
    state = random_state_dict(config)
    name = next(name for name in state if "k_proj.weight" in name)
    expected = list(state.pop(name).shape)
    error = refused(write_folder(tmp_path, config, state))
    assert error.field == name
    assert str(expected) in str(error.limit)


@BOTH
def test_an_unexpected_tensor_is_named(tmp_path, config):
    state = {**random_state_dict(config), "model.extra.weight": torch.zeros(2, 3)}
    error = refused(write_folder(tmp_path, config, state))
    assert error.field == "model.extra.weight"
    assert error.value == [2, 3]


def test_biases_that_the_configuration_denies_are_refused(tmp_path):
    state = random_state_dict({**LLADA_TINY, "include_qkv_bias": True})
    error = refused(write_folder(tmp_path, LLADA_TINY, state))
    assert str(error.field).endswith("_proj.bias")
    assert "9 tensors" in str(error)


@BOTH
def test_a_wrong_shape_says_which_tensor_and_both_shapes(tmp_path, config):
    state = random_state_dict(config)
    name = next(name for name in state if "up_proj" in name)
    state[name] = state[name][:, :40].contiguous()
    error = refused(write_folder(tmp_path, config, state))
    assert (error.field, error.value) == (name, [state[name].shape[0], 40])
    assert error.limit == [state[name].shape[0], 48]
    assert name in str(error)
    assert str(error.limit) in str(error)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float8_e4m3fn])
def test_quantised_or_integer_weights_are_refused(tmp_path, dtype):
    state = random_state_dict(LLADA_TINY)
    name = "model.transformer.blocks.1.ff_out.weight"
    state[name] = state[name].to(dtype)
    error = refused(write_folder(tmp_path, LLADA_TINY, state))
    assert error.field == name
    assert "BF16" in str(error.limit)


def test_an_index_that_disagrees_with_its_shards_is_refused(tmp_path):
    folder = write_folder(tmp_path, LLADA_TINY, random_state_dict(LLADA_TINY), shards=2)
    shard = folder / "model-00001-of-00002.safetensors"
    part = load_file(shard)
    lost = sorted(part)[0]
    del part[lost]
    save_file(part, shard)
    error = refused(folder)
    assert error.field == lost
    assert error.value == shard.name


@pytest.mark.parametrize("content", ["", "[]", '{"weight_map": 3}', '{"weight_map": {"a": ["b"]}}', "{}"])
def test_a_broken_index_is_refused(tmp_path, content):
    folder = write_folder(tmp_path, LLADA_TINY, random_state_dict(LLADA_TINY), shards=2)
    (folder / INDEX_FILE).write_text(content)
    assert refused(folder).field in (INDEX_FILE, "weight_map")


def test_an_index_may_not_point_outside_its_folder(tmp_path):
    outside = write_folder(tmp_path / "outside", LLADA_TINY, random_state_dict(LLADA_TINY))
    folder = write_folder(tmp_path / "model", LLADA_TINY, {}, shards=2)
    weight_map = dict.fromkeys(load_file(outside / SINGLE_FILE), "../outside/model.safetensors")
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    assert refused(folder).field == "weight_map"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickled_checkpoints_are_refused_unread(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps(LLADA_TINY))
    (tmp_path / name).write_bytes(b"never opened")
    error = refused(tmp_path)
    assert error.value == name
    assert "pickle" in str(error)


def test_shards_without_an_index_and_folders_without_weights_say_so(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLADA_TINY))
    assert "no weights" in str(refused(tmp_path))
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"")
    assert INDEX_FILE in str(refused(tmp_path))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"dtype": torch.int8}, "dtype"),
        ({"dtype": torch.float64}, "dtype"),
        ({"device": "moon"}, "device"),
        ({"device": "cuda:77"}, "device"),
        ({"load_format": "pickle"}, "load_format"),
    ],
)
def test_options_out_of_range_are_refused_by_name(tmp_path, options, field):
    folder = write_folder(tmp_path, LLADA_TINY, random_state_dict(LLADA_TINY))
    error = refused(folder, **options)
    assert error.field == field
    assert error.limit


def test_dummy_weights_need_no_weight_file_and_follow_the_seed(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(DREAM_TINY))
    first = first_layer(tmp_path, load_format="dummy", seed=1)
    assert torch.equal(first, first_layer(read_config(DREAM_TINY), load_format="dummy", seed=1))
    assert not torch.equal(first, first_layer(tmp_path, load_format="dummy", seed=2))
    assert torch.isfinite(first).all()


def test_a_bare_configuration_has_no_weights_to_read():
    assert refused(read_config(published("llada-8b"))).field == "load_format"


def test_digest_ignores_sharding_and_follows_weights_and_configuration(tmp_path):
    state = random_state_dict(LLADA_TINY)
    digest = model_digest(write_folder(tmp_path / "a", LLADA_TINY, state))
    assert model_digest(write_folder(tmp_path / "b", LLADA_TINY, state, shards=3)) == digest
    assert model_digest(write_folder(tmp_path / "c", {**LLADA_TINY, "rope_theta": 1e4}, state)) != digest
    state["model.transformer.ln_f.weight"][7] += 1
    assert model_digest(write_folder(tmp_path / "d", LLADA_TINY, state)) != digest


def test_digest_of_a_large_model_samples_the_ends_and_the_middle(tmp_path, monkeypatch):
    monkeypatch.setattr(digest_module, "_FULL_BYTES", 0)
    monkeypatch.setattr(digest_module, "_SAMPLE_BYTES", 64)
    name = "model.transformer.wte.weight"
    state = random_state_dict(LLADA_TINY)
    digest = model_digest(write_folder(tmp_path / "a", LLADA_TINY, state))
    seen = {}
    for place, index in {"start": 0, "middle": 104 * 48 // 2, "end": 104 * 48 - 1, "elsewhere": 1000}.items():
        changed = {**state, name: state[name].clone()}
        changed[name].view(-1)[index] += 1
        seen[place] = model_digest(write_folder(tmp_path / place, LLADA_TINY, changed)) != digest
    assert seen == {"start": True, "middle": True, "end": True, "elsewhere": False}


def test_loading_keeps_one_tensor_at_a_time_besides_the_model(tmp_path, monkeypatch):
    """Count the tensors alive between reads: what was read before must be gone."""
    import weakref

    folder = write_folder(tmp_path, LLADA_TINY, random_state_dict(LLADA_TINY), shards=2)
    alive: list[weakref.ref] = []
    most = 0
    read = SafetensorsFolder.read

    def watched(self, *arguments):
        nonlocal most
        tensor = read(self, *arguments)
        alive.append(weakref.ref(tensor))
        most = max(most, sum(ref() is not None for ref in alive))
        return tensor

    monkeypatch.setattr(SafetensorsFolder, "read", watched)
    load_model(folder)
    assert len(alive) == len(random_state_dict(LLADA_TINY))
    assert most == 1


@pytest.mark.parametrize("family", TINY)
def test_a_model_takes_the_memory_of_its_parameters(tmp_path, family):
    """So a tied head is no second copy of the embedding."""
    config = TINY[family]
    decoder = load_model(write_folder(tmp_path, config, random_state_dict(config)))
    tied = decoder.config.tie_word_embeddings
    assert tied == (decoder.head.weight_t.data_ptr() == decoder.embedding.data_ptr())
    held = {storage.data_ptr(): storage.nbytes() for storage in storages(decoder)}
    cut = decoder.config.embedding_size - decoder.config.vocab_size  # rows that the head does without
    assert sum(held.values()) == 4 * (decoder.config.num_parameters - cut * decoder.config.hidden_size)


def storages(value: object) -> Iterator[torch.UntypedStorage]:
    """Of every tensor within a decoder's weights."""
    if isinstance(value, Tensor):
        yield value.untyped_storage()
    elif isinstance(value, Linear):
        yield from storages((value.weight_t, value.bias))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from storages(one)
    elif isinstance(value, Decoder):
        yield from storages((value.embedding, value.layers, value.final_norm, value.head))
    elif is_dataclass(value):
        yield from storages([getattr(value, field.name) for field in fields(value)])


def test_a_tied_head_of_fewer_rows_than_the_embedding_is_a_copy(tmp_path):
    config = {**LLADA_TINY, "weight_tying": True}
    decoder = load_model(write_folder(tmp_path, config, random_state_dict(config)))
    assert torch.equal(decoder.head.weight_t.t(), decoder.embedding[: config["vocab_size"]])
    assert decoder.head.weight_t.is_contiguous()
