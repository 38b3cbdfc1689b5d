"""The tokenizer's process: turns prompts into tokens, checks every limit, forwards accepted requests."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import zmq

from ..errors import InvalidRequestError, ShoalError
from ..model.settings import load_tokenizer
from ..request.facts import Facts
from ..request.input import Conversation
from ..request.intake import Intake
from ..text.chat_markers import PLAIN, markers_error
from ..text.parts import TextPart, strings
from .backlog import Backlog
from .child import Child
from .errors import pack_error
from .inbox import Inbox, Outbox
from .long_texts import LongTexts
from .messages import (
    Abort,
    AbortAll,
    Accepted,
    Ask,
    Begin,
    Detokenize,
    Generate,
    Lookup,
    LookupSpec,
    Outputs,
    Refused,
    Reply,
    StartTrace,
    StopTrace,
    Summarize,
    ToDetokenizer,
    Tokenize,
    ToScheduler,
    ToTokenizer,
    aborted,
)  # fmt: skip

logger = logging.getLogger(__name__)
_LONG_TEXT = 65536
"""Length from which a text is tokenized in the thread for long texts: about 50 ms."""
_BACKLOG = 10_000


class TokenizerProcess:
    """All of a client's messages pass through here, so that an abort never overtakes its request.

    It reads all arrived messages before each piece of work, so that an abort takes effect at once, also on requests
    that wait here.
    """

    def __init__(self, child: Child):
        self._child = child
        self._inbox: Inbox[ToTokenizer] = child.inbox("tokenizer", ToTokenizer)
        self._scheduler: Outbox[ToScheduler] = child.outbox("scheduler", ToScheduler)
        self._detokenizer: Outbox[ToDetokenizer] = child.outbox("detokenizer", ToDetokenizer)
        self._intake: Intake | None = None
        self._backlog: Backlog[ToTokenizer] = Backlog(_BACKLOG)
        lanes = (LongTexts[Generate | Tokenize, Accepted | Refused | Reply](self._long_work) for _ in range(2))
        self._long, self._templates = lanes

    def run(self) -> None:
        """Serve until the process ends."""
        engine = self._child.spec.engine
        _do_without_torch()
        tokenizer = self._tokenizer = load_tokenizer(engine, engine.model_path)
        if tokenizer is not None:
            tokenizer.save_decoder(self._child.decoder_path)
        template = tokenizer is not None and tokenizer.has_chat_template
        markers = PLAIN.to_json()
        if tokenizer is not None:
            try:
                markers = tokenizer.chat_markers().to_json()
            except ShoalError as error:
                logger.warning("%s", error)
                markers = markers_error(error)
            tokenizer.prepare()
        self._child.ready(
            has_tokenizer=tokenizer is not None, has_chat_template=template, chat_markers=markers,
            end_ids=() if tokenizer is None else tokenizer.end_ids(),
        )  # fmt: skip
        poller = zmq.Poller()
        poller.register(self._inbox.socket, zmq.POLLIN)
        for lane in (self._long, self._templates):
            poller.register(lane.ready, zmq.POLLIN)
        while True:
            if not self._backlog:
                poller.poll()
            self._inbox.drain(self._receive, lambda: self._backlog.has_room)
            for lane in (self._long, self._templates):
                lane.take(lambda _, result: self._pass_on(result))
            if self._backlog:
                self._handle(self._backlog.next())

    def _receive(self, message: ToTokenizer) -> None:
        match message:
            case Generate():
                self._backlog.put(message, message.request.rid)
            case Abort(rid=rid):
                if self._backlog.drop(rid) or self._long.drop(rid) or self._templates.drop(rid):
                    self._child.tell(Outputs([aborted(rid)]))
                else:
                    self._scheduler.send(message)
            case AbortAll():
                rids = [*self._backlog.drop_all(), *self._long.drop_all(), *self._templates.drop_all()]
                self._child.tell(Outputs([aborted(rid) for rid in rids]))
                self._scheduler.send(AbortAll(message.number, len(rids)))
            case _:
                self._backlog.put(message)

    def _handle(self, message: ToTokenizer) -> None:
        match message:
            case Generate() | Tokenize():
                lane = self._lane(message) if self._intake is not None else None
                if lane is None:
                    self._pass_on(self._worked(message, self._ready))
                else:
                    lane.put(message, message.request.rid if isinstance(message, Generate) else None)
            case Ask() | Summarize() | StartTrace() | StopTrace():
                self._scheduler.send(message)
            case Lookup():
                self._look_up(message)
            case Detokenize():
                self._child.reply(message.number, lambda: self._detokenize(message))
            case Begin():
                self._begin(message.facts)

    def _lane(self, message: Generate | Tokenize) -> LongTexts[Generate | Tokenize, Accepted | Refused | Reply] | None:
        """The thread for slow messages: clients' templates in one, long texts and grammars in another. None: the
        message is handled here.
        """
        prompt = _prompt(message)
        if isinstance(prompt, Conversation) and prompt.template is not None:
            return self._templates
        has_grammar = isinstance(message, Generate) and message.request.sampling.structure is not None
        return self._long if has_grammar or _text_length(prompt) > _LONG_TEXT else None

    def _pass_on(self, result: Accepted | Refused | Reply) -> None:
        if isinstance(result, Accepted):
            self._scheduler.send(result)
        else:
            self._child.tell(result)

    def _long_work(self) -> Callable[[Generate | Tokenize], Accepted | Refused | Reply]:
        """The work of a thread for slow messages. It has its own tokenizer, since two threads can't share one."""
        engine, facts = self._child.spec.engine, self._facts
        intake = Intake(engine, facts, load_tokenizer(engine, engine.model_path))
        return lambda message: self._worked(message, lambda: intake)

    def _worked(self, message: Generate | Tokenize, intake: Callable[[], Intake]) -> Accepted | Refused | Reply:
        try:
            if isinstance(message, Generate):
                return _accepted(message, intake())
            return Reply(message.number, _tokens(message, intake()))
        except ShoalError as error:
            if isinstance(message, Generate):
                return Refused(message.request.rid, pack_error(error))
            return Reply(message.number, error=pack_error(error))

    def _begin(self, facts: Facts) -> None:
        self._facts = facts
        self._intake = Intake(self._child.spec.engine, facts, self._tokenizer)
        self._scheduler.send(Begin(facts))
        self._detokenizer.send(Begin(facts))

    def _look_up(self, message: Lookup) -> None:
        try:
            (spec,) = self._ready().specs([message.request])
        except ShoalError as error:
            self._child.tell(Reply(message.number, error=pack_error(error)))
        else:
            self._scheduler.send(LookupSpec(message.number, spec))

    def _detokenize(self, message: Detokenize) -> str:
        return self._ready().decode(message.token_ids, message.skip_special_tokens)

    def _ready(self) -> Intake:
        if self._intake is None:
            raise InvalidRequestError("the server is not up yet", field="status")
        return self._intake


def _prompt(message: Generate | Tokenize) -> Any:
    if isinstance(message, Generate):
        return message.request.prompt
    return message.chat or [message.text or "", *(text for text, _ in message.parts or ())]


def _text_length(prompt: Any) -> int:
    """Characters of the texts in a prompt."""
    if isinstance(prompt, Conversation):
        prompt = [prompt.messages, prompt.tools, prompt.template_kwargs]
    elif not isinstance(prompt, str) and prompt and isinstance(prompt[0], int):
        return 0
    return sum(map(len, strings(prompt)))


def _accepted(message: Generate, intake: Intake) -> Accepted:
    (spec,) = intake.specs([message.request], message.arrival)
    return Accepted(spec)


def _tokens(message: Tokenize, intake: Intake) -> list[int]:
    prompt: Any = message.text if message.text is not None else message.chat or []
    if message.parts is not None:
        prompt = [TextPart(*part) for part in message.parts]
    return intake.encode_text(prompt, message.name, message.add_special_tokens)


def _do_without_torch() -> None:
    """Keep transformers from importing torch, which tokenizers don't need and which takes seconds to load."""
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
    sys.modules["torch"] = None  # type: ignore[assignment]
