"""Programs written with the real sglang package, on a shoal engine or server: a `BaseBackend` for sglang 0.5.2.

    import sglang as sgl
    from shoal.frontend.backends.sglang import ShoalBackend

    sgl.set_default_backend(ShoalBackend(engine))        # an Engine, or ShoalBackend("http://127.0.0.1:30000")

Needs sglang, which needs torch and triton; shoal itself needs none of it. Decoding settings given here (threshold,
steps, block_length ...) hold for all calls; sglang's temperature of 1 is taken as it is.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Coroutine, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sglang.lang.backend.base_backend import BaseBackend
from sglang.lang.chat_template import ChatTemplate
from sglang.lang.choices import ChoicesDecision

from ...runtime.text.parts import TextPart
from .. import driver
from ..backend import Backend, Call, Reply
from ..errors import UnsupportedError
from ..language import choices as own_choices
from ..language.settings import names_given, settings
from ..language.settings import sampling_params as make_params
from ..language.trim import trim
from .default import as_backend

_METHODS = {
    "TokenLengthNormalized": own_choices.token_length_normalized,
    "GreedyTokenSelection": own_choices.greedy_token_selection,
    "UnconditionalLikelihoodNormalized": own_choices.unconditional_likelihood_normalized,
}
_PASSED: dict[str, Any] = {
    "max_new_tokens": None, "stop": None, "stop_token_ids": None, "temperature": None, "ignore_eos": None, "top_p": 1,
    "top_k": -1, "min_p": 0, "frequency_penalty": 0, "presence_penalty": 0, "min_new_tokens": 0,
}  # fmt: skip
"""sglang's settings, and the value with which each says nothing."""
_CHECKED = (
    "return_logprob", "logprob_start_len", "top_logprobs_num", "return_text_in_logprobs", "json_schema", "regex",
)  # fmt: skip
Result = TypeVar("Result")


@dataclass
class _ModelTemplate(ChatTemplate):  # type: ignore[misc]  # sglang has no types
    """What the model's own template puts around messages; asked for when a message begins."""

    backend: Backend = field(kw_only=True)

    def get_prefix_and_suffix(self, role: str, hist_messages: list[dict[str, Any]]) -> tuple[str, str]:
        """Raises ShoalError for a role, or a template, that can't be had."""
        return _wait(self.backend.markers()).of(role, False)


class ShoalBackend(BaseBackend):  # type: ignore[misc]  # as above
    """sglang's backend over shoal. sglang keeps text, so every call is encoded anew, prefix and all.

    Nor does it say which text is a message's: special tokens are recognised wherever they are spelled, as by SGLang.
    A program that puts strangers' text into messages is safe with shoal's own frontend.

    Args:
        backend: an Engine, a server's URL, or a backend of `shoal.frontend`; None: shoal's default one.
        defaults: decoding settings of all calls.
    """

    def __init__(self, backend: Any = None, **defaults: Any):
        super().__init__()
        self._backend: Backend = as_backend(backend)
        self._defaults = settings(defaults)
        self.chat_template = _ModelTemplate("shoal", None, {}, backend=self._backend)

    def get_model_name(self) -> str:
        """The model's path."""
        return str(_wait(self._backend.server_info()).get("model_path", "shoal"))

    def get_server_info(self) -> dict[str, Any]:
        """What runs there."""
        return _wait(self._backend.server_info())

    def flush_cache(self) -> None:
        """Drop every cached prefix."""
        _wait(self._backend.flush_cache())

    def cache_prefix(self, prefix_str: str) -> None:
        """Compute and cache a prefix."""
        _wait(self._warm(prefix_str))

    def commit_lazy_operations(self, s: Any) -> None:
        """Compute and cache a state's text: sglang calls this before a fork."""
        _wait(self._warm(s.text_))

    async def _warm(self, text: str) -> None:
        if text:
            await self._backend.warm(await self._encode(text, True))

    async def _encode(self, text: str, first: bool) -> list[int]:
        return await self._backend.encode([TextPart(text, False)], first)

    def generate(self, s: Any, sampling_params: Any) -> tuple[Any, Any]:
        """Text and meta info; lists of both with n > 1."""
        calls = self._calls(s.text_, sampling_params)
        replies = [_wait(self._backend.generate(call)) for call in calls]
        texts = [trim(reply.text, _dtype(sampling_params.dtype))[0] for reply in replies]
        if len(replies) == 1:
            return texts[0], replies[0].meta
        return texts, [reply.meta for reply in replies]

    def generate_stream(self, s: Any, sampling_params: Any) -> Generator[tuple[str, Any], None, None]:
        """New text and meta info as text is committed."""
        (call,) = self._calls(s.text_, sampling_params)
        stream, shown = self._backend.stream(call), 0
        while (reply := _wait(_next(stream))) is not None:
            yield reply.text[shown:], reply.meta
            shown = len(reply.text)

    def select(self, s: Any, choices: Sequence[str], temperature: float, choices_method: Any = None) -> ChoicesDecision:
        """The best choice by masked pseudo-log-likelihood; meta_info has `values` and `token_scores`, no logprobs."""
        if temperature > 1e-5:
            raise UnsupportedError(f"temperature is {temperature}; select takes the best choice", field="temperature")
        name = "TokenLengthNormalized" if choices_method is None else type(choices_method).__name__
        method = choices_method if isinstance(choices_method, own_choices.ChoicesMethod) else _METHODS.get(name)
        if method is None:
            raise UnsupportedError(f"choices_method {name} needs logprobs that a diffusion model does not have",
                                   field="choices_method", limit=tuple(_METHODS))  # fmt: skip
        decision = _wait(self._decide(s.text_, choices, method))
        return ChoicesDecision(choices[decision.index], decision.meta)

    async def _decide(
        self, text: str, choices: Sequence[str], method: own_choices.ChoicesMethod
    ) -> own_choices.Decision:
        tokens = await self._encode(text, True)
        encoded = [await self._encode(choice, False) for choice in choices]
        return await method.decide(self._backend, tokens, encoded, 0)

    def _calls(self, text: str, params: Any) -> list[Call]:
        said = {name: getattr(params, name) for name in _PASSED}
        given = {name: value for name, value in said.items() if value not in (None, (), [], _PASSED[name])}
        own = {**self._defaults, **settings({**given, **{name: _plain(getattr(params, name)) for name in _CHECKED}})}
        tokens = tuple(_wait(self._encode(text, True)))
        seed = own.get("seed")
        seeds = [{} if seed is None else {"seed": seed + index} for index in range(params.n)]
        return [Call(tokens, make_params({}, {**own, **one}), names_given(own)) for one in seeds]


def _plain(value: Any) -> Any:
    """sglang's own "not given" is sometimes (None,)."""
    return None if value in ((None,), (), []) else value


def _dtype(dtype: Any) -> type | None:
    named = {"int": int, "float": float, "bool": bool}
    return named.get(dtype) if isinstance(dtype, str) else (dtype if dtype in named.values() else None)


async def _next(stream: AsyncGenerator[Reply, None]) -> Reply | None:
    return await anext(stream, None)


def _wait(work: Coroutine[Any, Any, Result]) -> Result:
    return driver.run(work)
