"""The whole command on a tiny model: files, resuming, reproducibility, use by the engine, and what is refused."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from shoal.cli import app
from shoal.profile.command import make_parser, parse
from shoal.profile.measure import Measurer
from shoal.profile.options import ProfileOptions
from shoal.profile.store import Store
from shoal.radix_cache.depth_profile import DepthProfile
from shoal.runtime.engine.engine import Engine
from shoal.runtime.errors import ConfigError
from shoal.runtime.request.sampling_params import SamplingParams

from ..runtime.tiny import tokens

FLAGS = [
    *("--ratios", "0.4,0.6", "--depths", "2,4,6", "--intervals", "0,8", "--groups", "1", "--questions", "2"),
    *("--max-new-tokens", "16", "--block-length", "8", "--page-size", "4", "--layers-per-band", "2"),
    *("--device", "cpu", "--margins", "0,8", "--min-agreement", "0.0"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    rows = []
    for group in range(2):
        head = tokens(84, seed=group)
        rows += [
            {"tokens": [*head, *tokens(12, seed=10 * group + i)], "group": group, "kind": f"k{i % 2}", "answer": "a"}
            for i in range(5)
        ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run(*arguments: str):
    return CliRunner().invoke(app, ["profile", *arguments])


@pytest.fixture(scope="module")
def made(llada, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "profile"
    result = run(str(llada), "--data", data, "--out", str(out), *FLAGS)
    assert result.exit_code == 0, result.output
    return out


def test_what_is_written(made, llada):
    profile = DepthProfile.load(made / "depth_profile.json")
    assert profile.max_depth == 6  # no limit worth the name: all layers
    assert profile.refresh_interval is None
    assert profile.metric == "agreement of the text with mode none, worst kind"
    assert profile.max_drift is not None
    assert len(profile.model_digest) == len(profile.data_digest) == 64
    lines = (made / "cells.csv").read_text().splitlines()
    assert lines[0].startswith("capture,ratio,lowest_ratio,depth,interval,kind,rows,agreement")
    # 2 ratios x (no reuse + 3 depths x (first at 2 intervals, alone, final)) x (all, 2 kinds)
    assert len(lines) - 1 == 2 * (1 + 3 * 4) * 3


def test_the_report_is_one_file(made):
    text = (made / "report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)""", text)
    assert text.count("data:image/png;base64,") == 4
    for words in ("Depth profile", "Drift of keys and values", "Refresh intervals", "Reuse margin", "Kinds of rows",
                  "Drift and answers side by side", "nothing reused"):  # fmt: skip
        assert words in text


def test_the_engine_serves_with_it(made, llada):
    with Engine(str(llada), device="cpu", depth_profile=str(made / "depth_profile.json"), page_size=4,
                layers_per_band=2) as engine:  # fmt: skip
        head = tokens(64, seed=1)
        engine.generate([*head, *tokens(8, seed=3)], SamplingParams(max_new_tokens=16))
        output = engine.generate([*head, *tokens(8, seed=4)], SamplingParams(max_new_tokens=16))
        assert output.depth == 6


def test_the_same_again_measures_nothing_and_gives_the_same(made, llada, data, tmp_path, monkeypatch):
    profile, measured = (made / "depth_profile.json").read_bytes(), (made / "measurements.jsonl").read_bytes()
    other = tmp_path / "again"
    assert run(str(llada), "--data", data, "--out", str(other), *FLAGS).exit_code == 0
    assert (other / "depth_profile.json").read_bytes() == profile
    assert (other / "measurements.jsonl").read_bytes() == measured

    # Stopped after the first unit, in the middle of writing the second.
    lines = measured.decode().splitlines(keepends=True)
    (other / "measurements.jsonl").write_text("".join(lines[:2]) + lines[2][:100])
    measure_unit, keys = Measurer.measure_unit, []

    def counted(self, unit):
        keys.append(unit.key)
        return measure_unit(self, unit)

    monkeypatch.setattr(Measurer, "measure_unit", counted)
    assert run(str(llada), "--data", data, "--out", str(other), *FLAGS).exit_code == 0
    assert len(keys) == 1
    assert (other / "depth_profile.json").read_bytes() == profile


def test_other_limits_choose_from_the_same_measurements(made, llada, data, monkeypatch):
    monkeypatch.setattr(Measurer, "measure_unit", None)
    flags = [*FLAGS[:-2], "--cosine", "1.0", "--strict"]
    result = run(str(llada), "--data", data, "--out", str(made), *flags)
    assert result.exit_code == 0
    assert DepthProfile.load(made / "depth_profile.json").max_depth == 0
    assert "No depth keeps the limits" in (made / "report.html").read_text()
    assert run(str(llada), "--data", data, "--out", str(made), *FLAGS).exit_code == 0
    assert DepthProfile.load(made / "depth_profile.json").max_depth == 6


def test_measurements_of_other_settings_are_refused(made, llada, data):
    result = run(str(llada), "--data", data, "--out", str(made), *FLAGS, "--seed", "5")
    assert result.exit_code == 2
    assert "other seed" in result.stderr
    assert "--restart" in result.stderr


def test_restart_forgets(tmp_path):
    Store(tmp_path, {"seed": 1}).add({"key": "a", "value": 1})
    assert Store(tmp_path, {"seed": 1}).records == {"a": {"key": "a", "value": 1}}
    with pytest.raises(ConfigError, match="other seed"):
        Store(tmp_path, {"seed": 2})
    assert Store(tmp_path, {"seed": 2}, restart=True).records == {}


def test_ratios_that_no_row_reaches_are_named(llada, data, tmp_path):
    result = run(str(llada), "--data", data, "--out", str(tmp_path / "out"), *FLAGS, "--ratios", "0.4,0.9")
    assert result.exit_code == 0
    assert "no rows reach a ratio of 0.9" in result.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--ratios 0.4,x", "ratios"),
        ("--ratios 1.5", "ratios"),
        ("--depths 3", "depths is .*3.*whole bands of 2 layers up to 6"),
        ("--depths 8", "depths"),
        ("--captures last", "captures"),
        ("--captures alone", "captures"),
        ("--intervals 8", "intervals"),
        ("--min-agreement 1.2", "min_agreement"),
        ("--groups 0", "groups"),
        ("--data /no/such/file", "data"),
        ("--steps 0", "steps"),
        ("--device quantum", "device"),
    ],
)
def test_bad_options_are_one_line_that_names_the_field(llada, data, tmp_path, flags, words):
    result = run(str(llada), "--data", data, "--out", str(tmp_path / "out"), *FLAGS, *flags.split())
    assert result.exit_code == 2
    assert re.search(f"error: .*{words}", result.stderr)
    assert "Traceback" not in result.stderr


def test_help_names_every_option_and_its_default():
    text = make_parser().format_help()
    for name in ProfileOptions.__dataclass_fields__:
        assert ("--" + name.replace("_", "-") in text) or name == "model"
    assert "Default: 0.3,0.4,0.5,0.6,0.7,0.8,0.9." in re.sub(r"\s+", " ", text)
    options = parse(["shop", "--data", "x", "--depths", "4,8", "--cosine", "0.97"])
    assert (options.depths, options.cosine, options.groups) == ((4, 8), 0.97, ProfileOptions.groups)


def test_every_option_reads_its_fields_type():
    options = parse(
        ["m", "--data", "d", "--lora", "path", "--mask-token-id", "3", "--threshold", "0.5", "--cosine", "0.9"]
    )
    assert (options.lora, options.mask_token_id, options.threshold) == ("path", 3, 0.5)
    assert (options.data, options.cosine, options.page_size) == ("d", 0.9, 16)
