"""`shoal chat`: a conversation in the terminal, with the canvas on view while it fills in."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from ..runtime.config import CACHE_MODES
from ..runtime.errors import ShoalError
from .server import ChatServer
from .view import canvas_text, cost_text, printable

HELP = """/mode NAME   cache mode of the next answers: {modes}; without a name, the current one
/system TEXT system prompt; begins a new conversation
/stats       what the server has done so far
/clear       begin a new conversation
/quit        leave (so does Ctrl-D); Ctrl-C ends an answer"""
_PER_SECOND = 20
_STATS = (
    ("requests", "num_running_reqs", "running"), ("requests", "num_waiting_reqs", "waiting"),
    ("tokens/s", "gen_throughput", "now"), ("prompt tokens", "cache_hit_rate", "share from the cache"),
    ("memory", "token_usage", "share in use"),
)  # fmt: skip


@dataclass(slots=True)
class Chat:
    """One conversation.

    Attributes:
        server: that answers.
        console: that is printed to.
        body: fields of every request besides its messages.
        system: the system prompt; "": none.
        turns: messages so far.
    """

    server: ChatServer
    console: Console
    body: dict[str, Any] = field(default_factory=dict)
    system: str = ""
    turns: list[dict[str, str]] = field(default_factory=list)
    _stop_ids: frozenset[int] = frozenset()
    _layers: int = 0

    def open(self) -> None:
        """Ask the server what it serves. Raises EngineError or InvalidRequestError."""
        info = self.server.get("/model_info")
        self._stop_ids, self._layers = frozenset(info["stop_token_ids"]), info["num_layers"]
        name = printable(info["served_model_name"])
        self.console.print(f"{name} at {self.server.url}; /help lists the commands", markup=False, highlight=False)

    def run(self, read: Callable[[], str]) -> None:
        """Take lines until `read` raises EOFError or the user leaves."""
        while True:
            try:
                line = read().strip()
            except (EOFError, KeyboardInterrupt):
                return
            try:
                if line in ("/quit", "/exit"):
                    return
                if line.startswith("/"):
                    self.command(line)
                elif line:
                    self.ask(line)
            except ShoalError as error:
                self.console.print(f"error: {printable(error.message)}", style="red", markup=False, highlight=False)

    def command(self, line: str) -> None:
        """Carry out a line that begins with a slash."""
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        match name:
            case "/mode" if not rest:
                self._say(f"cache mode {self.body.get('cache_mode', 'of the server')}")
            case "/mode" if rest in CACHE_MODES:
                self.body["cache_mode"] = rest
                self._say(f"cache mode {rest} from now on")
            case "/mode":
                self._say(f"{rest} is no cache mode; there are {', '.join(CACHE_MODES)}")
            case "/system":
                self.system = rest
                self.turns.clear()
                self._say("a new conversation")
            case "/clear":
                self.turns.clear()
                self._say("a new conversation")
            case "/stats":
                self._stats()
            case "/help":
                self._say(HELP.format(modes=", ".join(CACHE_MODES)))
            case _:
                self._say(f"{name} is no command; /help lists them")

    def ask(self, question: str) -> str:
        """Put a question, show the canvas as it fills in, then the answer; Ctrl-C ends it. Returns the text."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*system, *self.turns, {"role": "user", "content": question}]
        text, begin = "", time.monotonic()
        meta: dict[str, Any] | None = None
        usage: dict[str, Any] = {}
        try:
            with Live(console=self.console, refresh_per_second=_PER_SECOND, transient=True) as live:
                for event in self.server.ask({**self.body, "messages": messages}):
                    usage = event.get("usage") or usage
                    for choice in event["choices"]:
                        text += choice["delta"].get("content") or ""
                        meta = choice.get("meta_info") or meta
                        if "snapshot" in choice:
                            live.update(canvas_text(choice["snapshot"], self._stop_ids))
        except KeyboardInterrupt:
            self._say("(stopped)")
            return text
        self.console.print(printable(text), style="bold", markup=False, highlight=False)
        if meta is not None:
            self.console.print(cost_text(meta, usage, time.monotonic() - begin, self._layers))
        self.turns += [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
        return text

    def _stats(self) -> None:
        (load,) = self.server.get("/v1/loads")["loads"]
        table = Table(box=None, show_header=False)
        for what, name, words in _STATS:
            value = load[name]
            table.add_row(what, words, f"{value:.2f}" if isinstance(value, float) else str(value))
        self.console.print(table)

    def _say(self, words: str) -> None:
        self.console.print(words, style="dim", markup=False, highlight=False)
