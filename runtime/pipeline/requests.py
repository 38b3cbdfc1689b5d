"""A client's requests as messages to the pipeline."""

from __future__ import annotations

import operator
import time
from dataclasses import replace
from typing import Any

from ..errors import InvalidRequestError, shorten
from ..request.field_names import FieldNames
from ..request.input import Conversation, GenerateInput
from ..text.parts import TextPart
from .messages import Generate, Lookup, Tokenize


def generate_message(number: str, request: GenerateInput) -> Generate:
    """The message for a request, which the pipeline calls `number`; its time counts from now.

    Raises InvalidRequestError for a prompt that is neither text nor token ids nor chat messages.
    """
    prompt: Any = request.prompt
    if isinstance(prompt, Conversation):
        prompt = _plain(prompt)
    elif not isinstance(prompt, str):
        if len(prompt) and all(isinstance(part, dict) for part in prompt):
            prompt = [dict(part) for part in prompt]
        else:
            prompt = _token_ids(prompt, request.names)
    canvas = None if request.canvas is None else list(request.canvas)
    targets = None if request.targets is None else list(request.targets)
    return Generate(replace(request, rid=number, prompt=prompt, canvas=canvas, targets=targets), time.monotonic())


def lookup_message(number: int, request: GenerateInput) -> Lookup:
    """The message that asks what a request would reuse. Raises as `generate_message`."""
    return Lookup(number, generate_message("", request).request)


def tokenize_message(number: int, prompt: Any, add_special_tokens: bool, name: str) -> Tokenize:
    """The message that asks for the token ids of text, of text in parts, or of a chat."""
    if isinstance(prompt, Conversation):
        return Tokenize(number, None, _plain(prompt), add_special_tokens, None, name)
    if isinstance(prompt, str):
        return Tokenize(number, prompt, None, add_special_tokens, None, name)
    if prompt and all(isinstance(part, TextPart) for part in prompt):
        return Tokenize(number, None, None, add_special_tokens, [tuple(part) for part in prompt], name)
    chat = Conversation(messages=[dict(message) for message in prompt])
    return Tokenize(number, None, chat, add_special_tokens, None, name)


def _plain(chat: Conversation) -> Conversation:
    """The conversation in dicts and lists alone, which is what msgpack encodes."""
    return replace(
        chat,
        messages=[dict(message) for message in chat.messages],
        tools=[dict(tool) for tool in chat.tools],
        template_kwargs=dict(chat.template_kwargs),
    )


def _token_ids(prompt: Any, names: FieldNames) -> list[int]:
    """A prompt that must be token ids. Raises InvalidRequestError."""
    try:
        ids = [operator.index(token) for token in prompt if not isinstance(token, bool)]
    except TypeError:
        ids = []
    if len(ids) != len(prompt) or not all(-(2**63) <= token < 2**63 for token in ids):
        message = f"{names.prompt} is {shorten(prompt)}; it must be text, token ids or chat messages"
        raise InvalidRequestError(message, field=names.prompt_field, value=shorten(prompt))
    return ids
