"""What a request's text must be (`json_schema`, `regex`, `choice`), compiled for the model's tokens."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict

from ..errors import InvalidRequestError, ShoalError, path_of, shorten
from ..grammar.errors import GrammarError
from ..grammar.expression import Choice, Expression, text
from ..grammar.grammar import Grammar
from ..grammar.json_schema import expression_of
from ..grammar.regex import whole
from ..grammar.vocabulary import Vocabulary
from .facts import Facts
from .field_names import FieldNames
from .sampling_params import STRUCTURES, SamplingParams

_KEPT = 64


def load_vocabulary(facts: Facts) -> Vocabulary:
    """The model's tokens as texts have them: without its mask and its ends. Raises ModelLoadError."""
    return Vocabulary.load(facts.folder, facts.model.vocab_size, {facts.model.mask_token_id, *facts.stop_ids()})


class Structures:
    """Compiles grammars for one model, and keeps the latest. Several threads may use it.

    Args:
        facts: of the model.
    """

    def __init__(self, facts: Facts):
        self._facts = facts
        self._vocabulary: Vocabulary | None = None
        self._kept: OrderedDict[tuple[str, object], Grammar | GrammarError] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, params: SamplingParams, names: FieldNames) -> Grammar | None:
        """The grammar of a request; None if its text is free.

        Raises InvalidRequestError, with the client's path to what can't be honoured, and for a canvas that is too
        short for any text that satisfies it.
        """
        kind = params.structure
        if kind is None:
            return None
        called, value = names.structure or kind, getattr(params, kind)
        found = self._compiled(kind, value, called)
        if isinstance(found, GrammarError):
            path = path_of((called, *found.path))
            message = f"{path} can't be honoured: {found.reason}"
            raise InvalidRequestError(message, field=path, value=shorten(value))
        return found

    def check_length(self, grammar: Grammar, params: SamplingParams, names: FieldNames) -> None:
        """Raise InvalidRequestError for a canvas that is too short for any text of a grammar."""
        least, given = grammar.least_tokens, params.max_new_tokens
        if given < least:
            called = names.structure or params.structure
            by_default = "" if names.length_given else " by default"
            message = f"{names.length} is {given}{by_default}; a text that satisfies {called} takes at least {least}"
            raise InvalidRequestError(
                f"{message} tokens, its end included", field=names.length, value=given, limit=least
            )

    def _compiled(self, kind: str, value: object, called: str) -> Grammar | GrammarError:
        with self._lock:
            if (kind, value) in self._kept:
                self._kept.move_to_end((kind, value))
                return self._kept[kind, value]
            try:
                if self._vocabulary is None:
                    self._vocabulary = load_vocabulary(self._facts)
            except ShoalError as error:
                raise InvalidRequestError(f"{called}: {error.message}", field=called, value=shorten(value)) from error
            try:
                found: Grammar | GrammarError = Grammar.of(_expression(kind, value), self._vocabulary)
            except GrammarError as error:
                found = error.with_traceback(None)
            except UnicodeEncodeError:
                found = GrammarError("it has half a surrogate pair, which is no text")
            self._kept[kind, value] = found
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return found


def _expression(kind: str, value: object) -> Expression:
    match kind, value:
        case "json_schema", str():
            return expression_of(json.loads(value))
        case "regex", str():
            return whole(value)
        case "choice", tuple():
            return Choice(tuple(map(text, value)))
    raise AssertionError(f"{kind} is none of {STRUCTURES}")
