"""Sampling parameters of requests that give none: flags before generation_config.json before what is built in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shoal import SamplingParams
from shoal.runtime.config import EngineConfig
from shoal.runtime.errors import ConfigError, ModelLoadError
from shoal.runtime.http.api_error import ApiError
from shoal.runtime.http.config import ServerConfig
from shoal.runtime.http.decoding import sampling_params
from shoal.runtime.http.defaults import Defaults
from shoal.runtime.request.facts import Facts
from shoal.runtime.request.field_names import FieldNames
from shoal.runtime.request.generation_defaults import sampling_defaults
from shoal.runtime.service.info import ServiceInfo
from shoal.runtime.worker.facts import _served
from shoal.runtime.worker.null import build_null_worker


def info_of(facts: Facts, config: EngineConfig) -> ServiceInfo:
    return ServiceInfo.of(config, facts, has_tokenizer=True, has_chat_template=True, chat_markers={})


@pytest.fixture(scope="module")
def shop() -> ServiceInfo:
    config = EngineConfig(kv_cache_tokens=1024)
    return info_of(build_null_worker(config, 4)[1], config)


def write(folder: Path, **values: Any) -> Path:
    (folder / "generation_config.json").write_text(json.dumps(values))
    return folder


def test_the_file_is_read(tmp_path: Path) -> None:
    values = {"temperature": 0.2, "steps": 64, "strategy": "entropy", "max_new_tokens": 77, "eos_token_id": 5}
    assert sampling_defaults(write(tmp_path, **values, threshold=None, transformers_version="5")) == {
        "temperature": 0.2, "steps": 64, "strategy": "entropy", "max_new_tokens": 77,
    }  # fmt: skip
    assert sampling_defaults(write(tmp_path, temperature=0.7, do_sample=False)) == {"temperature": 0.0}
    assert sampling_defaults(write(tmp_path, temperature=0.7, do_sample=True)) == {"temperature": 0.7}
    recipe = {"temperature": 0.2, "top_p": 0.95, "top_k": 50, "min_p": 0.05, "repetition_penalty": 1.1}
    assert sampling_defaults(write(tmp_path, **recipe)) == recipe
    kept = {"temperature": 0.0, "repetition_penalty": 1.1}
    assert sampling_defaults(write(tmp_path, **recipe, do_sample=False)) == kept
    published = {"alg": "origin", "alg_temp": 0.1, "eps": 1e-3, "schedule": "linear"}
    assert sampling_defaults(write(tmp_path, **published)) == {}  # they speak of steps
    found = sampling_defaults(write(tmp_path, **published, steps=16))
    assert found == {"strategy": "origin", "alg_temp": 0.1, "eps": 1e-3, "schedule": "linear", "steps": 16}
    assert sampling_defaults(write(tmp_path, remasking="random")) == {"strategy": "random"}
    (tmp_path / "generation_config.json").unlink()
    assert sampling_defaults(tmp_path) == {}


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"temperature": -1}, "temperature"), ({"max_new_tokens": "many"}, "max_new_tokens"),
        ({"steps": 8, "threshold": 0.5}, "threshold"), ({"strategy": "best"}, "strategy"),
    ],
)  # fmt: skip
def test_a_value_that_no_request_could_have_is_refused(tmp_path: Path, values: dict[str, Any], field: str) -> None:
    with pytest.raises(ModelLoadError, match=r"generation_config\.json") as caught:
        sampling_defaults(write(tmp_path, **values))
    assert caught.value.field == field


def test_what_goes_first(shop: ServiceInfo) -> None:
    assert shop.generation == {"max_new_tokens": 32}
    plain = Defaults.of(ServerConfig(), shop)
    assert plain.values == {"max_new_tokens": 32}
    shown = plain.shown(shop)
    assert shown["max_new_tokens"] == {"value": 32, "source": "generation_config.json"}
    assert shown["block_length"] == {"value": 8, "source": "generation_config.json"}
    assert shown["temperature"] == {"value": 0.0, "source": "built-in"}
    assert shown["threshold"] == {"value": 0.9, "source": "built-in"}
    flags = Defaults.of(ServerConfig(default_max_new_tokens=50, default_steps=10, default_temperature=0.5), shop)
    assert flags.values == {"max_new_tokens": 50, "steps": 10, "temperature": 0.5}
    assert flags.shown(shop)["steps"] == {"value": 10, "source": "--default-steps"}
    assert "threshold" not in flags.shown(shop)


def test_a_rule_takes_the_place_of_another(shop: ServiceInfo) -> None:
    config, file = ServerConfig(default_factor=1.5), {"steps": 8, "temperature": 0.3}
    object.__setattr__(shop, "generation", file)
    try:
        defaults = Defaults.of(config, shop)
        assert defaults.values == {"max_new_tokens": 1024, "factor": 1.5, "temperature": 0.3}
        assert defaults.sources["factor"] == "--default-factor"
    finally:
        object.__setattr__(shop, "generation", {"max_new_tokens": 32})
    assert sampling_params({"threshold": 0.5}, config, defaults.values) == SamplingParams(
        max_new_tokens=1024, threshold=0.5, temperature=0.3
    )
    assert sampling_params({}, config, defaults.values).factor == 1.5
    limited = ServerConfig(max_new_tokens_limit=100)
    assert sampling_params({}, limited, defaults.values).max_new_tokens == 100


def test_what_changes_the_threshold_takes_the_place_of_other_rules(shop: ServiceInfo) -> None:
    for flags, expected in (({"default_steps": 8}, None), ({"default_threshold": 0.7}, 0.7)):
        config = ServerConfig(**flags)
        params = sampling_params({"threshold_decay": 0.3}, config, Defaults.of(config, shop).values)
        assert (params.steps, params.threshold, params.threshold_decay) == (None, expected, 0.3)


def test_a_canvas_that_grows_may_be_as_long_as_the_model_allows() -> None:
    """Unless a flag or the file names a length, or so many answers would pass the bounds on one request."""
    config = EngineConfig(kv_cache_tokens=4096, canvas_window=8, refresh_schedule="settled")
    info = info_of(build_null_worker(config, 4)[1], config)
    assert Defaults.of(ServerConfig(), info).values["max_new_tokens"] == 32  # the file's
    object.__setattr__(info, "generation", {})
    server = ServerConfig(max_request_tokens=5 * 640)
    assert Defaults.of(server, info).values["max_new_tokens"] == 640
    assert Defaults.of(server, info, 5).values["max_new_tokens"] == 640
    assert Defaults.of(server, info, 6).values["max_new_tokens"] == 1024
    assert Defaults.of(ServerConfig(default_max_new_tokens=50), info).values["max_new_tokens"] == 50
    limited = ServerConfig(max_new_tokens_limit=100)
    assert sampling_params({}, limited, Defaults.of(limited, info).values).max_new_tokens == 100
    shown = Defaults.of(ServerConfig(), info).shown(info)
    assert shown["canvas_window"] == {"value": 8, "source": "--canvas-window"}
    assert shown["refresh_schedule"] == {"value": "settled", "source": "--refresh-schedule"}
    assert shown["full_refresh_every"] == {"value": None, "source": "built-in"}


def test_defaults_that_do_not_go_with_a_request_s_own_fields_do_not_count() -> None:
    defaults = {"max_new_tokens": 8, "steps": 4, "alg_temp": 0.5, "strategy": "origin", "top_p": 0.9}
    plain = sampling_params({}, ServerConfig(), defaults)
    assert (plain.steps, plain.alg_temp, plain.strategy, plain.top_p) == (4, 0.5, "origin", 0.9)
    rule = sampling_params({"threshold": 0.5}, ServerConfig(), defaults)
    assert (rule.steps, rule.alg_temp, rule.strategy, rule.top_p) == (None, 0.0, "low_confidence", 0.9)
    assert sampling_params({"regex": "a"}, ServerConfig(), defaults).steps == 4
    with pytest.raises(ApiError, match=r"alg_temp is 0\.1, which draws"):
        sampling_params({"threshold": 0.5, "alg_temp": 0.1}, ServerConfig(), defaults)


def test_defaults_that_a_device_does_not_serve_are_left_out(tmp_path: Path, caplog: Any) -> None:
    assert _served({"top_p": 0.5, "schedule": "linear", "steps": 4}, ("top_p", "schedule=linear")) == {"steps": 4}
    assert "top_p of generation_config.json is left out" in caplog.text


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"alg": "best"}, 'alg is "best"; it must be one of'),
        ({"alg": "entropy", "strategy": "random"}, 'alg is "entropy" and strategy "random"; send one of them'),
        ({"alg": "entropy", "remasking": "random"}, 'remasking is "random" and alg "entropy"'),
        ({"gen_length": 8, "max_new_tokens": 9}, "gen_length is 8 and max_tokens 9; send one of them"),
        ({"gen_length": -1}, "gen_length is -1; it must be an integer of at least 0"),
    ],
)
def test_published_names_are_in_errors_as_they_were_sent(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ApiError) as caught:
        sampling_params(fields, ServerConfig(), {"max_new_tokens": 8}, FieldNames(length="max_tokens"))
    assert words in caught.value.message
    assert caught.value.param == next(reversed([n for n in fields if n in ("alg", "remasking", "gen_length")]))


def test_a_mask_of_another_model_is_refused(client: Any) -> None:
    for name in ("mask_id", "mask_token_id"):
        reply = client.post("/generate", json={"text": "red", "sampling_params": {"max_new_tokens": 4, name: 126336}})
        assert (reply.status_code, reply.json()["param"]) == (400, name)
        assert "this model's mask is 1" in reply.json()["message"]
    long = {"text": "red", "sampling_params": {"gen_length": 5000}}
    reply = client.post("/generate", json=long).json()
    assert reply["param"] == "gen_length"
    assert "gen_length is 5000" in reply["message"]


def test_the_server_says_where_they_come_from(client: Any) -> None:
    shown = client.get("/server_info").json()["default_sampling_params"]
    assert shown["max_new_tokens"] == {"value": 32, "source": "generation_config.json"}
    reply = client.post("/generate", json={"text": "red", "sampling_params": {"ignore_eos": True, "threshold": 1e-6}})
    assert reply.json()["meta_info"]["finish_reason"] == {"type": "length", "length": 32}
    # 608 tokens leave room for 32, 620 for 20.
    for prompt, room in ((608, 32), (620, 20)):
        text = " ".join(["red"] * prompt)
        body = {"text": text, "sampling_params": {"ignore_eos": True, "threshold": 1e-6}}
        assert client.post("/generate", json=body).json()["meta_info"]["completion_tokens"] == room


def test_any_max_tokens_beside_any_block_length(client: Any) -> None:
    body = {"prompt": "red", "max_tokens": 100, "block_length": 32, "ignore_eos": True, "steps": 7}
    reply = client.post("/v1/completions", json=body).json()
    assert reply["usage"]["completion_tokens"] == 100
    assert reply["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"default_steps": 0}, "default_steps"),
        ({"default_steps": 4, "default_threshold": 0.5}, "default_threshold"),
        ({"default_threshold": 2.0}, "default_threshold"),
        ({"default_strategy": "x"}, "default_strategy"),
        ({"default_temperature": -1.0}, "default_temperature"),
    ],
)
def test_a_flag_that_no_request_could_have_is_refused_by_its_name(options: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=f"^{field} is ") as caught:
        ServerConfig(**options)
    assert caught.value.field == field
