"""The arguments of the application."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from shoal.runtime.errors import ConfigError
from shoal.serve_ray.config import Arguments, RayConfig

PAGE = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
CPU = {"model_path": "shop", "device": "cpu"}


def test_arguments_are_the_fields_of_four_classes():
    made = Arguments.of({**CPU, "max_running_requests": 4, "drain_timeout_s": 7, "num_replicas": 3,
                         "watchdog_timeout_s": 9})  # fmt: skip
    assert made.engine.max_running_requests == 4
    assert (made.server.drain_timeout_s, made.pipeline.watchdog_timeout_s, made.ray.num_replicas) == (7, 9, 3)
    assert (made.num_gpus, made.max_ongoing_requests) == (0, 8)
    assert Arguments.of({"device": "cuda", "tp_size": 2}).num_gpus == 2
    assert Arguments.of({**CPU, "max_ongoing_requests": 5}).max_ongoing_requests == 5


@pytest.mark.parametrize(
    ("args", "field", "words"),
    [
        ({"num_replica": 2}, "num_replica", "did you mean num_replicas"),
        ({"num_replicas": 0}, "num_replicas", "at least 1"),
        ({"num_replicas": "2"}, "num_replicas", "an integer"),
        ({"num_replicas": 3, "max_replicas": 2}, "max_replicas", "at least 3"),
        ({"target_ongoing_requests": 3}, "target_ongoing_requests", "without max_replicas"),
        ({"router": "random"}, "router", "prefix, power_of_two, round_robin"),
        ({"router": "round_robin", "balance_abs": 3}, "balance_abs", "no prefixes"),
        ({"balance_rel": 0.5}, "balance_rel", "at least 1"),
        ({"summary_limit": 1 << 20}, "summary_limit", "at most 131072"),
        ({"summary_period_s": 0}, "summary_period_s", "above 0"),
        ({"device": "auto"}, "device", "cpu or cuda"),
        ({"device": "cuda:1"}, "device", "Ray chooses"),
        ({"host": "0.0.0.0"}, "host", "http_options"),
        ({"api_key": "secret"}, "api_key", "SHOAL_API_KEY"),
        ({"in_process": "no"}, "in_process", "true or false"),
        ({"in_process": True, "watchdog_timeout_s": 3.0}, "watchdog_timeout_s", "in-process"),
        ({"cache_mode": "quick"}, "cache_mode", "one of"),
        ({"max_body_bytes": -1}, "max_body_bytes", "at least 1"),
        ({"dp_size": 2}, "dp_size", "unknown"),
    ],
)  # fmt: skip
def test_errors_name_the_field(args, field, words):
    with pytest.raises(ConfigError, match=words) as caught:
        Arguments.of({**CPU, **args})
    assert caught.value.field == field
    assert "secret" not in str(caught.value)


def test_without_a_device_ray_does_not_know_what_a_replica_needs():
    with pytest.raises(ConfigError, match="device"):
        Arguments.of({"model_path": "shop"})


def test_the_page_names_every_argument_and_its_default():
    lines = PAGE.partition("| argument | default | |\n|---|---|---|\n")[2].partition("\n\n")[0].splitlines()
    told: dict[str, str] = {}
    for names, defaults, _ in (line.strip("|").split(" | ") for line in lines):
        values = defaults.split(", ")
        told |= zip(re.findall(r"`(\w+)`", names), values, strict=True)
    known = {field.name: field.default for field in fields(RayConfig)}
    assert told.keys() == known.keys()
    for name, value in told.items():
        default = known[name]
        if default is None:  # what takes its place, in words
            assert not value[0].isdigit(), name
        elif isinstance(default, str):
            assert value == f"`{default}`", name
        else:
            assert float(value.replace(",", "")) == default, name


def test_the_configuration_on_the_page_is_valid():
    (example,) = re.findall(r"```yaml\n(applications:.*?)```", PAGE, re.DOTALL)
    (application,) = yaml.safe_load(example)["applications"]
    assert Arguments.of(application["args"]).ray.max_replicas == 8
