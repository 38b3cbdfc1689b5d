"""Frames: what goes in comes out; whatever else goes in is a typed error and nothing worse."""

from __future__ import annotations

import random
from dataclasses import fields
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.radix_cache.config import TreeConfig
from shoal.runtime import errors
from shoal.runtime.errors import InvalidRequestError, PoolTooSmallError, ShoalError, WireError
from shoal.runtime.grammar.grammar import Grammar
from shoal.runtime.model.config import ModelConfig
from shoal.runtime.pipeline import messages as wire
from shoal.runtime.pipeline.errors import pack_error, unpack_error
from shoal.runtime.pipeline.messages import Codec
from shoal.runtime.request.facts import Facts
from shoal.runtime.request.forward import (
    AddRequest,
    AuditReport,
    Forward,
    ForwardItem,
    Grow,
    Logprob,
    MarkedResult,
    Marks,
    Release,
    StepResult,
)
from shoal.runtime.request.input import GenerateInput
from shoal.runtime.request.output import TokenLogprob
from shoal.runtime.request.sampling_params import SamplingParams
from shoal.runtime.request.snapshot import CanvasChange
from shoal.runtime.request.spec import RequestSpec
from shoal.runtime.request.trace_options import TraceOptions

MODEL = ModelConfig("llada", 6, 32, 2, 2, 16, 48, 64, 64, 160, 1e4, 1e-5, False, False, False, 60, 3, 3)
FACTS = Facts(
    folder="models/m", model=MODEL, block_length=8, tree=TreeConfig(16, 6, 4, (4,)), kv_pages=9,
    boundary_pages=3, depth_profile={"table": [[0.5, 4]]}, device="cpu", dtype="float32",
)  # fmt: skip
SAMPLING = SamplingParams(max_new_tokens=8, stop=("ab", "c"), stop_token_ids=(5,), threshold=0.5, seed=7)
PAGES = np.arange(6, dtype=np.int32).reshape(2, 3)
GRAMMAR = Grammar("k", np.ones((2, 3), np.int16), np.arange(256, dtype=np.uint8), np.array([1, 0], np.int32))
ADD = AddRequest(
    rid="r", prompt=np.arange(5), canvas_length=8, sampling=SAMPLING, seed=3, block_length=4, page_table=PAGES,
    committed=np.array([7, 8]), canvas=np.array([-1, 4]), stop_ids=frozenset({3}),
    end_ids=frozenset({3, 5}), marks=True, grammar=GRAMMAR,
)  # fmt: skip
ITEM = ForwardItem("r", 1, 9, 13, 5, 9, 0, 4, np.arange(2, dtype=np.int32), ((2, 0, np.arange(3, dtype=np.int32)),),
                   audit=4, audit_tokens=False)  # fmt: skip
AUDIT = AuditReport(np.ones((2, 3), np.float32), np.full(2, 0.5, np.float32), 4, 3, np.ones(4, np.float32))
ERROR = pack_error(InvalidRequestError("no", field="prompt", value=[1, 2], limit=3))
OUTPUT = wire.Output(
    rid="r", token_start=2, tokens=[4, 5], text_start=1, text="text", finish_reason="stop", matched_stop="ab",
    prompt_tokens=5, cached_tokens=4, depth=2, canvas_tokens=8, nfe=3, computed_token_layers=99, prefix_refreshes=1,
    error=None, preemptions=0, queue_s=0.1, first_text_s=0.2, total_s=0.3, holes=[wire.HolePiece(1, 3, [4, 5])],
    scores=[-0.5], logprobs=[TokenLogprob(4, -0.5, 1, ((4, -0.5), (5, -1.0))), None],
)  # fmt: skip
SPEC = RequestSpec(rid="r", prompt=np.arange(4), sampling=SAMPLING, cache_mode="lm", cache_salt="", block_length=8,
                   seed=5, stop_ids=frozenset({3, 5}), grammar=GRAMMAR,
                   template=np.array([-1, 4]), targets=np.array([[0, 3]]), arrival=1.5)  # fmt: skip
ASKED = GenerateInput(
    rid="r", prompt="text", sampling=SAMPLING, cache_mode="dual", cache_salt="salt", priority=1, timeout_s=2.5,
    canvas=[-1, 4], targets=[(0, 3)],
)  # fmt: skip
GENERATE = wire.Generate(ASKED, 12.5)
IDS = wire.Generate(GenerateInput(rid="r", prompt=[1, 2], stream=False), 1.0)
CHAT = wire.Generate(GenerateInput(rid="r", prompt=[{"role": "user", "content": "é"}]), 1.0)
DENOISED = wire.Denoised({"r": CanvasChange(8, 1, 3, [2], [9], [None], [3], True, [4, 8], [" red"])})
GROW = Grow("r", 3, np.arange(4, dtype=np.int32).reshape(2, 2))
TRACE = wire.StartTrace(7, TraceOptions(output_dir="/traces", num_steps=3, activities=("CPU",)))

SOCKETS: dict[str, tuple[Any, list[Any]]] = {
    "tokenizer": (wire.ToTokenizer, [
        wire.Begin(FACTS), GENERATE, IDS, CHAT, wire.Abort("r"), wire.AbortAll(9), wire.Tokenize(1, "text", None),
        wire.Detokenize(2, [1, 2], True), wire.Ask(3, "stats"), wire.Summarize(5, 64, 10), TRACE,
        wire.StopTrace(8), wire.Lookup(4, ASKED),
    ]),
    "scheduler": (wire.ToScheduler, [
        wire.Begin(FACTS), wire.Abort("r"), wire.AbortAll(9, 2), wire.Ask(4, "flush"), wire.Summarize(5, 64, 10), TRACE,
        wire.StopTrace(8),
        wire.Accepted(SPEC), wire.LookupSpec(4, SPEC),
    ]),
    "worker": (wire.ToWorker, [
        wire.Add(ADD), wire.Lengthen(GROW), wire.Drop(Release(("r", "s"))), TRACE, wire.StopTrace(8),
        wire.Run(Forward((ITEM, ITEM), 3, (ITEM,))),
    ]),
    "results": (wire.FromWorker, [
        wire.Results([StepResult("r", [6, 7], [1, 2], 1, 50), StepResult("s", error="broken")]),
        wire.Results([StepResult("r", audit=AUDIT, entropy=0.5, logprobs=[Logprob(1, -0.5, ((4, -0.5),))])]),
        wire.Committed(1, 2**32 - 1),
        wire.MarkedResults([MarkedResult("r", [6], [1], 1, 50, marks=Marks([0.5], [1])), MarkedResult("s")]),
    ]),
    "detokenizer": (wire.ToDetokenizer, [
        wire.Begin(FACTS), wire.Outputs([OUTPUT, OUTPUT]), wire.Ask(5, "alive"), DENOISED,
    ]),
    "client": (wire.ToClient, [
        wire.Outputs([OUTPUT]), DENOISED, wire.Refused("r", ERROR), wire.Reply(5, {"a": [1, None, 2.5]}),
        wire.Reply(6, error=ERROR), wire.Ready("worker", FACTS), wire.Failed("scheduler", ERROR),
    ]),
}  # fmt: skip
CODECS: dict[str, Codec[Any]] = {name: Codec(union) for name, (union, _) in SOCKETS.items()}
CASES = [(name, message) for name, (_, messages) in SOCKETS.items() for message in messages]


def same(left: Any, right: Any) -> bool:
    """Equal, arrays by dtype and content."""
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and np.array_equal(left, right)
    if isinstance(left, list | tuple):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, msgspec.Struct):
        names = left.__struct_fields__
    elif hasattr(left, "__dataclass_fields__"):
        names = tuple(f.name for f in fields(left))
    else:
        return left == right
    return type(left) is type(right) and all(same(getattr(left, n), getattr(right, n)) for n in names)


@pytest.mark.parametrize(("socket", "message"), CASES, ids=[f"{n}-{type(m).__name__}" for n, m in CASES])
def test_messages_survive(socket, message):
    assert same(CODECS[socket].decode(CODECS[socket].encode(message)), message)


def test_a_step_without_denoising_has_no_byte_for_it():
    """Results of requests that nobody watches are the same frames with and without the feature."""
    plain, marked = StepResult("r", [6], [1], 1, 50), MarkedResult("r", [6], [1], 1, 50, marks=Marks([0.5], [1]))
    codec = CODECS["results"]
    assert b"marks" not in codec.encode(wire.Results([plain]))
    both: list[Any] = [plain, marked]
    mixed = codec.decode(codec.encode(wire.MarkedResults(both)))
    assert mixed.results[0].marks is None
    assert same(mixed.results[1], marked)


def test_every_message_of_every_socket_is_covered():
    for name, (union, messages) in SOCKETS.items():
        assert {type(m) for m in messages} == set(getattr(union, "__args__", (union,))), name


@pytest.mark.parametrize("socket", SOCKETS)
def test_messages_of_other_sockets_are_refused(socket):
    own = {type(m) for m in SOCKETS[socket][1]}
    refused = 0
    for other, message in CASES:
        if type(message) not in own:
            with pytest.raises(WireError):
                CODECS[socket].decode(CODECS[other].encode(message))
            refused += 1
    assert refused > 5


def decode_all(socket: str, frames: list[bytes]) -> tuple[int, int]:
    """How many frames were refused, and how many are messages; anything but a WireError fails the test."""
    refused = accepted = 0
    for frame in frames:
        try:
            message = CODECS[socket].decode(frame)
        except WireError as error:
            refused += error.field == "frame" and len(error.message) < 1000
        else:
            assert any(isinstance(message, type(m)) for m in SOCKETS[socket][1])
            accepted += 1
    assert refused + accepted == len(frames)
    return refused, accepted


def mutate(frame: bytes, chooser: random.Random) -> bytes:
    """The frame with a few bytes changed, removed, repeated, swapped for other types' headers, or cut off."""
    data = bytearray(frame)
    for _ in range(chooser.randrange(1, 5)):
        at = chooser.randrange(len(data)) if data else 0
        match chooser.randrange(6):
            case 0:
                data[at : at + 1] = bytes([chooser.randrange(256)])
            case 1:
                del data[at : at + chooser.randrange(1, 9)]
            case 2:
                data[at:at] = chooser.randbytes(chooser.randrange(1, 9))
            case 3:
                del data[at:]
            case 4:
                data[at:at] = data[at : at + chooser.randrange(1, 30)]
            case 5:  # headers of arrays, maps and strings that claim to be huge
                data[at : at + 1] = chooser.choice(
                    [b"\xdd\xff\xff\xff\xff", b"\xdf\x7f\xff\xff\xff", b"\xc6\xff\xff\xff\xff"]
                )
    return bytes(data)


FRAMES_PER_EXAMPLE = 50


@pytest.mark.parametrize("socket", SOCKETS)
def test_ten_thousand_random_and_mutated_frames(socket):
    """Half of each example's frames are mutations of real messages, half are bytes."""
    valid = [CODECS[socket].encode(message) for message in SOCKETS[socket][1]]
    counts = [0, 0]

    @settings(max_examples=200, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.integers(0, 2**64), st.lists(st.binary(max_size=80), min_size=10, max_size=10))
    def run(seed: int, noise: list[bytes]) -> None:
        chooser = random.Random(seed)
        half = FRAMES_PER_EXAMPLE // 2
        frames = [mutate(chooser.choice(valid), chooser) for _ in range(half)]
        frames += noise + [chooser.randbytes(chooser.randrange(200)) for _ in range(half - len(noise))]
        refused, accepted = decode_all(socket, frames)
        counts[0] += refused
        counts[1] += accepted

    run()
    assert sum(counts) >= 10_000
    assert counts[0] > 8_000


def test_another_version_is_refused():
    frame = CODECS["tokenizer"].encode(wire.Abort("r"))
    assert frame[1] == wire.VERSION
    with pytest.raises(WireError, match=r"\$\[0\]"):
        CODECS["tokenizer"].decode(frame[:1] + bytes([2]) + frame[2:])


def test_frames_have_a_largest_size_both_ways():
    codec: Codec[Any] = Codec(wire.ToTokenizer, max_bytes=100)
    with pytest.raises(WireError, match="100") as caught:
        codec.encode(wire.Tokenize(1, "x" * 200, None))
    assert caught.value.limit == 100
    with pytest.raises(WireError, match="200 bytes"):
        codec.decode(b"\x00" * 200)


@pytest.mark.parametrize("socket", SOCKETS)
def test_a_pickle_is_just_a_bad_frame(socket, tmp_path):
    """Pickles that create a file when they are loaded, in protocols 0 and 4."""
    mark = tmp_path / "loaded"
    call = f"touch {mark}".encode()
    text = b"cos\nsystem\n(S'" + call + b"'\ntR."
    framed = b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(call)]) + call + b"\x85R."
    assert decode_all(socket, [text, framed]) == (2, 0)
    assert not mark.exists()


@pytest.mark.parametrize(
    "array",
    [
        [[3], b"12345678"],  # too short
        [[2**40], b""],
        [[-1, -1], b"\x00" * 8],
        [[1, 1, 1], b"\x00" * 8],
        [[1.0], b"\x00" * 8],
        [[True], b"\x00" * 8],
        [[1], "12345678"],
        [1, 2],
        {"shape": [1]},
    ],
)
def test_arrays_that_are_none(array):
    def frame(prompt: Any) -> bytes:
        version, (kind, request) = msgspec.msgpack.decode(CODECS["worker"].encode(wire.Add(ADD)))
        return msgspec.msgpack.encode([version, [kind, {**request, "prompt": prompt}]])

    whole = [[1], b"\x00" * 8]
    assert decode_all("worker", [frame(whole), frame(array)]) == (1, 1)


def test_wrong_sampling_parameters_are_refused_by_name():
    asked = msgspec.to_builtins(ASKED)
    asked["sampling"]["temperature"] = -1.0
    frame = msgspec.msgpack.encode([1, ["Generate", asked, 1.0]])
    with pytest.raises(WireError, match="temperature is -1"):
        CODECS["tokenizer"].decode(frame)


@pytest.mark.parametrize("message", [wire.Tokenize(1, "\ud800", None), wire.Detokenize(1, [2**70], True),
                                     wire.Reply(1, object()), wire.Reply(1, {1j: 2})])  # fmt: skip
def test_what_can_not_be_encoded_is_a_wire_error(message):
    with pytest.raises(WireError, match="encoded"):
        Codec(wire.ToTokenizer | wire.ToClient).encode(message)


KINDS = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, ShoalError)]


@pytest.mark.parametrize("kind", KINDS)
def test_errors_keep_their_class_field_value_and_limit(kind):
    codec = CODECS["client"]
    sent = wire.Refused("r", pack_error(kind("words", field="f", value=3, limit=2.5)))
    error = unpack_error(codec.decode(codec.encode(sent)).error)
    assert (type(error), error.message, error.field, error.value, error.limit) == (kind, "words", "f", 3, 2.5)


def test_errors_with_odd_values_can_be_sent():
    codec = CODECS["client"]
    for error in (
        PoolTooSmallError("a\ud800b" * 9999, value=2**80, limit=[1, {2}]),
        RuntimeError("\ud800"),
        KeyError(1),
    ):
        again = unpack_error(codec.decode(codec.encode(wire.Refused("r", pack_error(error)))).error)
        assert isinstance(again, ShoalError)
        assert len(again.message) < 30_000


def test_an_unknown_kind_of_error_is_an_engine_error():
    assert type(unpack_error(wire.ErrorInfo("SystemExit", "words"))) is errors.EngineError
