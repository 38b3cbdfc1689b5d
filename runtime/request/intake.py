"""From what was asked to request specs: tokens, limits, ids. All of a caller's mistakes are found here."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np

from ..checks import PARAMETER
from ..config import CACHE_MODES, EngineConfig
from ..errors import InvalidRequestError, ShoalError, shorten
from ..grammar.grammar import Grammar
from ..text.conversation import plain_messages
from ..text.parts import TextPart
from ..text.tokenizer import Tokenizer
from .endings import Endings
from .facts import Facts
from .field_names import FieldNames
from .input import Conversation, GenerateInput, TextPrompt
from .length_limit import check_length
from .refresh_schedule import with_schedule
from .resolve import resolved
from .sampling_params import SamplingParams
from .snapshot import STREAM_MODES
from .spec import RequestSpec, Tokens
from .structure import Structures


def _is_integer(kind: type) -> bool:
    return issubclass(kind, int | np.integer) and kind is not bool


def _field(name: str) -> str:
    """The field of a value called `name`: `prompts` of `prompts[3]`."""
    return name.partition("[")[0]


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes)


def _chat_ids(tokenizer: Tokenizer, prompt: Any, name: str) -> list[int]:
    """Token ids of a chat. Raises as the tokenizer; messages that are a prompt themselves are `name`[0] and so on."""
    if isinstance(prompt, Conversation):
        return tokenizer.apply_chat_template(prompt)
    try:
        return tokenizer.apply_chat_template(plain_messages(prompt, name))
    except InvalidRequestError as error:
        error.field = _field(name)
        raise


class Intake:
    """Makes requests for one engine.

    Args:
        config: the engine's options.
        facts: of its model and pools.
        tokenizer: None: prompts can only be token ids.
    """

    def __init__(self, config: EngineConfig, facts: Facts, tokenizer: Tokenizer | None):
        self._config = config
        self._facts = facts
        self._tokenizer = tokenizer
        if tokenizer is not None:
            tokenizer.protect((facts.model.mask_token_id, *facts.stop_ids()))
            tokenizer.limit(facts.max_tokens)
        self._endings = Endings(facts, tokenizer)
        self._structures = Structures(facts)
        self._ids = itertools.count()

    @property
    def block_length(self) -> int:
        """The default of the sampling parameter."""
        return self._facts.block_length

    @property
    def max_running_requests(self) -> int:
        """Most requests that run together."""
        return self._config.max_running_requests

    def specs(self, inputs: Iterable[GenerateInput], arrival: float | None = None) -> list[RequestSpec]:
        """Requests, all checked and with every default resolved; `arrival` as in RequestSpec, None: now.

        Raises InvalidRequestError or PoolTooSmallError, naming field, value and limit, for the first that is wrong.
        """
        return [self._spec(given, time.monotonic() if arrival is None else arrival) for given in inputs]

    def _targets(self, pairs: Sequence[tuple[int, int]], template: Tokens | None) -> Tokens:
        """(position in the canvas, token) pairs as an array, checked."""
        self.check_choices([[token for _, token in pairs]])
        for position, _ in pairs:
            if template is None or not 0 <= position < len(template) or template[position] >= 0:
                message = f"targets has position {position}; it must be one of a mask of the canvas"
                raise InvalidRequestError(message, field="targets", value=position)
        return np.array(pairs, np.int64).reshape(-1, 2)

    def check_choices(self, choices: Sequence[Sequence[int]]) -> None:
        """Raise InvalidRequestError for token ids that can't be answers: outside of the vocabulary, or the mask."""
        mask = self._facts.model.mask_token_id
        for choice in choices:
            self._check_ids(choice, "choices")
            if mask in choice:
                message = f"choices has token id {mask}, the mask: it is no possible answer"
                raise InvalidRequestError(message, field="choices", value=mask)

    def encode(self, prompt: Any, name: str) -> list[int]:
        """Token ids of one prompt. Raises InvalidRequestError, naming it `name`."""
        tokens: list[int] = self._encode(prompt, name).tolist()
        return tokens

    def encode_text(self, prompt: TextPrompt, name: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of text, of text in parts, or of a chat, called `name` in errors.

        Raises InvalidRequestError, ModelLoadError. The engine's default decides whether special tokens in text are
        recognised. Without `add_special_tokens` it is text inside a prompt: no BOS is added.
        """
        return self._encode_text(prompt, name, add_special_tokens)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        """Text of token ids. Raises InvalidRequestError for ids outside of the vocabulary, or without a tokenizer."""
        if self._tokenizer is None:
            raise InvalidRequestError("without a tokenizer there is no text", field="tokens")
        self._check_ids(token_ids, "tokens")
        return self._tokenizer.decode(token_ids, skip_special_tokens)

    def _template(self, canvas: Any, names: FieldNames) -> Tokens:
        """A canvas template as an array, checked."""
        vocabulary = self._facts.model.embedding_size
        wrong = [t for t in canvas if not isinstance(t, int | np.integer) or isinstance(t, bool)]
        wrong += [t for t in canvas if not wrong and not -1 <= t < vocabulary]
        if wrong:
            message = f"canvas of {names.prompt} has {shorten(wrong[0])}; it must hold ids from 0 to {vocabulary - 1}"
            raise InvalidRequestError(f"{message}, and -1 for masks", field="canvas", value=wrong[0], limit=vocabulary)
        mask = self._facts.model.mask_token_id
        if mask in canvas:
            message = f"canvas of {names.prompt} has token id {mask}, the mask, which would stay in the answer"
            raise InvalidRequestError(f"{message}: -1 marks what is to be filled", field="canvas", value=mask, limit=-1)
        if -1 not in canvas:
            message = f"canvas of {names.prompt} has no -1: there is no mask to fill"
            raise InvalidRequestError(message, field="canvas", value=list(canvas), limit="at least one -1")
        return np.array(canvas, np.int64)

    def _spec(self, given: GenerateInput, arrival: float) -> RequestSpec:
        params, names = given.sampling, given.names
        if not isinstance(params, SamplingParams):
            message = f"sampling_params has {shorten(params)}; it must be a SamplingParams for each prompt"
            raise InvalidRequestError(message, field="sampling_params", value=params)
        mode = self._config.cache_mode if given.cache_mode is None else given.cache_mode
        PARAMETER.one_of("cache_mode", mode, CACHE_MODES)
        if not isinstance(given.cache_salt, str):
            PARAMETER.refuse("cache_salt", given.cache_salt, "a string")
        PARAMETER.integer("shared_prefix", given.shared_prefix, 0)
        PARAMETER.one_of("stream_mode", given.stream_mode, STREAM_MODES)
        params, stop_ids = self._endings.of(resolved(params, self._facts))
        self._check_possible(params, stop_ids)
        if params.cfg_scale and mode != "none":
            message = (
                f"cfg_scale is {shorten(params.cfg_scale)}, whose second forward shares no keys with the first: "
                f"it can be had in cache_mode none alone, not in {mode}"
            )
            raise InvalidRequestError(message, field="cfg_scale", value=params.cfg_scale, limit="cache_mode none")
        template = None
        if given.canvas is not None:
            template = self._template(given.canvas, names)
            if params.stop:
                message = "stop can't be used with a canvas: its holes end at their own EOS or stop_token_ids"
                raise InvalidRequestError(message, field="stop", value=params.stop, limit=())
            if params.cfg_scale:
                message = "cfg_scale can't be used with a canvas: what would be masked beside the prompt is not defined"
                raise InvalidRequestError(message, field="cfg_scale", value=params.cfg_scale, limit=0)
            if params.structure is not None:
                message = f"{params.structure} can't be used with a canvas"
                raise InvalidRequestError(message, field=params.structure, limit="no canvas")
            if params.min_tokens:
                message = "min_tokens can't be used with a canvas: its holes have their lengths"
                raise InvalidRequestError(message, field="min_tokens", value=params.min_tokens, limit=0)
            params = params.changed(max_new_tokens=len(template))
        targets = None if given.targets is None else self._targets(given.targets, template)
        self._check_device_limits(params)
        tokens = self._encode(given.prompt, names.prompt, params.split_special_tokens)
        block_length = params.block_length or self._facts.block_length
        if not names.length_given and template is None:  # a default is as long as fits
            room = max(1, self._facts.max_tokens - len(tokens))
            params = params.changed(max_new_tokens=min(params.max_new_tokens, room))
        params = with_schedule(params, self._config, mode, grows=template is None and targets is None)
        # Before anything of the canvas's size is made.
        check_length(
            len(tokens), params.max_new_tokens, model=self._facts.model.max_position_embeddings,
            pool=self._facts.pool_tokens, masks=block_length, names=names,
        )  # fmt: skip
        grammar = self.grammar(params, names)
        if grammar is not None:
            self._structures.check_length(grammar, params, names)
        if params.stop and self._tokenizer is None:
            message = "without a tokenizer there is no text that a stop string could be found in"
            raise InvalidRequestError(message, field="stop", value=params.stop, limit=())
        return RequestSpec(
            rid=given.rid or f"{next(self._ids)}-{secrets.token_hex(4)}",
            prompt=tokens,
            sampling=params,
            cache_mode=mode,
            cache_salt=given.cache_salt,
            block_length=block_length,
            seed=params.seed if params.seed is not None else secrets.randbits(63),
            stop_ids=stop_ids,
            end_ids=self._endings.ids,
            template=template,
            grammar=grammar,
            targets=targets,
            shared_prefix=given.shared_prefix,
            priority=given.priority,
            timeout_s=given.timeout_s,
            waited_s=given.waited_s,
            stream=given.stream,
            stream_mode=given.stream_mode,
            arrival=arrival,
        )

    def _check_possible(self, params: SamplingParams, stop_ids: frozenset[int]) -> None:
        """Raise InvalidRequestError if the request itself leaves no token possible."""
        model = self._facts.model
        banned = {model.mask_token_id, *(stop_ids if params.min_tokens else ())}
        if params.logits_eos_inf:
            banned.add(model.eos_token_id)
        if len(banned) >= model.embedding_size and banned.issuperset(range(model.embedding_size)):
            message = f"min_tokens is {params.min_tokens}, but every token of the model ends the text (stop_token_ids)"
            raise InvalidRequestError(message, field="min_tokens", value=params.min_tokens, limit=0)

    def grammar(self, params: SamplingParams, names: FieldNames) -> Grammar | None:
        """What the text must satisfy; None: it is free. The first call with a grammar compiles it, in any thread.

        Raises InvalidRequestError.
        """
        if params.structure is not None and self._tokenizer is None:
            message = f"without a tokenizer there is no text that {params.structure} could speak of"
            raise InvalidRequestError(message, field=names.structure or params.structure)
        return self._structures.of(params, names)

    def _check_device_limits(self, params: SamplingParams) -> None:
        """Raise InvalidRequestError for what this worker's device can't run."""
        blocks = self._facts.max_block_length
        if blocks is not None and min(params.block_length or 0, params.max_new_tokens) > blocks:
            message = f"block_length is {params.block_length}; on this device it may be at most {blocks}"
            raise InvalidRequestError(message, field="block_length", value=params.block_length, limit=blocks)

    def _encode(self, prompt: Any, name: str, split: bool | None = None) -> Tokens:
        is_chat = isinstance(prompt, Conversation) or (
            _is_list(prompt) and len(prompt) and all(isinstance(p, dict) for p in prompt)
        )
        if is_chat or isinstance(prompt, str):
            ids = self._encode_text(prompt, name, split=split)
        elif _is_list(prompt) and all(_is_integer(kind) for kind in set(map(type, prompt))):
            ids = list(map(int, prompt))
        else:
            message = f"{name} is {shorten(prompt)}; it must be text, token ids or chat messages"
            raise InvalidRequestError(message, field=_field(name), value=prompt)
        if not ids:
            raise InvalidRequestError(f"{name} is empty; it must have at least one token", field=_field(name), limit=1)
        self._check_ids(ids, name)
        return np.array(ids, np.int64)

    def _check_ids(self, ids: Sequence[int], name: str) -> None:
        vocabulary = self._facts.model.embedding_size
        if ids and (min(ids) < 0 or max(ids) >= vocabulary):
            bad = next(token for token in ids if not 0 <= token < vocabulary)
            message = f"{name} has token id {bad}; ids must be at least 0 and below {vocabulary}"
            raise InvalidRequestError(message, field=_field(name), value=bad, limit=vocabulary)

    def _encode_text(
        self, prompt: TextPrompt, name: str, add_special_tokens: bool = True, split: bool | None = None
    ) -> list[int]:
        tokenizer = self._tokenizer
        if tokenizer is None:
            raise InvalidRequestError(f"{name}: without a tokenizer, prompts must be token ids", field=_field(name))
        try:
            if isinstance(prompt, str):
                split = self._config.split_special_tokens if split is None else split
                return tokenizer.encode(prompt, add_special_tokens, split)
            if not isinstance(prompt, Conversation) and all(isinstance(part, TextPart) for part in prompt):
                return tokenizer.encode_parts(cast(Sequence[TextPart], prompt), add_special_tokens)
            if split is False:
                message = "split_special_tokens is false; contents of messages are always taken as ordinary text"
                raise InvalidRequestError(message, field="split_special_tokens", value=split, limit="true or null")
            return _chat_ids(tokenizer, prompt, name)
        except InvalidRequestError as error:
            if error.field != "prompts":  # the text's name in the tokenizer
                raise
            message = error.message if error.message.startswith(name) else f"{name}: {error.message}"
            raise InvalidRequestError(message, field=_field(name), value=error.value, limit=error.limit) from error
        except ShoalError:
            raise
        # Tokenizers raise anything for text that is no valid Unicode.
        except Exception as error:
            message = f"{name} is {shorten(prompt)}, which can't be tokenized: {type(error).__name__}: {error}"
            raise InvalidRequestError(message, field=_field(name), value=prompt) from error
