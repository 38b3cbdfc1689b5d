"""The detokenizer's process: turns committed tokens into text that only grows."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace

import msgspec

from ..text.decoder import load_decoder
from ..text.running import Decodes, pieces
from ..text.stream import TextStream
from .child import Child
from .inbox import Inbox
from .messages import Ask, Begin, Denoised, Output, Outputs, ToDetokenizer

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Text:
    """A request's tokens and text so far."""

    stream: TextStream
    tokens: list[int] = field(default_factory=list)


class Detokenizer:
    """Adds the text to outputs. Keeps a request's state until its terminal output.

    Args:
        decoder: None: there is no text.
    """

    def __init__(self, decoder: Decodes | None):
        self._decoder = decoder
        self._texts: dict[str, _Text] = {}

    @property
    def num_requests(self) -> int:
        """Requests without a terminal output so far."""
        return len(self._texts)

    def add_pieces(self, message: Denoised) -> Denoised:
        """The message with the texts of the tokens."""
        changes = {
            rid: replace(change, texts=pieces(self._decoder, change.tokens)) for rid, change in message.changes.items()
        }
        return Denoised(changes)

    def add_text(self, output: Output) -> Output:
        """The output with its text: the whole text if the scheduler made it, else the new part. Adds the texts of holes
        too.
        """
        if output.holes and self._decoder is not None:
            holes = [msgspec.structs.replace(h, text=self._decoder.decode(h.tokens)) for h in output.holes]
            output = msgspec.structs.replace(output, holes=holes)
        if output.logprobs and self._decoder is not None:
            output = msgspec.structs.replace(
                output, logprobs=[one and one.spelled(self._spell) for one in output.logprobs]
            )
        if output.text is not None:
            return output
        finished = output.finish_reason is not None
        text = self._texts.pop(output.rid, None) or _Text(TextStream(self._decoder))
        if not finished:
            self._texts[output.rid] = text
        if output.token_start < len(text.tokens):
            del text.tokens[output.token_start :]
            text.stream.restart()
        text.tokens += output.tokens
        before = text.stream.text
        now = text.stream.update(text.tokens, final=finished)
        start = len(before) if now.startswith(before) else 0
        return msgspec.structs.replace(output, text_start=start, text=now[start:])

    def _spell(self, token: int) -> str:
        return "" if self._decoder is None else self._decoder.decode([token], False)


class DetokenizerProcess:
    """Reads the scheduler's outputs, adds their text and sends them to the client."""

    def __init__(self, child: Child):
        self._child = child
        self._inbox: Inbox[ToDetokenizer] = child.inbox("detokenizer", ToDetokenizer)

    def run(self) -> None:
        """Serve until the process ends."""
        while not isinstance(first := self._inbox.receive(), Begin):
            logger.error("detokenizer: %s before Begin is ignored", type(first).__name__)
        load_format = self._child.spec.engine.load_format
        detokenizer = Detokenizer(load_decoder(self._child.decoder_path, first.facts.folder, load_format))
        self._child.ready()
        while True:
            message = self._inbox.receive()
            match message:
                case Outputs():
                    self._child.tell(Outputs([detokenizer.add_text(output) for output in message.outputs]))
                case Denoised():
                    self._child.tell(detokenizer.add_pieces(message))
                case Ask():
                    self._child.reply(message.number, lambda: None)
