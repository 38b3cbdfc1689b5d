"""A state's text as token segments: what was encoded once keeps its tokens, whatever comes behind it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...runtime.text.parts import TextPart
from ..backend import Backend


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of text with the tokens it was encoded to, or was generated as."""

    text: str
    tokens: tuple[int, ...]


@dataclass(slots=True)
class Transcript:
    """Segments, the messages so far, and literal text that waits to be encoded with what follows it.

    Literal pieces in a row are encoded together, when a call or a fork needs their tokens: so a conversation has the
    tokens that the chat template gives it. Text inside a message is data: it gives no special token. Used in the
    driver's thread only.
    """

    segments: list[Segment] = field(default_factory=list)
    messages: list[dict[str, str]] = field(default_factory=list)
    pending: list[TextPart] = field(default_factory=list)
    plain_start: bool = True
    role: str | None = None
    role_text: str = ""

    @property
    def text(self) -> str:
        """All text, role markers included."""
        return "".join(segment.text for segment in self.segments) + "".join(part.text for part in self.pending)

    @property
    def tokens(self) -> tuple[int, ...]:
        """Tokens of the segments; `flush` first."""
        return tuple(token for segment in self.segments for token in segment.tokens)

    @property
    def empty(self) -> bool:
        """Whether nothing has been added."""
        return not self.segments and not self.pending

    def literal(self, text: str) -> None:
        """Add literal text."""
        self._wait(text, self.role is not None)
        self.role_text += text

    def marker(self, text: str) -> None:
        """Add what stands around a message; at the very start it brings its own BOS, if any."""
        if self.empty:
            self.plain_start = False
        self._wait(text, False)

    def _wait(self, text: str, is_data: bool) -> None:
        if text:
            self.pending.append(TextPart(text, is_data))

    def begin(self, role: str, before: str) -> None:
        """Begin a message."""
        self.marker(before)
        self.role, self.role_text = role, ""

    def end(self, after: str) -> None:
        """End the message begun last."""
        self.messages.append({"role": str(self.role), "content": self.role_text})
        self.marker(after)
        self.role, self.role_text = None, ""

    async def flush(self, backend: Backend) -> None:
        """Encode what waits."""
        if self.pending:
            first = self.plain_start and not self.segments
            tokens = await backend.encode(self.pending, first)
            self.segments.append(Segment("".join(part.text for part in self.pending), tuple(tokens)))
            self.pending = []

    def append(self, segment: Segment) -> None:
        """Add a segment behind everything (`flush` first)."""
        assert not self.pending
        self.segments.append(segment)
        self.role_text += segment.text

    def copy(self) -> Transcript:
        """For a fork: segments are shared, the lists are not."""
        return Transcript(list(self.segments), [dict(m) for m in self.messages], list(self.pending), self.plain_start,
                          self.role, self.role_text)  # fmt: skip
