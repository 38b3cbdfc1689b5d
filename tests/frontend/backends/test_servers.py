"""Programs on servers that are not there, refuse, or die."""

from __future__ import annotations

import os
import signal
import socket

import pytest

import shoal as sgl
from shoal.frontend.errors import ServerError

from ...runtime.http.process import ServerProcess, wait_idle


@sgl.function
def ask(s, text, tokens=16):
    s += text + sgl.gen("x", max_tokens=tokens, steps=tokens, block_length=8, ignore_eos=True)


def test_no_server():
    with socket.socket() as taken:  # bound, but it does not listen: nobody else can answer there
        taken.bind(("127.0.0.1", 0))
        state = ask.run("red", backend=f"http://127.0.0.1:{taken.getsockname()[1]}")
    with pytest.raises(sgl.ProgramError, match="can't be reached") as caught:
        state["x"]
    assert isinstance(caught.value.__cause__, ServerError)


def test_a_servers_refusal_names_the_field(server):
    with pytest.raises(sgl.ProgramError, match=r"answered 400: .*max_new_tokens"):
        ask.run("red", 9992, backend=server.url)["x"]


def test_a_cancelled_program_leaves_nothing_running_on_the_server(server):
    """512 forwards, of which the first few give all the text."""
    prompt = "<|system|>Prices:\n red apple 42<|end|><|user|>How much is the red apple?<|end|><|assistant|>"
    state = ask.run(prompt, 512, backend=server.url, stream=True)
    assert next(state.text_iter("x"))
    state.cancel()
    with pytest.raises(sgl.ProgramError, match="was cancelled"):
        state["x"]
    with server.client() as client:
        wait_idle(client)


def test_a_server_dies_in_the_middle_of_a_batch(tmp_path):
    """Items that were finished keep their results, the rest raise; nothing hangs."""
    process = ServerProcess(tmp_path / "server.log", "--max-running-requests", "16")
    process.wait_ready()
    try:
        # All run at once, a step of each in every forward. The first is done after 8 forwards, the others take 256.
        batch = [{"text": f"red {i}", "tokens": 8 if i == 0 else 256} for i in range(10)]
        run = ask.run_batch(batch, backend=process.url, generator_style=True)
        states = [next(run)]
        os.kill(process.process.pid, signal.SIGKILL)
        states += list(run)
    finally:
        process.process.kill()
        process.process.wait()
    assert len(states) == 10
    errors = [state.error() for state in states]
    assert errors[0] is None
    assert isinstance(states[0]["x"], str)
    assert all(isinstance(error, sgl.ProgramError) and isinstance(error.__cause__, ServerError) for error in errors[1:])
