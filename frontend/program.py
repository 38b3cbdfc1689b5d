"""`function`: a Python function as a program that runs on a backend."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ..runtime.errors import shorten
from . import driver
from .backend import Backend
from .batch import SharedPrefixes, plan, prefix_tokens
from .default_backend import as_backend
from .errors import FrontendError
from .settings import NEUTRAL, OWN, settings
from .state import ProgramState
from .tape import Tape
from .trace import Trace, trace
from .usage import Usage
from .warm_up import WarmUp

_THREADS = 64


class BatchResult(list[ProgramState]):
    """States of a batch, in the order of its arguments. `usage` sums up all of them and the warm-ups."""

    def __init__(self, states: Sequence[ProgramState], usage: Usage):
        super().__init__(states)
        self._warm_ups = usage

    @property
    def usage(self) -> Usage:
        """What the batch cost."""
        return Usage.total([self._warm_ups, *(state.usage for state in self)])


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

        What the function raises is raised here. A call that fails raises ProgramError where its result is read.
        """
        arguments, chosen = self._split(args, values)
        state = self._state(as_backend(backend), chosen, stream)
        if stream:
            state._tape.player = 0
            threading.Thread(target=self._play_noting, args=(state, arguments), daemon=True).start()
            return state
        self._play(state, arguments)
        _readable(state).error()
        return state

    __call__ = run

    async def run_async(self, *args: Any, backend: Any = None, stream: bool = False, **values: Any) -> ProgramState:
        """As `run`, awaitable. An `async` function runs in the caller's event loop, another in a thread."""
        arguments, chosen = self._split(args, values)
        state = self._state(as_backend(backend), chosen, stream)
        if stream:
            state._task = asyncio.ensure_future(self._play_async_noting(state, arguments))  # type: ignore[attr-defined]
            return state
        await self._play_async(state, arguments)
        await _settled(state)
        return _readable(state)

    # Many runs

    def run_batch(
        self, batch_kwargs: Sequence[Any], *, backend: Any = None, num_threads: int | str = "auto",
        progress_bar: bool = False, generator_style: bool = False, **values: Any,
    ) -> Any:  # fmt: skip
        """Run the program for each entry (a dict of arguments, or a tuple of them); states in the same order.

        Prefixes that entries share are found by tracing, computed once, and pinned until the batch is done; entries
        that share one run next to each other. An entry that fails raises where it is read, the others are unharmed.
        With `generator_style` states are yielded, in order, as they get done. `num_threads` bounds how many functions
        that wait for results run at a time; functions that read nothing need no threads.
        """
        batch, chosen = self._batch(batch_kwargs, values)
        run = self._run_batch(batch, chosen, as_backend(backend), num_threads, progress_bar)
        if generator_style:
            return run
        usage = Usage()
        states: list[ProgramState] = []
        while True:
            try:
                states.append(next(run))
            except StopIteration as end:
                usage = end.value or usage
                return BatchResult(states, usage)

    def _run_batch(
        self, batch: list[dict[str, Any]], chosen: dict[str, Any], backend: Backend, num_threads: int | str,
        progress_bar: bool,
    ) -> Generator[ProgramState, None, Usage]:  # fmt: skip
        usage = Usage()
        if not batch:
            return usage
        states = [self._state(backend, chosen, False) for _ in batch]
        group = plan(self.func, batch) if not self.is_async else None
        shared = SharedPrefixes(backend, usage)
        order = list(range(len(batch)))
        if group is not None:
            order = group.order()
            _quietly(driver.submit(shared.find(group)))
            for index, warm_up in shared.of.items():
                states[index]._tape.warm_up = warm_up
        played: dict[int, Future[Any]] = {}
        threads = _threads(num_threads, len(batch))
        straight = group is not None and _straight(group)
        pool = None if straight or self.is_async else ThreadPoolExecutor(threads, "shoal-program")
        try:
            for index in order:
                if pool is not None:
                    played[index] = pool.submit(self._play_noting, states[index], batch[index])
                elif self.is_async:
                    played[index] = driver.submit(self._play_async_noting(states[index], batch[index]))
                else:
                    self._play_noting(states[index], batch[index])
            for index in _progress(range(len(batch)), progress_bar):
                if index in played:
                    played[index].result()
                _readable(states[index]).error()
                yield states[index]
        finally:
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)
            shared.release()
        return usage

    async def run_batch_async(self, batch_kwargs: Sequence[Any], *, backend: Any = None, **values: Any) -> BatchResult:
        """As `run_batch`, awaitable."""
        return await asyncio.to_thread(self.run_batch, batch_kwargs, backend=backend, **values)

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

        return driver.submit(warm()).result()

    # Parts

    def _split(self, args: Sequence[Any], values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arguments of the function, and settings."""
        names = {name for name in values if (name in OWN or name in NEUTRAL or name == "n")} - set(self.arg_names)
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
        inspect.signature(self.func).bind(None, **arguments)
        return arguments, chosen

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
        return ProgramState(Tape(backend, chosen, stream=stream), self.is_async)

    def _play(self, state: ProgramState, arguments: dict[str, Any]) -> None:
        """Run the function; what it raises goes through."""
        try:
            if self.is_async:
                asyncio.run(self.func(state, **arguments))
            else:
                self.func(state, **arguments)
        finally:
            state._tape.end()

    def _play_noting(self, state: ProgramState, arguments: dict[str, Any]) -> None:
        """Run the function; what it raises is kept in the state."""
        if state._tape.stream:
            state._tape.player = threading.get_ident()
        try:
            self._play(state, arguments)
        except Exception as error:
            state._fail(error)

    async def _play_async(self, state: ProgramState, arguments: dict[str, Any]) -> None:
        try:
            if self.is_async:
                await self.func(state, **arguments)
            else:
                await asyncio.to_thread(self.func, state, **arguments)
        finally:
            state._tape.end()

    async def _play_async_noting(self, state: ProgramState, arguments: dict[str, Any]) -> None:
        try:
            await self._play_async(state, arguments)
        except Exception as error:
            state._fail(error)


def function(func: Callable[..., Any] | None = None, **ignored: Any) -> Any:
    """Make a program of a function whose first argument is the state `s`; used as a decorator."""
    if func is None:
        return lambda inner: Program(inner)
    return Program(func)


def _readable(state: ProgramState) -> ProgramState:
    """All calls are done: reading can't block any more, also where an async function made the state."""
    state._async = False
    return state


async def _settled(state: ProgramState) -> None:
    try:
        await state.wait()
    except FrontendError:
        return


def _straight(group: Any) -> bool:
    return group.straight and all(_straight(inner) for inner in group.groups)


def _threads(num_threads: int | str, items: int) -> int:
    if num_threads == "auto":
        return min(_THREADS, items)
    if not isinstance(num_threads, int) or isinstance(num_threads, bool) or num_threads < 1:
        message = f"num_threads is {shorten(num_threads)}; it must be at least 1, or 'auto'"
        raise FrontendError(message, field="num_threads", value=num_threads, limit=1)
    return num_threads


def _quietly(future: Future[Any]) -> None:
    """Wait; a failure will show where a call meets it."""
    try:
        future.result()
    except FrontendError:
        return


def _progress(indices: range, shown: bool) -> Iterator[int]:
    if not shown:
        return iter(indices)
    from tqdm import tqdm

    return iter(tqdm(indices))
