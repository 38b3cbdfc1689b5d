"""The trainer on the CPU with a tiny network: learning rates, stopping and resuming, both phases of the command."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from shoal.shop import train
from shoal.shop.recipe import RECIPES, Phase, learning_rate_factor, scheduled
from shoal.shop.rows import REUSE_START
from shoal.shop.train import Trainer, batches, parse_arguments

from .tiny import TINY, TINY_DREAM, arguments

pytestmark = pytest.mark.usefixtures("one_thread")


def trainer(out, **changed) -> Trainer:
    return Trainer(parse_arguments(arguments(out, **changed)), TINY)


def run(trained: Trainer, until: int) -> list[float]:
    losses = []
    for batch in batches(trained.options, trained.step):
        losses.append(trained.train_step(batch).item())
        if trained.step == until:
            break
    return losses


def weights(trained: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trained.network.named_parameters()}


def differing(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == two.keys()
    return [name for name in one if not torch.equal(one[name], two[name])]


def test_learning_rate_rises_stays_and_falls():
    def at(step):
        return learning_rate_factor(step, steps=100, decay_start=60, warm_up=10)

    assert [at(0), at(4), at(9)] == pytest.approx([0.1, 0.5, 1.0])
    assert {at(step) for step in range(10, 61)} == {1.0}
    assert [at(70), at(90), at(99), at(100), at(150)] == pytest.approx([0.75, 0.25, 0.025, 0.0, 0.0])
    assert learning_rate_factor(5, steps=5, decay_start=5, warm_up=0) == 0.0


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_stopped_and_resumed_is_as_never_stopped(tmp_path, optimizer):
    whole = trainer(tmp_path, optimizer=optimizer)
    start = weights(whole)
    losses = run(whole, 6)
    assert len(differing(start, weights(whole))) == len(start)

    first = trainer(tmp_path, optimizer=optimizer)
    assert not differing(start, weights(first))
    assert not first.restore()
    before = run(first, 3)
    first.seconds = 12.5
    first.save()
    second = trainer(tmp_path, optimizer=optimizer)
    assert second.restore()
    assert (second.step, second.seconds) == (3, 12.5)
    assert before + run(second, 6) == losses
    assert differing(weights(second), weights(whole)) == []


def test_optimizers_share_the_parameters(tmp_path):
    trained = trainer(tmp_path)
    named = {id(p): name for name, p in trained.network.named_parameters()}
    muon = [named[id(p)] for group in trained.muon.param_groups for p in group["params"]]
    adam = [named[id(p)] for group in trained.adam.param_groups for p in group["params"]]
    assert sorted(muon + adam) == sorted(named.values())
    assert all(".blocks." in name and name.endswith(("proj.weight", "out.weight")) for name in muon)
    assert len(muon) == 7 * TINY["n_layers"]
    assert trained.adam.param_groups[1]["weight_decay"] == 0.0


def test_learning_rates_of_a_step(tmp_path):
    trained = trainer(tmp_path, muon_lr=0.008, adam_lr=0.002)
    seen = []
    for batch in batches(trained.options, 0):
        trained.train_step(batch)
        seen.append((trained.muon.param_groups[0]["lr"], trained.adam.param_groups[0]["lr"]))
    factors = [0.5, 1.0, 1.0, 1.0, 2 / 3, 1 / 3]
    assert [muon for muon, _ in seen] == pytest.approx([0.008 * f for f in factors])
    assert [adam for _, adam in seen] == pytest.approx([0.002 * f for f in factors])


def test_a_checkpoint_of_another_seed_is_refused(tmp_path):
    trainer(tmp_path, seed=1).save()
    with pytest.raises(SystemExit, match="--seed 1"):
        trainer(tmp_path, seed=2).restore()


def test_loss_falls(tmp_path):
    trained = trainer(tmp_path, steps=30, decay_start=30, tokens_per_step=1024)
    losses = run(trained, 30)
    assert sum(losses[-5:]) / 5 < 0.75 * losses[0]


@pytest.fixture
def quick(monkeypatch):
    """The command without its measurements, which take longer than such a training."""
    monkeypatch.setattr(train, "probe", lambda trainer: {})
    monkeypatch.setattr(train, "evaluate", lambda trainer, questions: {"all": 0.5})
    monkeypatch.setattr(train, "reused", lambda trainer, depth, questions: {"all": 0.25})


def test_the_two_commands_of_the_model_card(tmp_path, quick, capsys):
    one, two = tmp_path / "one", tmp_path / "two"
    train.main(arguments(one), TINY)
    log = [json.loads(line) for line in (one / "log.jsonl").read_text().splitlines()]
    assert log[0]["step"] == 6
    assert log[0]["tokens"] == 6 * 512
    assert log[-1]["reuse"] == {"8": {"all": 0.25}, "12": {"all": 0.25}, "16": {"all": 0.25}}
    training = json.loads((one / "model" / "training.json").read_text())
    assert (training["steps"], training["seed"], training["accuracy"]) == (6, 1, {"all": 0.5})
    assert training["loss"] == pytest.approx(log[0]["loss"], abs=1e-4)

    last = REUSE_START + 2
    second = arguments(two, steps=last, at_step=REUSE_START, resume_from_published=one / "model", decay_start=last)
    train.main(second, TINY)
    assert json.loads((two / "model" / "training.json").read_text())["steps"] == last
    assert "resumed" not in capsys.readouterr().out

    changed = {"resume_from_published": one / "model", "steps": last + 1, "at_step": REUSE_START}
    train.main(arguments(two, **changed), TINY)  # from its own checkpoint, not from the published model again
    assert f"resumed at step {last}" in capsys.readouterr().out


def test_a_time_limit_stops_and_saves(tmp_path, quick):
    train.main(arguments(tmp_path, time_limit=1e-6), TINY)
    trained = trainer(tmp_path)
    assert trained.restore()
    assert trained.step == 1
    training = json.loads((tmp_path / "model" / "training.json").read_text())
    assert training["loss"] is None


def test_published_weights_start_the_second_phase(tmp_path, quick):
    train.main(arguments(tmp_path), TINY)
    finished, second = trainer(tmp_path), trainer(tmp_path, seed=5)
    assert finished.restore()
    assert differing(weights(finished), weights(second))
    second.restore_published(tmp_path / "model", REUSE_START)
    assert second.step == REUSE_START
    rounded = {name: p.bfloat16().float() for name, p in weights(finished).items()}
    assert differing(rounded, weights(second)) == []


def test_phases_warm_up_and_decay_on_their_own():
    phases = (Phase("one", 100, 60), Phase("two", 200, 150, peak=0.5))
    factors = [scheduled(step, phases, 10) for step in (0, 9, 59, 80, 99, 100, 109, 149, 175, 199, 200)]
    assert factors == pytest.approx([0.1, 1, 1, 0.5, 0.025, 0.05, 0.5, 0.5, 0.25, 0.01, 0])


def test_a_recipe_of_two_phases_publishes_both_and_goes_on_after_a_time_limit(tmp_path, quick, monkeypatch, capsys):
    mix = replace(RECIPES["shop-dream"].mix, reuse_start=3, plain_start=1, plain_share=0.5)
    phases = (Phase("natural", 3, 2), Phase("model", 5, 4))
    monkeypatch.setitem(RECIPES, "shop-dream", replace(RECIPES["shop-dream"], mix=mix, phases=phases))
    words = arguments(tmp_path, recipe="shop-dream")
    for name in ("--steps", "--decay-start"):
        at = words.index(name)
        del words[at : at + 2]
    for _ in range(2):  # one step at a time
        train.main([*words, "--time-limit", "1e-6"], TINY_DREAM)
    assert not (tmp_path / "natural").exists()
    train.main(words, TINY_DREAM)
    assert "resumed at step 2" in capsys.readouterr().out
    steps = {
        name: json.loads((tmp_path / name / "training.json").read_text())["steps"] for name in ("natural", "model")
    }
    assert steps == {"natural": 3, "model": 5}
    weights_of = [(tmp_path / name / "model-00001-of-00001.safetensors").read_bytes() for name in steps]
    assert weights_of[0] != weights_of[1]
    (tmp_path / "model" / "training.json").unlink()
    train.main(words, TINY_DREAM)
    assert (tmp_path / "model" / "training.json").exists()
    with pytest.raises(SystemExit, match="--recipe shop-dream"):
        Trainer(parse_arguments(arguments(tmp_path)), TINY).restore()
