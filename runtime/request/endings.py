"""Which tokens end a text: those of the model, of its tokenizer and chat template, and of the request."""

from __future__ import annotations

from ..errors import InvalidRequestError, ModelLoadError
from ..text.tokenizer import Tokenizer
from .facts import Facts
from .sampling_params import SamplingParams


class Endings:
    """The stop ids of one model.

    Args:
        facts: of the model: the ids of its configuration files.
        tokenizer: adds its `eos_token` and the token that ends a turn in its chat template. None: nothing is added.

    Attributes:
        ids: all of them.

    Raises ModelLoadError when these are more than the device takes.
    """

    def __init__(self, facts: Facts, tokenizer: Tokenizer | None):
        self.ids = frozenset(facts.stop_ids(() if tokenizer is None else tokenizer.end_ids()))
        self._tokenizer = tokenizer
        self._most = facts.max_stop_ids
        if self._most is not None and len(self.ids) > self._most:
            message = f"the model has {len(self.ids)} stop tokens; on this device it may have at most {self._most}"
            raise ModelLoadError(message, field="eos_token_id", value=len(self.ids), limit=self._most)

    def of(self, params: SamplingParams) -> tuple[SamplingParams, frozenset[int]]:
        """`params` with the stop strings that have to be found in text alone, and the tokens that end the text.

        A stop string that spells a special token is that token: no text ever has it. It counts with `ignore_eos` too,
        as every stop string does. Raises InvalidRequestError for more tokens than the device takes.
        """
        spelled = {} if self._tokenizer is None else {text: self._tokenizer.special_id(text) for text in params.stop}
        special = frozenset(token for token in spelled.values() if token is not None)
        ids = special if params.ignore_eos else special | self.ids | frozenset(params.stop_token_ids)
        if self._most is not None and len(ids) > self._most:
            most = self._most - (0 if params.ignore_eos else len(self.ids))
            message = (
                f"stop_token_ids has {len(params.stop_token_ids)} tokens; on this device it may have at most {most}"
            )
            if special:
                message += ", stop strings that are special tokens included"
            raise InvalidRequestError(message, field="stop_token_ids", value=len(ids), limit=most)
        if special:
            params = params.changed(stop=tuple(text for text in params.stop if spelled[text] is None))
        return params, ids
