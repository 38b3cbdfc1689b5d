"""The command line as a user calls it; the demo itself once, small, in a process of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import shoal
from shoal.cli import app
from shoal.demo.main import DemoOptions
from shoal.runtime.errors import ConfigError
from shoal.shop.network import SHOP_CONFIG
from shoal.shop.task import HEADER

MODES = ("none", "prefix", "dual", "lm", "bicache")


def call(*args: str, stdin: str | None = None):
    return CliRunner().invoke(app, list(args), input=stdin)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "shoal.cli", "demo", "--quick", "--questions", "8", "--list-sizes", "20"]
    run = subprocess.run(
        [*command, "--json", "figures.json", "--plot", "plot.png"], cwd=folder, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    loading, first, *_ = run.stderr.splitlines()
    assert loading == "loading"
    assert re.match(r"bicache: (\d) of \1 right, \d+ tokens/s \(\1 of \d+ questions, \d+ s\)$", first), first
    assert sorted(path.name for path in folder.iterdir()) == ["figures.json", "plot.png"]
    return folder, run.stdout, json.loads((folder / "figures.json").read_text())


def test_demo_bicache_answers_as_none_does_and_lm_does_not(demo):
    """Colours are three of eight questions, and two of them cost mode lm its answer even in so small a run."""
    modes = demo[2]["modes"]
    assert modes["none"]["accuracy"] == 1.0
    assert modes["bicache"]["accuracy"] == modes["none"]["accuracy"]
    assert modes["bicache"]["agreement"] == 1.0
    assert modes["lm"]["accuracy"] <= modes["none"]["accuracy"] - 0.2


def test_demo_json_has_every_figure(demo):
    report = demo[2]
    assert tuple(report["modes"]) == MODES
    for mode, figures in report["modes"].items():
        assert set(figures) == {
            "accuracy", "accuracy_by_kind", "agreement", "nfe", "cached_share", "reused_share", "computed_token_layers",
            "prompt_tokens", "completion_tokens", "seconds", "cpu_seconds", "tokens_per_s",
            "speedup_over_none", "speedup_over_dual",
        }  # fmt: skip
        assert (figures["cached_share"] > 0.5) == (mode in ("lm", "bicache"))
        assert figures["tokens_per_s"] == pytest.approx(figures["completion_tokens"] / figures["seconds"])
    assert report["modes"]["bicache"]["computed_token_layers"] < 0.8 * report["modes"]["dual"]["computed_token_layers"]
    assert list(report["depths"]) == ["0", "4", "8", "12", "16"]
    assert report["depths"]["0"]["reused_share"] == 0
    assert report["depths"]["0"]["computed_token_layers"] == report["modes"]["dual"]["computed_token_layers"]
    assert report["depths"]["0"]["accuracy"] == report["depths"]["8"]["accuracy"] == 1.0
    assert report["workload"]["list_sizes"] == [20]
    assert report["workload"]["questions"] == 8
    assert report["decoding"] == {"max_new_tokens": 32, "block_length": 8, "steps": 16}
    assert report["command"].endswith("--json figures.json --plot plot.png")
    assert report["versions"]["shoal"] == shoal.__version__
    assert report["hardware"]["cores"] >= 1
    assert report["tree"]["num_nodes"] > 1


def test_demo_prints_tables_and_tree_and_writes_a_plot(demo):
    folder, text, _ = demo
    words = " ".join(text.split())
    assert "two tokens a forward pass" in words
    for title in ("Cache modes", "Accuracy by kind", "constant depth", "radix tree:", "depth 8/16"):
        assert title in words
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("demo", "--modes", "dual,foo"), "'foo'"),
        (("demo", "--modes", "dual,dual"), "different modes"),
        (("demo", "--modes", ","), "at least one"),
        (("demo", "--list-sizes", "44,99"), "list_sizes: 99"),
        (("demo", "--questions", "0"), "questions: 0"),
        (("demo", "--json", "no/such/folder/x.json"), "no/such/folder/x.json"),
        (("demo", "--plot", "no/such/folder/x.png"), "plot is"),
        (("demo", "--plot", "x.gif"), ".png"),
        (("generate", "no-such-model", "--chat", "x"), "no-such-model"),
        (("generate", "shop", "--chat", "x", "--block-length", "0"), "block_length"),
        (("generate", "shop", "--chat", "x", "--cache-mode", "foo"), "cache_mode"),
        (("generate", "shop", "--prompt", ""), "empty"),
        (("serve", "--port", "99999"), "port is 99999"),
        (("serve", "--model-path", "no-such-model"), "no-such-model"),
    ],
)  # fmt: skip
def test_mistakes_are_answered_in_one_line(args, words):
    result = call(*args)
    assert result.exit_code == 2
    assert result.stdout == "" or args[0] == "demo"
    assert words in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "args",
    [
        ("demo", "--list-sizes", "many"),
        ("generate", "shop"),
        ("generate", "shop", "--prompt", "x", "--chat", "x"),
        ("generate", "shop", "--prompt", "x", "--system", "x"),
        ("nonsense",),
    ],
)  # fmt: skip
def test_wrong_usage_exits_with_2(args):
    assert call(*args).exit_code == 2


@pytest.mark.parametrize(
    ("config", "words"),
    [(None, "config.json"), ('{"model_type": "gpt2"}', "gpt2"), (json.dumps(SHOP_CONFIG), "no tokenizer")],
)
def test_a_folder_that_is_no_model_is_refused_before_the_server_starts(tmp_path, config, words):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    result = call("serve", "--model-path", str(tmp_path), "--port", "0")
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_a_file_that_cannot_be_written_is_refused_before_anything_runs(monkeypatch, tmp_path):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.touch()
    assert DemoOptions(json=old, plot=tmp_path / "a.png").json == old
    monkeypatch.setattr("os.access", lambda path, mode: False)
    for path in (old, new):
        with pytest.raises(ConfigError, match="can be written") as caught:
            DemoOptions(json=path)
        assert caught.value.field == "json"


@pytest.mark.parametrize("words", ["version", "--version"])
def test_version(words):
    result = call(words)
    assert (result.exit_code, result.stdout) == (0, shoal.__version__ + "\n")


def test_python_m_shoal_is_the_command():
    command = [sys.executable, "-m", "shoal"]
    run = subprocess.run([*command, "version"], capture_output=True, text=True, check=True)
    assert run.stdout == shoal.__version__ + "\n"
    help_text = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    assert "Usage: python -m shoal" in help_text
    for name in ("demo", "generate", "serve", "profile", "version"):
        assert f" {name} " in help_text
    assert subprocess.run([*command, "nonsense"], capture_output=True, check=False).returncode == 2


def test_generate_answers_from_a_list():
    prices = HEADER + "\n red apple 42\n blue pear 17\n green plum 63"
    args = ("generate", "shop", "--system", prices, "--chat", "-", "--max-new-tokens", "32")
    result = call(*args, stdin="How much is the blue pear?")
    assert result.exit_code == 0
    assert result.stdout == "17\n"
    assert "forward passes" in result.stderr
    whole = json.loads(call(*args, "--json", stdin="How much is the blue pear?").stdout)
    assert (whole["text"], whole["finish_reason"], whole["completion_tokens"]) == ("17", "stop", 2)


def test_import_is_light():
    code = "import sys, shoal.cli; print(*sys.modules)"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "shoal.cli" in names
    assert {"torch", "transformers", "numpy", "matplotlib", "rich.table", "shoal.demo"} & set(names) == set()
