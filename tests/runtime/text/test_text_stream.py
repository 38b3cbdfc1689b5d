"""Running text is what decoding everything gives, whatever the decoder and the pieces; stop strings end it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from shoal.runtime.pipeline.detokenizer import Detokenizer
from shoal.runtime.pipeline.messages import Output, no_output
from shoal.runtime.text.running import RunningText
from shoal.runtime.text.stream import TextStream

SPECIAL = ["<|end|>", "<|mask|>"]
PARTS = ["a", "b", "ab", " ", " b", "  ", "é", "€", "😀", "\ufffd", "\n"]
HALVES = [b"\xe2", b"\x82", b"\xac", b"\xe2\x82", b"\xaca", b"b\xf0\x9f", b"\x98\x80", b"\xc3", b"\xa9", b"\xff"]
PIECES = ["a", "b", "ab", "▁", "▁a", "▁▁", "▁b", "é", "😀", "."]
BYTES = [f"<0x{byte:02X}>" for byte in (0xE2, 0x82, 0xAC, 0x41, 0xC3, 0xA9, 0xFF)]


def tokenizer_of(words: Sequence[str], decoder: decoders.Decoder | None) -> Tokenizer:
    """One token for every word, then the special ones."""
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0]))
    made.add_special_tokens(SPECIAL)
    if decoder is not None:
        made.decoder = decoder
    return made


def byte_level(data: bytes) -> str:
    """Bytes as GPT-2's alphabet writes them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = [c for c in alphabet if ord(c) < 256]
    moved = iter(c for c in alphabet if ord(c) >= 256)
    table = {ord(c): c for c in plain} | {byte: next(moved) for byte in range(256) if chr(byte) not in plain}
    return "".join(table[byte] for byte in data)


TOKENIZERS = {
    "byte level": tokenizer_of(
        [byte_level(word) for word in [*(part.encode() for part in PARTS), *HALVES]], decoders.ByteLevel()
    ),
    "fuse": tokenizer_of(PARTS, decoders.Fuse()),
    "none": tokenizer_of(PARTS, None),
    "metaspace": tokenizer_of(PIECES, decoders.Metaspace()),
    "word piece": tokenizer_of(["a", "##b", ".", "##é", "n't", "'"], decoders.WordPiece(cleanup=True)),
    "suffix": tokenizer_of(["a", "b</w>", "é</w>", "c"], decoders.BPEDecoder()),
    "byte fallback": tokenizer_of(
        [*PIECES, *BYTES],
        decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ),
    ),
}
TAKES_BACK = {"byte fallback"}
numbers = st.lists(st.integers(0, 24), max_size=60)
pieces = st.lists(st.integers(0, 5), max_size=60)


class Bytes:
    """A tokenizer whose tokens are bytes; counts the tokens it decodes."""

    def __init__(self) -> None:
        self.decoded = 0

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        self.decoded += len(ids)
        return bytes(ids).decode(errors="replace")


def ids_of(name: str, *words: str) -> list[int]:
    """The tokens of words."""
    vocabulary = TOKENIZERS[name].get_vocab()
    return [vocabulary[word] for word in words]


def starts(ids: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Beginnings of `ids`, each so much longer than the one before; the last one is all of it."""
    cuts = [cut for cut in itertools.accumulate(lengths) if cut < len(ids)]
    return [list(ids[:cut]) for cut in [*cuts, len(ids)]]


def test_the_byte_alphabet_of_these_tests():
    data = bytes(range(256))
    assert len(set(byte_level(data))) == 256
    made = tokenizer_of([byte_level("é€😀 \n".encode())], decoders.ByteLevel())
    assert made.decode([0]) == "é€😀 \n"


@pytest.mark.parametrize("name", TOKENIZERS)
@given(chosen=numbers, lengths=pieces)
def test_running_text_is_the_whole_decode_at_every_piece(name, chosen, lengths):
    tokenizer = TOKENIZERS[name]
    ids = [number % tokenizer.get_vocab_size() for number in chosen]
    running = RunningText(tokenizer)
    for begin in starts(ids, lengths):
        text = running.extend(begin)
        assert text == tokenizer.decode(begin)
        assert tokenizer.decode(ids).startswith(text[: running.settled]) or name in TAKES_BACK


@pytest.mark.parametrize("name", TOKENIZERS)
@given(chosen=numbers, lengths=pieces)
def test_a_text_only_grows_and_ends_as_the_whole_decode(name, chosen, lengths):
    tokenizer = TOKENIZERS[name]
    ids = [number % tokenizer.get_vocab_size() for number in chosen]
    stream = TextStream(tokenizer)
    *early, last = starts(ids, lengths)
    shown = ""
    for begin in early:
        now = stream.update(begin, final=False)
        assert now.startswith(shown)
        assert not now.endswith("\ufffd")
        shown = now
    end = stream.update(last, final=True)
    assert end == tokenizer.decode(ids)
    assert end.startswith(shown) or name in TAKES_BACK


def first_stop(tokenizer: Tokenizer, ids: Sequence[int], stops: Sequence[str]) -> tuple[str, str | None, int]:
    """(text, stop string, tokens up to it), by decoding everything after every single token."""
    text = ""
    for length in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:length])
        if length < len(ids):
            text = text.rstrip("\ufffd")
        ends = [(text.index(stop) + len(stop), text.index(stop), stop) for stop in stops if stop in text]
        if ends:
            return text[: min(ends)[1]], min(ends)[2], length
    return text, None, 0


@pytest.mark.parametrize("name", sorted(TOKENIZERS.keys() - TAKES_BACK))
@given(chosen=numbers, lengths=pieces, stops=st.lists(st.text(alphabet="ab é€😀", min_size=1, max_size=4), max_size=4))
def test_a_stop_string_ends_the_text_alike_in_all_pieces(name, chosen, lengths, stops):
    tokenizer = TOKENIZERS[name]
    ids = [number % tokenizer.get_vocab_size() for number in chosen]
    stream = TextStream(tokenizer, tuple(stops))
    *early, last = starts(ids, lengths)
    shown = [stream.update(begin, final=False) for begin in early]
    shown.append(stream.update(last, final=True))
    assert (stream.text, stream.matched_stop, stream.stop_tokens) == first_stop(tokenizer, ids, stops)
    assert all(late.startswith(soon) for soon, late in itertools.pairwise(shown))


def test_the_stop_string_that_is_complete_first_counts_the_longest_of_several():
    for cuts in ([1, 2, 3], [2, 3], [3]):
        stream = TextStream(Bytes(), ("abc", "b"))
        for cut in cuts:
            stream.update(list(b"abc"[:cut]), final=cut == 3)
        assert (stream.text, stream.matched_stop, stream.stop_tokens) == ("a", "b", 2)
    stream = TextStream(Bytes(), ("c", "bc"))
    assert (stream.update(list(b"abcd"), final=True), stream.matched_stop, stream.stop_tokens) == ("a", "bc", 3)


def test_nothing_is_held_back_that_can_not_begin_a_stop_string():
    stream = TextStream(Bytes(), ("stop",))
    assert stream.update(list(b"go st"), final=False) == "go "
    assert stream.update(list(b"go sta"), final=False) == "go sta"
    assert stream.update(list(b"go stas"), final=False) == "go sta"
    assert stream.update(list(b"go stas"), final=True) == "go stas"
    assert TextStream(None).update([5, 6], final=True) == ""


@pytest.mark.parametrize("data", [b"abc " * 1000, "é€😀".encode() * 400, b"a" + b"\xe2\x82\xac" * 1000])
def test_the_work_grows_with_the_text_not_with_its_square(data):
    tokenizer = Bytes()
    stream = TextStream(tokenizer, ("stop",))
    for length in range(1, len(data)):
        stream.update(data[:length], final=False)
    assert stream.update(list(data), final=True) == data.decode()
    assert tokenizer.decoded < 24 * len(data)


def test_a_decoder_that_takes_text_back_is_asked_for_everything():
    """Bytes that are a character until a byte behind them shows that they are none."""
    tokenizer = TOKENIZERS["byte fallback"]
    ids = ids_of("byte fallback", "a", "<0x41>", "<0xFF>", "a")
    running = RunningText(tokenizer)
    assert [running.extend(ids[:length]) for length in range(1, 5)] == ["a", "aA", "a\ufffd\ufffd", "a\ufffd\ufffda"]


def test_a_token_that_gives_no_text_alone_is_no_context():
    """A blank that a decoder strips at the beginning would leave the next token at the beginning again."""
    tokenizer = TOKENIZERS["metaspace"]
    for words in (["▁a"] * 40 + ["▁", "▁", "▁a"], ["▁", "▁", "▁a"]):
        ids = ids_of("metaspace", *words)
        running = RunningText(tokenizer)
        for length in range(1, len(ids) + 1):
            assert running.extend(ids[:length]) == tokenizer.decode(ids[:length])


def test_special_tokens_without_text_are_not_decoded_again():
    tokenizer = TOKENIZERS["fuse"]
    (end,) = ids_of("fuse", SPECIAL[0])
    counting = Counting(tokenizer)
    running = RunningText(counting)
    for length in range(1, 1000):
        assert running.extend([0, 1, *[end] * length]) == "ab"
    assert counting.decoded < 4 * 1000
    assert running.extend([0, 1, *[end] * 1000, 2]) == "abab"


class Counting:
    """A tokenizer that counts the tokens it decodes."""

    def __init__(self, tokenizer: Tokenizer):
        self.decoded = 0
        self._tokenizer = tokenizer

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        self.decoded += len(ids)
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)


def piece(start: int, tokens: list[int], finish: str | None = None) -> Output:
    """Progress of request `r`."""
    return msgspec.structs.replace(no_output("r"), token_start=start, tokens=tokens, finish_reason=finish)


def test_the_detokenizer_sends_what_is_new_and_forgets_at_the_end():
    detokenizer = Detokenizer(Bytes())
    first, *rest = "€".encode()
    pieces = (piece(0, [97, first]), piece(2, rest), piece(4, [98], "length"))
    sent = [detokenizer.add_text(output) for output in pieces]
    assert [(output.text_start, output.text) for output in sent] == [(0, "a"), (1, "€"), (2, "b")]
    assert detokenizer.num_requests == 0


def test_the_detokenizer_takes_tokens_back():
    """Tokens that replace others: the text is made of what counts."""
    detokenizer = Detokenizer(Bytes())
    for output in (piece(0, [97, 98]), piece(1, [99, 100])):
        detokenizer.add_text(output)
    assert detokenizer.add_text(piece(3, [101], "length")).text == "acde"
