"""A chat template's text around each message, so that a conversation can be built piece by piece.

Found by rendering short conversations and taking the text between the contents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import InvalidRequestError, ModelLoadError, ShoalError

Render = Callable[[Sequence[dict[str, str]], bool], str]
"""(messages, add_generation_prompt) -> text; raises ShoalError, naming the template, if the template refuses."""

_CONTENTS = ("shoal one", "shoal two", "shoal three", "shoal four")


@dataclass(frozen=True, slots=True)
class ChatMarkers:
    """Text before and after a message of each role, and before a first user message without a system message.

    `system` is None if the template takes no system message.
    """

    system: tuple[str, str] | None
    user: tuple[str, str]
    assistant: tuple[str, str]
    first_user: str

    def to_json(self) -> dict[str, Any]:
        """As JSON-able data."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ChatMarkers:
        """From what `to_json` gave. Raises ModelLoadError for what `markers_error` gave."""
        if "error" in value:
            raise ModelLoadError(str(value["error"]), field="chat_template")
        system, user, assistant = (
            None if value[role] is None else tuple(map(str, value[role])) for role in ("system", "user", "assistant")
        )
        return cls(system, user, assistant, str(value["first_user"]))  # type: ignore[arg-type]

    def of(self, role: str, first: bool) -> tuple[str, str]:
        """(before, after) a message; `first`: it begins the conversation.

        Raises InvalidRequestError for a system message where the template takes none.
        """
        markers = getattr(self, role)
        if markers is None:
            message = f"the model's chat template takes no {role} message"
            raise InvalidRequestError(message, field="role", value=role, limit="user, assistant")
        before, after = markers
        return (self.first_user if first and role == "user" else before), after


PLAIN = ChatMarkers(("SYSTEM:", "\n"), ("USER:", "\n"), ("ASSISTANT:", "\n"), "USER:")
"""For models without a chat template, as in SGLang."""


def markers_error(error: ShoalError) -> dict[str, Any]:
    """Takes the place of `ChatMarkers.to_json` for a template without markers: the error."""
    return {"error": error.message}


def chat_markers(render: Render, name: str) -> ChatMarkers:
    """The markers of the chat template called `name`. Raises ModelLoadError, naming it, if it has none."""
    try:
        return _found(render)
    except ModelLoadError:
        raise
    except (ShoalError, ValueError) as error:
        reason = error.message if isinstance(error, ShoalError) else str(error)
        message = f"{name}: programs can't use it, since its turns can't be told apart: {reason}"
        raise ModelLoadError(message, field="chat_template", value=name) from error


def _found(render: Render) -> ChatMarkers:
    one, two, three, four = _CONTENTS
    header = _bare_header(render)
    user_only = render([{"role": "user", "content": one}], False).removesuffix(header)
    prompted = render([{"role": "user", "content": one}], True)
    turns = [("user", one), ("assistant", two), ("user", three), ("assistant", four)]
    talk = render([{"role": role, "content": content} for role, content in turns], False).removesuffix(header)
    first_user, user_after = _around(user_only, one)
    assistant_before = prompted[len(user_only) :]
    _, assistant_after = _around(talk, four)
    between, _ = _around(_around(talk, two)[1], three)
    if not between.startswith(assistant_after):
        raise ValueError("an answer ends otherwise in the middle of a conversation than at its end")
    user_before = between[len(assistant_after) :]
    system = _system(render, header, user_before)
    return ChatMarkers(system, (user_before, user_after), (assistant_before, assistant_after), first_user)


def _system(render: Render, header: str, user_before: str) -> tuple[str, str] | None:
    """Text around a system message; None if the template takes none."""
    one, two = _CONTENTS[:2]
    try:
        text = render([{"role": "system", "content": one}, {"role": "user", "content": two}], False)
        before, rest = _around(text.removesuffix(header), one)
        return before, _around(rest, two)[0].removesuffix(user_before)
    except (ShoalError, ValueError):
        return None


def _bare_header(render: Render) -> str:
    """The header that a template renders without any message, as LLaDA's does; '' if it refuses."""
    user = [{"role": "user", "content": _CONTENTS[0]}]
    if render(user, False) != render(user, True):
        return ""
    try:
        return render([], False)
    except ShoalError:
        return ""


def _around(text: str, content: str) -> tuple[str, str]:
    before, found, after = text.partition(content)
    if not found:
        raise ValueError("it leaves out or changes the content of a message")
    return before, after
