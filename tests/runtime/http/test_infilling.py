"""Text between a prompt and a suffix, and canvases with fixed tokens, on /v1/completions."""

from __future__ import annotations

import json

import pytest

from shoal.runtime.errors import InvalidRequestError
from shoal.runtime.http.canvases import with_suffix
from shoal.runtime.request.field_names import FieldNames
from shoal.runtime.request.input import GenerateInput
from shoal.runtime.request.length_limit import check_length
from shoal.runtime.request.sampling_params import SamplingParams

from .process import chat_text

SUFFIX = " apple , plum"


@pytest.fixture(scope="module")
def ids(server):
    with server.client() as client:
        yield lambda text: client.post("/tokenize", json={"prompt": text}).json()["tokens"]


def complete(client, **body):
    reply = client.post("/v1/completions", json={"cache_mode": "none", **body})
    assert reply.status_code == 200, reply.text
    return reply.json()


@pytest.mark.parametrize("steps", [None, 3])
def test_a_suffix_is_fixed_text_behind_the_masks(client, ids, prices, steps):
    """As a canvas of the native route; steps are those of the masks alone."""
    prompt, suffix = chat_text(prices, "Which things are red?"), ids(SUFFIX)
    body = {"prompt": prompt, "suffix": SUFFIX, "max_tokens": 8, "steps": steps, "block_length": 4}
    given = complete(client, **body)
    (choice,) = given["choices"]
    native = {"text": prompt, "canvas": [-1] * 8 + suffix, "cache_mode": "none", "block_length": 4}
    if steps is not None:
        blocks = -(-len(native["canvas"]) // 4)
        native["steps"] = {3: blocks + 1}[steps]
    reply = client.post("/generate", json=native).json()
    (hole,) = reply["holes"]
    assert choice["text"] == hole["text"]
    assert given["usage"]["completion_tokens"] == len(hole["output_ids"])
    assert given["usage"]["prompt_tokens"] == reply["meta_info"]["prompt_tokens"]
    assert choice["finish_reason"] == ("length" if len(hole["output_ids"]) == 8 else "stop")
    assert choice["meta_info"]["nfe"] == reply["meta_info"]["nfe"]
    if steps is not None:
        assert choice["meta_info"]["nfe"] == steps
    several = complete(client, **{**body, "prompt": [prompt, prompt], "n": 2, "echo": True})
    assert [c["text"] for c in several["choices"]] == [prompt + choice["text"]] * 4


def test_a_stream_has_the_text_alone(client, prices):
    body = {"prompt": chat_text(prices, "Which things are red?"), "suffix": SUFFIX, "max_tokens": 8, "steps": 8,
            "block_length": 4, "ignore_eos": True}  # fmt: skip
    whole = complete(client, **body)["choices"][0]
    with client.stream("POST", "/v1/completions", json={**body, "stream": True, "cache_mode": "none"}) as reply:
        lines = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line)["choices"][0] for line in lines[:-1]]
    assert "".join(chunk["text"] for chunk in chunks) == whole["text"]
    assert chunks[-1]["finish_reason"] == whole["finish_reason"]


def test_a_canvas_is_that_of_the_native_route(client, ids, prices):
    prompt = chat_text(prices, "Which things are red?")
    canvas = [-1, -1, *ids(" apple"), -1, -1, *ids(" plum"), -1]
    (choice,) = complete(client, prompt=prompt, canvas=canvas)["choices"]
    reply = client.post("/generate", json={"text": prompt, "canvas": canvas, "cache_mode": "none"}).json()
    assert (choice["text"], choice["holes"]) == (reply["text"], reply["holes"])
    assert len(choice["holes"]) == 3
    two = complete(client, prompt=[prompt, prompt], canvas=[None, canvas], max_tokens=4)["choices"]
    assert two[1]["text"] == choice["text"]
    wrong = client.post("/v1/completions", json={"prompt": "red", "canvas": canvas, "suffix": "x"})
    assert (wrong.status_code, wrong.json()["param"]) == (400, "suffix")


@pytest.mark.parametrize("steps", range(1, 20))
@pytest.mark.parametrize(("masks", "suffix", "size"), [(8, 5, 4), (5, 9, 4), (3, 1, 32), (16, 40, 8)])
def test_steps_of_the_masks_stay_what_they_are(steps, masks, suffix, size):
    class Info:
        max_tokens, block_length = 1000, 32

    alone = SamplingParams(max_new_tokens=masks, block_length=size, steps=steps)
    item = with_suffix(GenerateInput(prompt="a", sampling=alone), [7] * suffix, Info())  # type: ignore[arg-type]
    blocks = len(item.sampling.blocks(size))
    masked = len(alone.blocks(size))
    each = [item.sampling.steps_of_block(i, blocks) for i in range(masked)]
    assert each == [alone.steps_of_block(i, masked) for i in range(masked)]
    assert item.canvas == [-1] * masks + [7] * suffix


def test_advice_on_length_leaves_room_for_the_suffix():
    names = FieldNames("prompt", "max_tokens", suffix=10)
    with pytest.raises(InvalidRequestError) as caught:
        check_length(50, 60, model=100, pool=1000, names=names)
    assert "max_tokens is 50 and suffix has 10 tokens: 110" in caught.value.message
    assert "send max_tokens of at most 40" in caught.value.message
    check_length(50, 50, model=100, pool=1000, names=names)
    with pytest.raises(InvalidRequestError, match="shorten prompt by 58 tokens, to at most 40"):
        check_length(98, 60, model=100, pool=1000, names=names)
    with pytest.raises(InvalidRequestError, match="shorten suffix") as caught:
        check_length(50, 120, model=100, pool=1000, names=FieldNames("prompt", "max_tokens", suffix=119))
    assert caught.value.field == "suffix"
