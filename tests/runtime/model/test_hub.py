"""Finding a model's folder: on disk, in the package, on the Hub; all offline."""

from __future__ import annotations

import time
from typing import Any

import pytest

from shoal.runtime.errors import ModelLoadError
from shoal.runtime.model.hub import bundled_model_folder, local_model_folder, resolve_model_folder
from shoal.runtime.model.loader import load_model


def test_an_existing_folder_is_used_as_it_is(tmp_path):
    assert resolve_model_folder(tmp_path) == tmp_path
    assert resolve_model_folder(str(tmp_path)) == tmp_path


def test_shop_is_the_bundled_folder_or_said_to_be_absent():
    if bundled_model_folder().is_dir():
        assert resolve_model_folder("shop") == bundled_model_folder()
    else:
        with pytest.raises(ModelLoadError, match="bundled") as caught:
            resolve_model_folder("shop")
        assert caught.value.field == "model"


@pytest.mark.parametrize("name", ["no-such-folder", "/no/such/folder", "a/b/c", "", "../up", "org/na me"])
def test_a_name_that_is_neither_folder_nor_hub_id_lists_what_is_accepted(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelLoadError, match="shop") as caught:
        resolve_model_folder(name)
    assert caught.value.field == "model"
    assert caught.value.value == name


def test_local_folders_are_told_from_hub_ids_without_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    assert local_model_folder(tmp_path) == tmp_path
    assert local_model_folder("some-org/some-model") is None
    with pytest.raises(ModelLoadError):
        local_model_folder("no-such-folder")


@pytest.mark.parametrize("name", ["~nobody-of-that-name/model", "x" * 5000, "a\0b"])
def test_a_name_that_no_file_can_have_is_refused(name):
    with pytest.raises(ModelLoadError, match="no model") as caught:
        resolve_model_folder(name)
    assert caught.value.field == "model"
    assert len(str(caught.value)) < 300


def test_a_file_is_not_a_model_folder(tmp_path):
    path = tmp_path / "model.safetensors"
    path.touch()
    with pytest.raises(ModelLoadError, match="is a file"):
        resolve_model_folder(path)


@pytest.fixture
def waits(monkeypatch):
    """Seconds of each wait between two tries of the Hub's client, which here are not waited for."""
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    return waits


def test_a_hub_id_in_offline_mode_fails_fast_and_clearly(monkeypatch, tmp_path, waits):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelLoadError, match="some-org/some-model") as caught:
        load_model("some-org/some-model")
    assert waits == []
    assert caught.value.field == "model"
    assert "Hub" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hub_that_cannot_be_reached_fails_fast_and_clearly(monkeypatch, tmp_path, waits):
    import huggingface_hub.constants
    from huggingface_hub.utils import _http as hub_http

    httpx: Any = getattr(hub_http, "httpx2", None) or getattr(hub_http, "httpx", None)
    calls = []

    def refuse(request):
        calls.append(request.url.path)
        raise httpx.ConnectError("connection refused", request=request)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    huggingface_hub.set_client_factory(lambda: httpx.Client(transport=httpx.MockTransport(refuse)))
    try:
        with pytest.raises(ModelLoadError, match="some-org/some-model") as caught:
            resolve_model_folder("some-org/some-model")
    finally:
        huggingface_hub.set_client_factory(hub_http.default_client_factory)
    assert 1 <= len(calls) <= 10
    assert sum(waits) < 5
    assert caught.value.field == "model"


def test_a_download_takes_weights_and_settings_but_no_code_and_no_pickles(monkeypatch, tmp_path):
    import fnmatch

    import huggingface_hub

    asked: dict[str, Any] = {}

    def download(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_model_folder("some-org/some-model") == tmp_path
    assert asked["repo_id"] == "some-org/some-model"

    def taken(name):
        return any(fnmatch.fnmatch(name, pattern) for pattern in asked["allow_patterns"]) and not any(
            fnmatch.fnmatch(name, pattern) for pattern in asked["ignore_patterns"]
        )

    for name in ("config.json", "model-00001-of-00004.safetensors", "merges.txt", "chat_template.jinja"):
        assert taken(name), name
    for name in ("modeling_llada.py", "pytorch_model.bin", "model.pt", "original/params.json", "README.md"):
        assert not taken(name), name
