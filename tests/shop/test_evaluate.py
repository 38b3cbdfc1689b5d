"""Dense block-wise decoding against scripted networks, and the held-out questions."""

from __future__ import annotations

import torch

from shoal.shop import vocabulary
from shoal.shop.evaluate import accuracy, decode, held_out_prompts, probes
from shoal.shop.network import Network
from shoal.shop.task import KINDS, Item, PriceList

from .tiny import TINY

MASK = 1


class Scripted:
    """Stands in for a network: says token 10 + position with a given confidence, and notes what it was shown."""

    device = torch.device("cpu")

    def __init__(self, confidence):
        self.confidence = confidence  # (row, position) -> probability
        self.seen: list[torch.Tensor] = []

    def __call__(self, ids, mask, reuse):
        self.seen.append(ids.clone())
        logits = torch.zeros(*ids.shape, 256)
        for row in range(ids.shape[0]):
            for at in range(ids.shape[1]):
                p = self.confidence(row, at)
                logits[row, at, 10 + at] = torch.log(torch.tensor(p / (1 - p) * 254))
        logits[..., MASK] = 50.0  # a mask is never an answer, however sure the network is
        return logits


def test_sure_tokens_are_committed_at_once():
    network = Scripted(lambda row, at: 0.95)
    out = decode(network, [[5, 6], [5, 6, 7]], canvas=8, block=4, threshold=0.9)  # type: ignore[arg-type]
    assert out == [[10 + at for at in range(2, 10)], [10 + at for at in range(3, 11)]]
    assert len(network.seen) == 2
    assert (network.seen[1][0, 2:6] != MASK).all()
    assert (network.seen[1][0, 6:10] == MASK).all()  # the second block waits for the first


def test_one_token_is_committed_when_none_is_sure():
    network = Scripted(lambda row, at: 0.5 + 0.01 * at)
    decode(network, [[5, 6]], canvas=4, block=4, threshold=0.9)  # type: ignore[arg-type]
    assert [(ids == MASK).sum().item() for ids in network.seen] == [4, 3, 2, 1]
    assert (network.seen[1][0, 2:6] == MASK).tolist() == [True, True, True, False]  # the surest first


def test_rows_that_lend_their_prefix_keep_a_masked_canvas():
    network = Scripted(lambda row, at: 0.95)
    decode(network, [[5, 6], [5, 6]], canvas=8, block=4, reuse=[2, 2], depth=1)  # type: ignore[arg-type]
    assert all((ids[0, 2:] == MASK).all() for ids in network.seen)
    assert (network.seen[-1][1, 2:6] != MASK).all()


def test_held_out_questions_are_reproducible_and_of_every_kind():
    questions = held_out_prompts(48, seed=0)
    assert questions == held_out_prompts(48, seed=0)
    assert questions != held_out_prompts(48, seed=1)
    kinds = {kind for kind, _, _ in questions}
    assert kinds == {kind + end for kind in KINDS for end in ("", "/json")}
    sizes = set()
    for _, ids, _ in questions:
        text = "".join(vocabulary.tokens()[i] for i in ids)
        things = [line.split() for line in text.split("<|end|>")[0].split("\n")[1:]]
        prices = PriceList(tuple(Item(colour, noun, int(price)) for colour, noun, price in things))
        assert prices.held_out
        sizes.add(len(things))
        assert text.endswith("<|assistant|>")
    assert 8 <= min(sizes) < 20 < 58 < max(sizes) <= 70
    assert any(ids.count(vocabulary.ids()["<|user|>"]) > 1 for _, ids, _ in questions)


def test_an_untrained_network_is_wrong():
    torch.manual_seed(0)
    network = Network(TINY)
    assert accuracy(network, 8, seed=0)["all"] == 0.0
    assert max(probes(network).values()) < 0.5
