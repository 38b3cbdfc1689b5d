"""A canvas with holes: from the parts of a `fill` to the template of a request, and from its reply to text."""

from __future__ import annotations

import json
from typing import Any

from ...runtime.errors import shorten
from ...runtime.text.chat_markers import ChatMarkers
from ...runtime.text.parts import TextPart
from ..backend import Backend, Call, Reply
from ..errors import ExpressionError
from ..language.expressions import Expression, Fill, Gen, RoleBegin, RoleEnd, Text
from ..language.settings import Settings, names_given, sampling_params
from ..language.trim import json_value, trim
from .tape import Tape
from .transcript import Segment

MASK = -1
_FOR_HOLES = ("max_new_tokens", "stop")


class Canvas:
    """Template of one `fill`; checked on construction (ExpressionError, InvalidRequestError).

    Fixed parts in a row are one run, encoded together; between two runs there is one hole.
    """

    def __init__(self, fill: Fill, defaults: Settings):
        self.fill = fill
        self._settings = {**defaults, **fill.own}
        self._default_stop = self._settings.pop("stop", ())
        self._settings.pop("max_new_tokens", None)
        self._check_parts()
        self.runs: list[list[Expression]] = [[]]
        for part in fill.parts:
            if isinstance(part, Gen):
                self.runs.append([])
            else:
                self.runs[-1].append(part)
        self._tokens: list[list[int]] = []
        self._texts: list[str] = []
        holes = sum(hole.own["max_new_tokens"] for hole in fill.holes)
        self._sampling(holes)  # what is wrong with the settings shows here, whatever the fixed parts' length

    def _check_parts(self) -> None:
        what = self.fill.describe()
        if not self.fill.holes:
            raise ExpressionError(f"{what} has no hole: at least one gen(...) is needed", field="parts", limit=1)
        for before, part in zip((None, *self.fill.parts), self.fill.parts, strict=False):
            if not isinstance(part, Text | Gen | RoleBegin | RoleEnd):
                message = f"{part.describe()} can't stand in {what}: text, gen(...) and roles can"
                raise ExpressionError(message, field="parts", value=part.describe())
            if isinstance(part, Gen):
                self._check_hole(part)
                if isinstance(before, Gen):
                    message = f"{before.describe()} and {part.describe()} need fixed text between them"
                    raise ExpressionError(message, field="parts", value=part.name)

    @staticmethod
    def _check_hole(hole: Gen) -> None:
        length = hole.own.get("max_new_tokens")
        if not isinstance(length, int) or isinstance(length, bool) or length < 1:
            message = f"{hole.describe()} is a hole: its max_tokens is {shorten(length)}; it must be at least 1"
            raise ExpressionError(message, field="max_tokens", value=length, limit=1)
        other = [name for name in hole.own if name not in _FOR_HOLES]
        if other or hole.n != 1:
            names = ", ".join(other or ["n"])
            message = f"{hole.describe()} is a hole: {names} can't be set for one hole; give settings to fill itself"
            raise ExpressionError(message, field=names, limit=_FOR_HOLES)

    @property
    def has_roles(self) -> bool:
        """Whether role markers are among the fixed parts."""
        return any(isinstance(part, RoleBegin | RoleEnd) for part in self.fill.parts)

    def _sampling(self, length: int) -> Any:
        own = {"block_length": length, **self._settings, "max_new_tokens": length}
        return sampling_params({}, own)

    async def encode(self, backend: Backend, markers: ChatMarkers | None, in_message: bool) -> None:
        """Find the tokens of the fixed runs; `in_message`: the canvas begins inside a message."""
        for run in self.runs:
            parts = []
            for part in run:
                in_message = isinstance(part, RoleBegin) or (in_message and isinstance(part, Text))
                parts.append(TextPart(_literal(part, markers), in_message and isinstance(part, Text)))
            parts = [part for part in parts if part.text]
            self._texts.append("".join(part.text for part in parts))
            self._tokens.append(await backend.encode(parts, False) if parts else [])

    def call(self, tokens: tuple[int, ...], shared_prefix: int, defaults: Settings) -> Call:
        """The request. Its blocks are as long as the canvas unless the settings say otherwise."""
        template = list(self._tokens[0])
        for hole, fixed in zip(self.fill.holes, self._tokens[1:], strict=True):
            template += [MASK] * hole.own["max_new_tokens"] + fixed
        given = names_given(defaults, self.fill.own, {"block_length": None, "max_new_tokens": None})
        return Call(tokens, self._sampling(len(template)), given, tuple(template), shared_prefix)

    async def write(self, tape: Tape, reply: Reply) -> None:
        """Append the filled canvas to the transcript and set the variables."""
        whole = [self._texts[0]]
        self._fixed(tape, 0)
        for index, (hole, filled) in enumerate(zip(self.fill.holes, reply.holes, strict=True)):
            raw = _until(filled.text, hole.own.get("stop", self._default_stop))
            if self.fill.as_json:
                value, text = json_value(raw, hole.dtype)
            else:
                text, _ = trim(raw, hole.dtype)
                value = text
            ids = filled.token_ids if text == filled.text else await tape.backend.encode([TextPart(text, True)], False)
            tape.transcript.append(Segment(text, tuple(ids)))
            tape.log.add(text, hole.name, reply.meta)
            tape.settle(hole.name, value, reply.meta)
            whole += [text, self._texts[index + 1]]
            self._fixed(tape, index + 1)
        if self.fill.name:
            text = "".join(whole)
            tape.settle(self.fill.name, json.loads(text) if self.fill.as_json else text, reply.meta)

    def _fixed(self, tape: Tape, index: int) -> None:
        """Append a fixed run as one segment; messages that begin or end in it are noted."""
        transcript, text = tape.transcript, self._texts[index]
        if text:
            transcript.segments.append(Segment(text, tuple(self._tokens[index])))
            tape.log.add(text)
        for part in self.runs[index]:
            if isinstance(part, Text):
                transcript.role_text += part.text
            elif isinstance(part, RoleBegin):
                transcript.role, transcript.role_text = part.role, ""
            elif isinstance(part, RoleEnd):
                transcript.messages.append({"role": part.role, "content": transcript.role_text})
                transcript.role, transcript.role_text = None, ""


def _literal(part: Expression, markers: ChatMarkers | None) -> str:
    if isinstance(part, Text):
        return part.text
    assert markers is not None
    if isinstance(part, RoleBegin):
        return markers.of(part.role, False)[0]
    assert isinstance(part, RoleEnd)
    return markers.of(part.role, False)[1]


def _until(text: str, stop: Any) -> str:
    """The text before the first of the stop strings in it."""
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    return text[: min((text.index(one) for one in stops if one in text), default=len(text))]
