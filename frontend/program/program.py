"""`function`: a Python function as a program that runs on a backend."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ...runtime.errors import InvalidRequestError, shorten
from ...runtime.nearest_name import MISSPELT, nearest_name
from .. import driver
from ..backend import Backend
from ..backends.default import as_backend
from ..errors import ExpressionError, FrontendError
from ..language.settings import KNOWN, settings
from .batch import prefix_tokens
from .batch_run import BatchResult, BatchRun
from .player import Player
from .state import ProgramState
from .tape import Tape
from .trace import Trace, TraceStop, trace, tracing
from .usage import Usage
from .warm_up import WarmUp


class Program:
    """A function of a state `s` and arguments. Made by `function`.

    Decoding settings given to `run` and its kin (temperature, threshold, steps ...) are defaults of the program's
    calls; names that are the function's own arguments go to the function.
    """

    def __init__(self, func: Callable[..., Any], bound: dict[str, Any] | None = None):
        parameters = list(inspect.signature(func).parameters)
        if not parameters or parameters[0] != "s":
            message = f"{getattr(func, '__name__', func)}: the first argument of a program must be named s"
            raise FrontendError(message, field="function", value=parameters[:1], limit="s")
        self.func = func
        self.arg_names = parameters[1:]
        self.bound = dict(bound or {})
        self.is_async = inspect.iscoroutinefunction(func)
        self._player = Player(func, self.is_async)
        self.__name__ = getattr(func, "__name__", "program")
        self.__doc__ = func.__doc__

    def bind(self, **arguments: Any) -> Program:
        """The program with some arguments given."""
        return Program(self.func, {**self.bound, **arguments})

    # One run

    def run(
        self, *args: Any, backend: Any = None, stream: bool = False, use_thread: bool = True, **values: Any
    ) -> ProgramState:
        """Run the program; returns its state when all calls are done, with `stream` at once.

        What the function raises is raised here, and its calls are given up. A call that fails raises ProgramError where
        its result is read.
        """
        _not_in_trace()
        self._check_may_block(stream)
        arguments, chosen = self._split(args, values)
        state = self._state(as_backend(backend), chosen, stream)
        if stream:
            threading.Thread(target=self._player.play_quietly, args=(state, arguments), daemon=True).start()
            return state
        try:
            self._player.play(state, arguments)
            state._readable().error()
        except BaseException:
            state.cancel()
            raise
        return state

    __call__ = run

    def _check_may_block(self, stream: bool) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
        if driver.inside() or (self.is_async and not stream):
            message = f"{self.__name__}.run would block the event loop that it is called in: use await run_async"
            raise ExpressionError(message, field="function", limit="run_async")

    async def run_async(self, *args: Any, backend: Any = None, stream: bool = False, **values: Any) -> ProgramState:
        """As `run`, awaitable. An `async` function runs in the caller's event loop, another in a thread.

        Cancelling it ends the program: calls in flight are aborted.
        """
        _not_in_trace()
        arguments, chosen = self._split(args, values)
        state = self._state(as_backend(backend), chosen, stream)
        if stream:
            self._player.start(state, arguments)
            return state
        try:
            await self._player.play_async(state, arguments)
            await _settled(state)
        except BaseException:
            await driver.finished(state._tape.cancel())
            raise
        return state._readable()

    # Many runs

    def run_batch(
        self, batch_kwargs: Sequence[Any], *, backend: Any = None, num_threads: int | str = "auto",
        progress_bar: bool = False, generator_style: bool = False, **values: Any,
    ) -> Any:  # fmt: skip
        """Run the program for each entry (a dict of arguments, or a tuple of them); states in the same order.

        Prefixes that entries share are found by tracing, computed once, and pinned until the batch is done; entries
        that share one run next to each other. An entry that fails raises where it is read, the others are unharmed.
        With `generator_style` states are yielded, in order, as they get done; closing the generator cancels the rest.
        `num_threads` bounds how many functions that wait for results run at a time; functions that read nothing need
        no threads.
        """
        _not_in_trace()
        if driver.inside():
            message = f"{self.__name__}.run_batch would block the event loop: use await run_batch_async"
            raise ExpressionError(message, field="function", limit="run_batch_async")
        run = self._batch_run(batch_kwargs, backend, num_threads, progress_bar, values)
        return run.states() if generator_style else run.result()

    async def run_batch_async(
        self, batch_kwargs: Sequence[Any], *, backend: Any = None, num_threads: int | str = "auto",
        progress_bar: bool = False, **values: Any,
    ) -> BatchResult:  # fmt: skip
        """As `run_batch`, awaitable. Cancelling it ends all programs of the batch."""
        _not_in_trace()
        run = self._batch_run(batch_kwargs, backend, num_threads, progress_bar, values)
        pool = ThreadPoolExecutor(1, "shoal-batch")
        done = pool.submit(run.result)
        pool.shutdown(wait=False)
        try:
            await driver.finished(done)
        except BaseException:
            for cancelled in run.cancel():
                await driver.finished(cancelled)
            raise
        return done.result()

    def _batch_run(
        self, batch_kwargs: Sequence[Any], backend: Any, num_threads: int | str, progress_bar: bool,
        values: dict[str, Any],
    ) -> BatchRun:  # fmt: skip
        batch, chosen = self._batch(batch_kwargs, values)
        where = as_backend(backend)
        states = [self._state(where, chosen, False) for _ in batch]
        return BatchRun(self._player, batch, states, where, num_threads, progress_bar)

    # Tracing

    def trace(self, **arguments: Any) -> Trace:
        """How the program's text begins; arguments that are not given are left open."""
        given = {**self.bound, **arguments}
        every = {name: given.get(name) for name in self.arg_names}
        return trace(self.func, every, set(self.arg_names) - set(given))

    def cache(self, backend: Any = None, **arguments: Any) -> int:
        """Compute and cache the constant prefix of the program; returns its length in tokens."""
        chosen = as_backend(backend)

        async def warm() -> int:
            tokens = await prefix_tokens(self.trace(**arguments).prefix, chosen)
            return await WarmUp(chosen, tokens, Usage()).shared(tokens)

        return driver.run(warm())

    # Parts

    def _split(self, args: Sequence[Any], values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arguments of the function, and settings."""
        names = {name for name in values if name in KNOWN or name == "n"} - set(self.arg_names)
        if values.get("n", 1) != 1 and "n" in names:
            raise FrontendError("n is given to gen(..., n=...), not to a run", field="n", value=values["n"])
        chosen = settings({name: values[name] for name in names if name != "n"})
        arguments = {**self.bound, **{name: value for name, value in values.items() if name not in names}}
        if len(args) > len(self.arg_names):
            raise TypeError(f"{self.__name__} takes {len(self.arg_names)} arguments, {len(args)} were given")
        for name, value in zip(self.arg_names, args, strict=False):
            if name in values:
                raise TypeError(f"{self.__name__} got two values for {name!r}")
            arguments[name] = value
        try:
            inspect.signature(self.func).bind(None, **arguments)
        except TypeError:
            self._check_misspelt(arguments)
            raise
        return arguments, chosen

    def _check_misspelt(self, arguments: dict[str, Any]) -> None:
        """Raise InvalidRequestError for an argument that resembles a setting."""
        for name in set(arguments) - set(self.arg_names):
            near = nearest_name(name, KNOWN, MISSPELT)
            if near is not None:
                message = f"{self.__name__} has no argument {name!r}, nor is it a setting; did you mean {near}?"
                raise InvalidRequestError(message, field=name, value=arguments[name], limit=KNOWN)

    def _batch(self, batch: Sequence[Any], values: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        if not isinstance(batch, Sequence) or isinstance(batch, str):
            message = f"batch_kwargs is {shorten(batch)}; it must be a list of dicts, or of tuples, of arguments"
            raise FrontendError(message, field="batch_kwargs", value=batch)
        common, chosen = {}, dict(values)
        for name in [name for name in values if name in self.arg_names]:
            common[name] = chosen.pop(name)
        made = []
        for index, entry in enumerate(batch):
            try:
                args, kwargs = ((), entry) if isinstance(entry, dict) else (tuple(entry), {})
                arguments, given = self._split(args, {**common, **kwargs})
            except TypeError as error:
                message = f"batch_kwargs[{index}] is {shorten(entry)}: {error}"
                raise FrontendError(message, field="batch_kwargs", value=entry) from error
            if given:
                message = f"batch_kwargs[{index}] has settings ({', '.join(given)}); give them to run_batch"
                raise FrontendError(message, field="batch_kwargs", value=entry)
            made.append(arguments)
        return made, self._split((), {**chosen, **(made[0] if made else {})})[1] if made else {}

    def _state(self, backend: Backend, chosen: dict[str, Any], stream: bool) -> ProgramState:
        tape = Tape(backend, chosen, stream=stream)
        tape.live = stream
        return ProgramState(tape, self.is_async)


def function(func: Callable[..., Any] | None = None, **ignored: Any) -> Any:
    """Make a program of a function whose first argument is the state `s`; used as a decorator."""
    if func is None:
        return lambda inner: Program(inner)
    return Program(func)


async def _settled(state: ProgramState) -> None:
    try:
        await state.wait()
    except FrontendError:
        return


def _not_in_trace() -> None:
    """A program that another one runs, with arguments that may be open: its trace ends here, nothing is called."""
    if tracing.get():
        raise TraceStop
