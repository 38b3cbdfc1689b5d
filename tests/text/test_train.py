"""Training in pieces, sampling from the base, and what the measurements promise."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from benchmarks import text_reuse, text_selective
from shoal.text import chats, delta, evaluate, train
from shoal.text.corpus import END
from shoal.text.network import MASK, MATRICES, Network
from shoal.text.reuse import capture, resumed
from shoal.text.weights import FlatWeights, LowRankMaster


def arguments(base, data, out, *more):
    return [
        "--base", str(base), "--data", str(data), "--out", str(out), "--steps", "3", "2", "--tokens-per-step", "1024",
        "--rank", "8", "--workers", "0", "--log-every", "1", "--eval-every", "100", "--eval-documents", "2",
        "--warm-up", "1", "--device", "cpu", "--no-compile", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(base, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    train.main(arguments(base, data, out))
    return out


def test_both_phases_run_and_leave_weights_and_a_log(trained, base):
    log = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in log if "loss" in r] == [1, 2, 3, 4, 5]
    assert {r["phase"] for r in log} == {"full", "low-rank"}
    assert sum("probes" in r for r in log) == 3
    original = Network.load_base(base)
    for name in ("full", "low-rank"):
        network = Network.load_base(base)
        delta.apply(trained / f"{name}.safetensors", network)
        assert (network.stacks["qkv"] - original.stacks["qkv"]).abs().max() > 1e-5


def test_a_training_in_pieces_ends_where_one_in_one_go_ends(trained, base, data, tmp_path, monkeypatch):
    for _ in range(8):  # one step a run
        train.main(arguments(base, data, tmp_path, "--time-limit", "1e-9"))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in trained.iterdir())
    whole, pieces = (load_file(folder / "checkpoint.safetensors") for folder in (trained, tmp_path))
    assert whole.keys() == pieces.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(pieces[name], tensor, rtol=1e-5, atol=1e-6)


def test_a_training_that_is_stopped_saves_its_last_step_and_goes_on_from_there(base, data, tmp_path):
    log, previous = tmp_path / "log.jsonl", signal.getsignal(signal.SIGTERM)

    def stop() -> None:
        while not log.exists() or log.read_text().count("loss") < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(SystemExit, match="143"):
        train.main(arguments(base, data, tmp_path, "--steps", "100000", "0", "--workers", "1"))
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is previous
    last = json.loads(log.read_text().splitlines()[-1])["step"]
    with safe_open(tmp_path / "checkpoint.safetensors", "pt") as file:
        assert json.loads(file.metadata()["progress"])["step"] == last >= 2
    assert (tmp_path / "full.safetensors").exists()
    train.main(arguments(base, data, tmp_path, "--steps", str(last + 1), "0"))
    assert (tmp_path / train.COMPLETE).exists()
    assert json.loads(log.read_text().splitlines()[-1])["step"] == last + 1


def test_a_checkpoint_of_another_seed_is_refused(trained, base, data):
    with pytest.raises(SystemExit, match="--seed 1"):
        train.main(arguments(base, data, trained, "--seed", "2"))


def test_the_gradients_of_the_factors_are_those_of_autograd(base):
    network, original = Network.load_base(base), Network.load_base(base)
    with torch.no_grad():
        network.stacks["qkv"] += 0.05 * torch.randn_like(network.stacks["qkv"])
    flat = FlatWeights(network, torch.float32)
    master = LowRankMaster(flat, {k: original.stacks[k].detach() for k in MATRICES}, rank=4)
    master.push()
    tokens = torch.randint(17, 400, (1, 20))
    network(tokens).square().sum().backward()
    master.pull()
    up, down = (factor.detach().clone().requires_grad_() for factor in master.factors("qkv"))
    again = Network.load_base(base)
    weights = original.stacks["qkv"].detach() + delta.rounded(up).transpose(1, 2) @ delta.rounded(down)
    state = {k: v.detach().clone() for k, v in network.state_dict().items()} | {"stacks.qkv": weights}
    torch.func.functional_call(again, state, (tokens,)).square().sum().backward()
    for found, expected in zip(master.factors("qkv"), (up, down), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-3, atol=1e-3)


def test_sampling_continues_prompts_as_a_plain_forward_would(base):
    network = Network.load_base(base)
    sampler = chats.Sampler(network, top_k=1)
    prompts = [[1, 40, 41, 42, 43, 44], [1, 50, 51]]
    padded = torch.tensor([[END] * (6 - len(p)) + p for p in prompts])
    out = sampler.sample(padded, torch.tensor([0, 3]), 8)
    for prompt, row in zip(prompts, out.tolist(), strict=True):
        ids = list(prompt)
        while len(ids) < len(prompt) + 8 and (len(ids) == len(prompt) or ids[-1] not in (END, chats.END_OF_TURN)):
            with torch.no_grad():
                ids.append(int(network.logits(network(torch.tensor([ids]), causal=True)[0, -1]).argmax()))
        answer = row[6:]
        assert answer[: len(ids) - len(prompt)] == ids[len(prompt) :]
        assert set(answer[len(ids) - len(prompt) :]) <= {END}


def test_the_bound_of_a_network_that_knows_nothing_is_that_of_a_guess(base):
    network = Network.load_base(base)
    with torch.no_grad():
        network.embedding.zero_()
    documents = torch.randint(17, 400, (3, 64))
    guess = math.log(network.shape.vocab - 1)  # a mask is never a prediction
    for found in (evaluate.bound(network, documents, 32, rates=4), evaluate.nll_at_rate(network, documents, 0.5)):
        torch.testing.assert_close(found, torch.full((3,), guess), rtol=1e-4, atol=1e-4)


def test_decoding_fills_the_canvas_and_counts_passes_of_each_row(base):
    answers, passes = evaluate.decode(Network.load_base(base), torch.randint(17, 400, (2, 9)), 20, block=8)
    assert answers.shape == (2, 20)
    assert not (answers == MASK).any()
    assert all(3 <= count <= 20 for count in passes.tolist())


def test_reuse_of_its_own_capture_changes_nothing_and_of_another_s_something(base):
    network = Network.load_base(base)
    tokens = torch.randint(17, 400, (2, 40))
    hidden, own = capture(network, tokens, 24)
    other = tokens.clone()
    other[:, 24:] = MASK
    _, donor = capture(network, other, 24)
    plain = network(tokens)
    torch.testing.assert_close(hidden, plain, rtol=1e-4, atol=1e-4)
    for depth, behind in resumed(network, tokens, 24, own, [0, 1, 2, 3]):
        torch.testing.assert_close(behind, plain[:, 24:], rtol=1e-3, atol=1e-3, msg=f"depth {depth}")
    changes = [(behind - plain[:, 24:]).abs().max().item() for _, behind in resumed(network, tokens, 24, donor, [0, 3])]
    assert changes[0] < 1e-3 < changes[1]


def test_rows_whose_answer_lies_in_the_prefix_are_not_measured(base, asker):
    task = text_reuse.asked(asker, "gap", 12)
    network = Network.load_base(base)
    places = task.counted.int().argmax(1)
    for ratio in (0.5, 0.95):
        records = text_reuse.measure(network, task, ratio, ["first", "final"], [1, 3], 1)
        expected = int((places > round(ratio * text_reuse.TOTAL)).sum())
        assert [r["rows"] for r in records] == [expected] * len(records)
    assert len(text_reuse.measure(network, task, 0.3, ["first", "alone", "final"], [1, 2, 3], 1)) == 9
    assert text_reuse.measure(network, task, 1.0, ["first"], [1], 1) == []


def test_the_noise_of_bfloat16_is_measured_against_float32(base, asker):
    network = Network.load_base(base)
    (record,) = text_reuse.noise(network, text_reuse.asked(asker, "gap", 4), 0.5)
    assert record["capture"] == "noise"
    assert 0 < abs(float(str(record["dnll"]))) < 0.1
    assert 0 <= float(str(record["agree"])) <= 1


def test_the_programs_write_a_row_for_each_cell(trained, base, data, tmp_path, monkeypatch):
    monkeypatch.setattr(text_reuse, "LEAST_ROWS", 1)
    common = ["--base", str(base), "--weights", str(trained / "full.safetensors"), "--data", str(data), "--rows", "4",
              "--ratios", "0.5", "--tasks", "look-up", "--depths", "1", "--device", "cpu"]  # fmt: skip
    rows = {}
    for module, more, shape in (
        (text_reuse, ["--captures", "first", "--dtypes", "float32"], ("capture", "depth")),
        (text_selective, ["--shares", "0.25"], ("chosen_by", "share")),
    ):
        out = tmp_path / f"{module.__name__}.csv"
        module.main([*common, *more, "--out", str(out)])
        with out.open() as file:
            found = list(csv.DictReader(file))
        assert {(row["task"], row["ratio"], row["rows"]) for row in found} == {("look-up", "0.5", "4")}
        assert found[0]["command"] == f"python -m {module.__name__} " + " ".join([*common, *more, "--out", str(out)])
        rows[module] = [tuple(row[name] for name in shape) for row in found]
    assert rows[text_reuse] == [("first", "1")]
    choosers = [(by, "0.25") for by in text_selective.CHOOSERS]
    assert rows[text_selective] == [("", "0.0"), ("", "1.0"), *choosers]


def test_learning_rates_warm_up_and_fall_to_zero():
    rates = [train.learning_rate(1.0, step, step / 10, 2) for step in range(11)]
    assert rates[0] == 0.5
    assert max(rates) == rates[1] == 0.9
    assert rates[-1] == 0.0


def test_evaluation_measures_everything_on_a_tiny_model(trained, base, data, tmp_path):
    evaluate.main(["--base", str(base), "--weights", str(trained / "full.safetensors"), "--data", str(data),
                   "--out", str(tmp_path), "--documents", "4", "--device", "cpu"])  # fmt: skip
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert result["documents"] == 4
    assert 3 < result["bound"]["mean"] < 12
    assert 0 <= result["look-up 0.5"]["accuracy"] <= 1
    assert (tmp_path / "samples.md").read_text().count("## ") == 4
    assert np.isfinite(result["tokens a pass"])
