"""What a chat template puts around each message, so that a conversation can be built piece by piece.

Found by rendering short conversations and looking at what stands between the contents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Render = Callable[[Sequence[dict[str, str]], bool], str]
"""(messages, add_generation_prompt) -> text; raises anything when the template refuses."""

_CONTENTS = ("shoal one", "shoal two", "shoal three", "shoal four")


@dataclass(frozen=True, slots=True)
class ChatMarkers:
    """Text before and after a message of each role, and before a first user message without a system message."""

    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    first_user: str

    def to_json(self) -> dict[str, Any]:
        """As JSON-able data."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ChatMarkers:
        """From what `to_json` gave."""
        system, user, assistant = (tuple(map(str, value[role])) for role in ("system", "user", "assistant"))
        return cls(system, user, assistant, str(value["first_user"]))  # type: ignore[arg-type]

    def of(self, role: str, first: bool) -> tuple[str, str]:
        """(before, after) a message; `first`: it begins the conversation."""
        before, after = getattr(self, role)
        return (self.first_user if first and role == "user" else before), after


PLAIN = ChatMarkers(("SYSTEM:", "\n"), ("USER:", "\n"), ("ASSISTANT:", "\n"), "USER:")
"""For models without a chat template, as in SGLang."""


def chat_markers(render: Render | None) -> ChatMarkers:
    """The markers of a chat template; PLAIN without one, or for one whose turns can't be told apart."""
    if render is None:
        return PLAIN
    one, two, three, four = _CONTENTS
    try:
        header = _bare_header(render)
        user_only = render([{"role": "user", "content": one}], False).removesuffix(header)
        prompted = render([{"role": "user", "content": one}], True)
        turns = [("user", one), ("assistant", two), ("user", three), ("assistant", four)]
        talk = render([{"role": role, "content": content} for role, content in turns], False).removesuffix(header)
        first_user, user_after = _around(user_only, one)
        assistant_before = prompted[len(user_only) :]
        assistant_after = talk[talk.index(four) + len(four) :]
        between = talk[talk.index(two) + len(two) : talk.index(three)]
        if not between.startswith(assistant_after):
            return PLAIN
        user_before = between[len(assistant_after) :]
        system = _system(render, header, user_before) or (PLAIN.system if not first_user else ("", "\n"))
    except Exception:  # templates refuse conversations in Jinja's words or their own, and may drop contents
        return PLAIN
    return ChatMarkers(system, (user_before, user_after), (assistant_before, assistant_after), first_user)


def _system(render: Render, header: str, user_before: str) -> tuple[str, str] | None:
    """Around a system message, None when the template has none."""
    one, two = _CONTENTS[:2]
    try:
        text = render([{"role": "system", "content": one}, {"role": "user", "content": two}], False)
        before, rest = _around(text.removesuffix(header), one)
        return before, rest[: rest.index(two)].removesuffix(user_before)
    except Exception:
        return None


def _bare_header(render: Render) -> str:
    """What a template renders without any message although nothing was asked for (LLaDA's), '' if it refuses."""
    user = [{"role": "user", "content": _CONTENTS[0]}]
    if render(user, False) != render(user, True):
        return ""
    try:
        return render([], False)
    except Exception:
        return ""


def _around(text: str, content: str) -> tuple[str, str]:
    at = text.index(content)
    return text[:at], text[at + len(content) :]
