"""Running one program for many arguments."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ...runtime.errors import shorten
from .. import driver
from ..backend import Backend
from ..errors import FrontendError
from .batch import Group, SharedPrefixes, plan
from .player import Player
from .state import ProgramState
from .usage import Usage

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


class BatchRun:
    """One batch: its states, and how they come to be done.

    Args:
        player: runs the program for an entry.
        batch: arguments of each entry.
        states: the state of each.
        num_threads: how many functions that wait for results run at a time, or "auto".
        progress_bar: shows one.
    """

    def __init__(
        self, player: Player, batch: Sequence[dict[str, Any]], states: Sequence[ProgramState], backend: Backend,
        num_threads: int | str, progress_bar: bool,
    ):  # fmt: skip
        self._player = player
        self._batch = batch
        self._states = list(states)
        self._backend = backend
        self._threads = _threads(num_threads, len(batch))
        self._progress_bar = progress_bar
        self._usage = Usage()

    def result(self) -> BatchResult:
        """All states, when all are done."""
        for _ in self.states():
            pass
        return BatchResult(self._states, self._usage)

    def cancel(self) -> list[Future[None]]:
        """End what is not done; from any thread. The futures are done when that has happened."""
        return [state._tape.cancel() for state in self._states]

    def states(self) -> Generator[ProgramState, None, None]:
        """States in order as they get done. Closing it before the last cancels the rest."""
        player, states = self._player, self._states
        if not self._batch:
            return
        group = None if player.is_async else plan(player.func, self._batch)
        shared = SharedPrefixes(self._backend, self._usage)
        order = list(range(len(self._batch)))
        if group is not None:
            order = group.order()
            _quietly(driver.submit(shared.find(group)))
            for index, warm_up in shared.of.items():
                states[index]._tape.warm_up = warm_up
        played: dict[int, Future[Any]] = {}
        straight = group is not None and _straight(group)
        pool = None if straight or player.is_async else ThreadPoolExecutor(self._threads, "shoal-program")
        try:
            for index in order:
                arguments = self._batch[index]
                if pool is not None:
                    played[index] = pool.submit(player.play_quietly, states[index], arguments)
                elif player.is_async:
                    played[index] = driver.submit(player.play_async_quietly(states[index], arguments))
                else:
                    player.play_quietly(states[index], arguments)
            for index in _progress(range(len(states)), self._progress_bar):
                if index in played:
                    played[index].result()
                states[index]._readable().error()
                yield states[index]
        except BaseException:  # also GeneratorExit: the rest is not wanted
            cancelled = self.cancel()
            for future in played.values():
                future.cancel()
            if not driver.inside():
                for done in cancelled:
                    done.result()
            raise
        finally:
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)
            shared.release()


def _straight(group: Group) -> bool:
    return group.straight and all(_straight(inner) for inner in group.groups)


def _threads(num_threads: int | str, items: int) -> int:
    if num_threads == "auto":
        return min(_THREADS, max(1, items))
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
