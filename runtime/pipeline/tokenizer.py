"""The tokenizer's process: turns prompts into tokens, checks every limit, passes on what it accepts."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from ..errors import InvalidRequestError, ShoalError
from ..model.settings import load_tokenizer
from ..request.facts import Facts
from ..request.intake import Intake
from ..text.chat_markers import PLAIN, markers_error
from ..text.parts import TextPart
from .child import Child
from .errors import pack_error
from .inbox import Inbox, Outbox
from .messages import (
    Abort,
    Accepted,
    Ask,
    Begin,
    Detokenize,
    Generate,
    Refused,
    StartTrace,
    StopTrace,
    ToDetokenizer,
    Tokenize,
    ToScheduler,
    ToTokenizer,
)  # fmt: skip

logger = logging.getLogger(__name__)


class TokenizerProcess:
    """All that a client asks for comes through here, so that an abort never overtakes its request."""

    def __init__(self, child: Child):
        self._child = child
        self._inbox: Inbox[ToTokenizer] = child.inbox("tokenizer", ToTokenizer)
        self._scheduler: Outbox[ToScheduler] = child.outbox("scheduler", ToScheduler)
        self._detokenizer: Outbox[ToDetokenizer] = child.outbox("detokenizer", ToDetokenizer)
        self._intake: Intake | None = None

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
        self._child.ready(has_tokenizer=tokenizer is not None, has_chat_template=template, chat_markers=markers)
        while True:
            self._handle(self._inbox.receive())

    def _handle(self, message: ToTokenizer) -> None:
        match message:
            case Generate():
                self._generate(message)
            case Abort() | Ask() | StartTrace() | StopTrace():
                self._scheduler.send(message)
            case Tokenize():
                self._child.reply(message.number, lambda: self._tokenize(message))
            case Detokenize():
                self._child.reply(message.number, lambda: self._detokenize(message))
            case Begin():
                self._begin(message.facts)

    def _begin(self, facts: Facts) -> None:
        self._intake = Intake(self._child.spec.engine, facts, self._tokenizer)
        self._scheduler.send(Begin(facts))
        self._detokenizer.send(Begin(facts))

    def _generate(self, message: Generate) -> None:
        try:
            self._scheduler.send(self._accept(message))
        except ShoalError as error:
            self._child.tell(Refused(message.rid, pack_error(error)))

    def _accept(self, message: Generate) -> Accepted:
        given: list[Any] = [p for p in (message.text, message.token_ids, message.messages) if p is not None]
        if len(given) != 1:
            raise InvalidRequestError("give exactly one of text, token ids and messages", field="prompt")
        (request,) = self._ready().requests(
            given, message.sampling, message.cache_mode, message.cache_salt,
            None if message.canvas is None else [message.canvas], message.shared_prefix,
            None if message.targets is None else [message.targets], message.names,
        )  # fmt: skip
        return Accepted(
            message.rid, request.prompt.tobytes(), request.sampling, request.cache_mode, request.cache_salt,
            request.block_length, request.seed, message.priority, message.timeout_s, message.stream, message.arrival,
            None if request.template is None else request.template.tobytes(), request.shared_prefix,
            None if request.targets is None else request.targets.tobytes(),
        )  # fmt: skip

    def _tokenize(self, message: Tokenize) -> list[int]:
        prompt: Any = message.text if message.text is not None else message.messages or []
        if message.parts is not None:
            prompt = [TextPart(*part) for part in message.parts]
        return self._ready().encode_text(prompt, message.name, message.add_special_tokens)

    def _detokenize(self, message: Detokenize) -> str:
        return self._ready().decode(message.token_ids, message.skip_special_tokens)

    def _ready(self) -> Intake:
        if self._intake is None:
            raise InvalidRequestError("the server is not up yet", field="status")
        return self._intake


def _do_without_torch() -> None:
    """transformers imports torch where it finds it; tokenizers need nothing of it, and it takes seconds to load."""
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
    sys.modules["torch"] = None  # type: ignore[assignment]
