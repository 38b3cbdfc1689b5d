"""Outputs as pieces and back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.runtime.request.output import RequestOutput, Timings, TokenLogprob
from shoal.serve_ray.wire import Pieces, Whole

LOGPROBS = st.one_of(st.none(), st.builds(TokenLogprob, st.integers(0, 9), st.just(-1.0), st.just(1)))
PARTS = st.tuples(st.text("ab", max_size=6), st.lists(st.integers(0, 3), max_size=6), st.lists(LOGPROBS, max_size=4))


def output(text, tokens, logprobs) -> RequestOutput:
    return RequestOutput(
        "r", text, tuple(tokens), None, None, None, prompt_tokens=3, completion_tokens=len(tokens), cached_tokens=0,
        depth=0, canvas_tokens=0, nfe=1, reused_token_layers=0, computed_token_layers=0, prefix_refreshes=0,
        timings=Timings(0.0, None, 0.0), logprobs=tuple(logprobs),
    )  # fmt: skip


@given(st.lists(PARTS, max_size=8))
def test_pieces_make_the_outputs_again_whatever_changes_between_them(parts):
    pieces, whole = Pieces(), Whole()
    outputs = [output(*one) for one in parts]
    assert [whole.of(pieces.of(one)) for one in outputs] == outputs


def test_an_answer_that_grows_is_sent_once():
    pieces, text, tokens = Pieces(), "", list[int]()
    sent = []
    for number in range(10):
        text, tokens = text + "word ", [*tokens, number]
        sent.append(pieces.of(output(text, tokens, [])))
    assert [piece.output.text for piece in sent] == ["word "] * 10
    assert [piece.output.token_ids for piece in sent] == [(number,) for number in range(10)]
