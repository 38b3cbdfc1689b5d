"""What a caller calls the fields of a request, for the errors about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldNames:
    """Names of two fields; all others are called alike everywhere.

    Attributes:
        prompt: `text`, `messages`, `prompts[3]` ...
        length: what says how long the canvas is: `max_new_tokens`, `max_tokens`, `canvas` or `choices`.
        length_given: the caller has sent it; else the value is a default.
    """

    prompt: str = "prompt"
    length: str = "max_new_tokens"
    length_given: bool = True

    @property
    def prompt_field(self) -> str:
        """The field that has the prompt: `prompts` of `prompts[3]`."""
        return self.prompt.partition("[")[0]


DEFAULT_NAMES = FieldNames()
