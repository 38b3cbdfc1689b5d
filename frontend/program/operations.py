"""What the expressions of a program do when their turn comes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from ...runtime.request.sampling_params import SamplingParams
from ...runtime.text.parts import TextPart
from ..backend import Call, Reply
from ..errors import ExpressionError, Location, ProgramError
from ..language.expressions import Expression, Fill, Gen, RoleBegin, RoleEnd, Select, Text, names_of
from ..language.settings import names_given, sampling_params
from ..language.trim import trim
from .canvas import Canvas
from .tape import Tape
from .transcript import Segment


class Nothing:
    """An operation that sets no variables and that nothing waits for."""

    location: Location

    @property
    def names(self) -> Sequence[str]:
        """See Operation."""
        return ()

    def fail(self, tape: Tape, error: ProgramError) -> None:
        """See Operation."""


@dataclass(slots=True)
class Append(Nothing):
    """Carry out an expression."""

    expression: Expression
    location: Location
    params: SamplingParams | None = None
    given: tuple[str, ...] = ()
    canvas: Canvas | None = None

    @classmethod
    def of(cls, expression: Expression, location: Location, tape: Tape) -> Append:
        """Check an expression as far as possible, so that mistakes show at the line that makes them."""
        made = cls(expression, location)
        if isinstance(expression, Gen):
            made.params = sampling_params(tape.defaults, expression.own)
            made.given = names_given(tape.defaults, expression.own)
        elif isinstance(expression, Fill):
            made.canvas = Canvas(expression, tape.defaults)
        return made

    @property
    def names(self) -> Sequence[str]:
        """See Operation."""
        return names_of(self.expression)

    def describe(self) -> str:
        """See Operation."""
        return self.expression.describe()

    async def run(self, tape: Tape) -> None:
        """See Operation."""
        expression, transcript = self.expression, tape.transcript
        if isinstance(expression, Text):
            transcript.literal(expression.text)
            tape.log.add(expression.text)
        elif isinstance(expression, RoleBegin | RoleEnd):
            tape.log.add(await role(tape, expression))
        elif isinstance(expression, Gen):
            await self._generate(tape, expression)
        elif isinstance(expression, Select):
            await self._select(tape, expression)
        elif self.canvas is not None:
            await self._fill(tape, self.canvas)
        else:
            raise ExpressionError(f"{expression.describe()} can't be appended", field="expression")

    async def _prompt(self, tape: Tape) -> tuple[tuple[int, ...], int]:
        await tape.transcript.flush(tape.backend)
        tokens = tape.transcript.tokens
        if not tokens:
            message = f"{self.describe()} has nothing before it: append text first"
            raise ExpressionError(message, field="expression", limit="at least one token of prompt")
        return tokens, await tape.shared_prefix(tokens)

    async def _generate(self, tape: Tape, gen: Gen) -> None:
        tokens, shared = await self._prompt(tape)
        assert self.params is not None
        call = Call(tokens, self.params, self.given, shared_prefix=shared)
        if gen.n == 1:
            replies = [await _streamed(tape, call, gen.name) if tape.stream else await tape.backend.generate(call)]
        else:
            calls = (tape.backend.generate(_seeded(call, index)) for index in range(gen.n))
            replies = list(await asyncio.gather(*calls))
        texts = []
        for index, reply in enumerate(replies):
            tape.usage.add(reply.meta, calls=1)
            text, whole = trim(reply.text, gen.dtype)
            texts.append(text)
            if index == 0:
                matched = isinstance(reply.meta["finish_reason"].get("matched"), str)
                ids = reply.token_ids if whole and not matched else await _data(tape, text)
                tape.transcript.append(Segment(text, tuple(ids)))
                if not tape.stream:
                    tape.log.add(text, gen.name, reply.meta)
        metas = [reply.meta for reply in replies]
        tape.settle(gen.name, texts[0] if gen.n == 1 else texts, metas[0] if gen.n == 1 else metas)

    async def _select(self, tape: Tape, select: Select) -> None:
        tokens, shared = await self._prompt(tape)
        choices = [await _data(tape, choice) for choice in select.choices]
        decision = await select.method.decide(tape.backend, tokens, choices, shared)
        tape.usage.add(decision.usage, calls=1)
        text = select.choices[decision.index]
        tape.transcript.append(Segment(text, tuple(choices[decision.index])))
        meta = {"choices": list(select.choices), "method": select.method.name, **decision.meta}
        tape.log.add(text, select.name, meta)
        tape.settle(select.name, text, meta)

    async def _fill(self, tape: Tape, canvas: Canvas) -> None:
        tokens, shared = await self._prompt(tape)
        markers = await tape.backend.markers() if canvas.has_roles else None
        await canvas.encode(tape.backend, markers, tape.transcript.role is not None)
        reply = await tape.backend.generate(canvas.call(tokens, shared, tape.defaults))
        tape.usage.add(reply.meta, calls=1)
        await canvas.write(tape, reply)

    def fail(self, tape: Tape, error: ProgramError) -> None:
        """See Operation."""


async def _data(tape: Tape, text: str) -> list[int]:
    """Token ids of an answer: it holds no special token, whatever it spells."""
    return await tape.backend.encode([TextPart(text, True)], False)


def _seeded(call: Call, index: int) -> Call:
    """The call of the index-th of n answers: another seed, if one is given at all."""
    seed = call.sampling.seed
    if seed is None or not index:
        return call
    values = {name: getattr(call.sampling, name) for name in SamplingParams.__dataclass_fields__}
    sampling = SamplingParams(**{**values, "seed": seed + index})
    return Call(call.tokens, sampling, call.given, call.canvas, call.shared_prefix)


async def _streamed(tape: Tape, call: Call, name: str | None) -> Reply:
    shown = ""
    reply: Reply | None = None
    async for reply in tape.backend.stream(call):
        tape.log.add(reply.text[len(shown) :], name, reply.meta)
        shown = reply.text
    assert reply is not None
    return reply


async def role(tape: Tape, expression: RoleBegin | RoleEnd) -> str:
    """Begin or end a message; the text around it."""
    transcript = tape.transcript
    markers = await tape.backend.markers()
    before, after = markers.of(expression.role, transcript.empty)
    if isinstance(expression, RoleBegin):
        if transcript.role is not None:
            message = f"{expression.describe()} inside a {transcript.role} message: end that one first"
            raise ExpressionError(message, field="role", value=expression.role)
        transcript.begin(expression.role, before)
        return before
    if transcript.role != expression.role:
        inside = f"a {transcript.role} message" if transcript.role else "no message"
        raise ExpressionError(f"{expression.describe()} inside {inside}", field="role", value=expression.role)
    transcript.end(after)
    return after


@dataclass(slots=True)
class Read(Nothing):
    """Something about the transcript once everything before is done; the future gets it, or the tape's error."""

    location: Location
    what: str
    done: Future[Any]

    def describe(self) -> str:
        """See Operation."""
        return self.what

    async def run(self, tape: Tape) -> None:
        """See Operation."""
        transcript = tape.transcript
        if self.what == "tokens":
            await transcript.flush(tape.backend)
        values = {"text": transcript.text, "messages": transcript.messages, "tokens": transcript.tokens}
        value = values.get(self.what)
        self.done.set_result(list(value) if isinstance(value, list) else value)

    def fail(self, tape: Tape, error: ProgramError) -> None:
        """See Operation."""
        if not self.done.done():
            self.done.set_exception(error)


@dataclass(slots=True)
class Scope:
    """Begin or end of a variable that holds all text between."""

    name: str
    begin: list[int]
    location: Location
    names: tuple[str, ...] = ()

    def describe(self) -> str:
        """See Operation."""
        return f"var_scope({self.name!r})"

    async def run(self, tape: Tape) -> None:
        """See Operation."""
        if not self.names:
            self.begin.append(len(tape.transcript.text))
        else:
            tape.settle(self.name, tape.transcript.text[self.begin[0] :])

    def fail(self, tape: Tape, error: ProgramError) -> None:
        """See Operation."""
