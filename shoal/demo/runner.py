"""Runs the demo's workload: every cache mode list by list, then depth by depth."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from typing import Any

from ..frontend import ProgramState, assistant, function, gen, system, user
from ..runtime.config import CACHE_MODES
from ..runtime.engine.engine import Engine
from ..runtime.errors import ConfigError, shorten
from ..runtime.request.sampling_params import SamplingParams
from .progress import Advance
from .tally import Answer, Tally
from .workload import Asked, Workload, make_workload

MODEL = "shop"
SAMPLING = SamplingParams(max_new_tokens=32, block_length=8, steps=16)
_SETTINGS = {name: getattr(SAMPLING, name) for name in ("max_new_tokens", "block_length", "steps")}
_WARM_UP = make_workload(0, [8], 2)


@function
def ask(s: Any, prices: str, turns: Sequence[tuple[str, str]], question: str) -> None:
    """Ask one question about a price list, after earlier turns."""
    s += system(prices)
    for asked, answered in turns:
        s += user(asked) + assistant(answered)
    s += user(question)
    s += assistant(gen("answer"))


@dataclass(frozen=True, slots=True)
class Runs:
    """Tallies by name; the cache and the depth profile of mode `bicache` (without it, of the last engine).

    `decode` turns tokens of the cache into text.
    """

    tallies: dict[str, Tally]
    snapshot: dict[str, Any]
    profile_source: str
    decode: Callable[[Sequence[int]], str]


def check_modes(modes: Sequence[str]) -> None:
    """Raise ConfigError unless `modes` are different cache modes, at least one."""
    limit = ", ".join(CACHE_MODES)
    for mode in modes:
        if mode not in CACHE_MODES:
            message = f"modes has {shorten(mode)}; known modes: {limit}"
            raise ConfigError(message, field="modes", value=mode, limit=limit)
    if not modes or len(set(modes)) < len(modes):
        message = f"modes is {list(modes)}; it must name different modes, at least one"
        raise ConfigError(message, field="modes", value=list(modes), limit=limit)


def run_modes(workload: Workload, modes: Sequence[str], advance: Advance) -> Runs:
    """Ask everything in every mode, each with an engine of its own that starts cold."""
    check_modes(modes)
    return _run(workload, {mode: {"cache_mode": mode} for mode in modes}, advance)


def run_depths(workload: Workload, depths: Sequence[int], advance: Advance) -> dict[int, Tally]:
    """Ask everything in mode `bicache` with a constant depth; at depth 0 that is what mode `dual` does."""
    runs = _run(workload, {str(depth): {"cache_mode": "bicache", "depth": depth} for depth in depths}, advance)
    return {int(name): tally for name, tally in runs.tallies.items()}


def _run(workload: Workload, options: Mapping[str, dict[str, Any]], advance: Advance) -> Runs:
    """All engines answer about a list before any sees the next one, so that a slow spell of the machine affects all
    alike. Seconds are summed for each engine over its own batches.
    """
    with ExitStack() as stack:
        engines: dict[str, Engine] = {}
        tallies: dict[str, Tally] = {}
        for part in workload.lists:
            for name, chosen in reversed(list(options.items())):  # the fast ones stand last: first results come soon
                if name not in engines:
                    engines[name] = stack.enter_context(Engine(MODEL, **chosen))
                    _warm_up(engines[name])
                    tallies[name] = Tally(engines[name].model_config.num_layers)
                for batch in part.rounds:
                    _ask(tallies[name], engines[name], batch)
                    advance(name, len(batch), tallies[name])
        for engine in engines.values():
            engine.check()
        profiled = engines["bicache" if "bicache" in engines else list(options)[-1]]
        return Runs(
            {name: tallies[name] for name in options},
            profiled.cache_snapshot(),
            profiled.depth_profile.source,
            _decoder(profiled),
        )


def _ask(tally: Tally, engine: Engine, batch: Sequence[Asked]) -> None:
    """Ask a batch; add its answers, wall time and CPU time to the tally."""
    entries = [{"prices": a.prices, "turns": a.turns, "question": a.question.text} for a in batch]
    wall, cpu = time.perf_counter(), time.process_time()
    states = ask.run_batch(entries, backend=engine, **_SETTINGS)
    seconds = time.perf_counter() - wall, time.process_time() - cpu
    answers = [Answer(text=state["answer"], **_figures(state)) for state in states]
    warm_up = states.usage.token_layers_computed - sum(answer.computed_token_layers for answer in answers)
    tally.add(batch, answers, *seconds, warm_up)


def _figures(state: ProgramState) -> dict[str, int]:
    meta = state.get_meta_info("answer")
    return {field.name: meta[field.name] for field in fields(Answer) if field.name != "text"}


def _warm_up(engine: Engine) -> None:
    """Run a short unrelated list, so that no mode pays for first uses, and forget it."""
    for part in _WARM_UP.lists:
        _ask(Tally(1), engine, part.rounds[0])
    engine.flush_cache()


def _decoder(engine: Engine) -> Callable[[Sequence[int]], str]:
    tokenizer = engine.tokenizer
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=False)
