"""The caller's names for the fields of a request, for error messages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldNames:
    """Names of the fields that differ between routes, and what a suffix adds to the canvas.

    Attributes:
        prompt: `text`, `messages`, `prompts[3]` ...
        length: the field that sets the canvas length: `max_new_tokens`, `max_tokens`, `canvas` or `choices`.
        length_given: whether the caller sent it; otherwise the value is a default.
        suffix: tokens of the canvas that come from the field `suffix`, not from `length`.
        structure: the field that says what the text must be: `json_schema`, `response_format.json_schema.schema` ...;
            empty: its own name.
        stop: the field of stop strings.
    """

    prompt: str = "prompt"
    length: str = "max_new_tokens"
    length_given: bool = True
    suffix: int = 0
    structure: str = ""
    stop: str = "stop"

    @property
    def prompt_field(self) -> str:
        """The prompt's field without its index: `prompts` of `prompts[3]`."""
        return self.prompt.partition("[")[0]


DEFAULT_NAMES = FieldNames()
