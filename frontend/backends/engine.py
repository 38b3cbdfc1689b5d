"""Programs on an engine in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ...runtime.request.sampling_params import RULES, SamplingParams
from ...runtime.text.chat_markers import ChatMarkers
from ...runtime.text.parts import TextPart
from ..backend import Call, Filled, Reply, Scored
from .figures import figures_of

if TYPE_CHECKING:
    from ...runtime.config import CacheMode
    from ...runtime.engine.engine import Engine
    from ...runtime.request.output import RequestOutput

_REMEMBERED = 4096


class EngineBackend:
    """Runs calls on an `Engine`. `cache_mode` and `cache_salt` are those of all calls."""

    def __init__(self, engine: Engine, *, cache_mode: CacheMode | None = None, cache_salt: str = ""):
        self.engine = engine
        self._options: dict[str, Any] = {"cache_mode": cache_mode, "cache_salt": cache_salt}
        self._salt = cache_salt
        self._reuses = (cache_mode or engine.config.cache_mode) == "bicache" and engine.depth_profile.max_depth > 0
        self._warmed: dict[tuple[int, ...], None] = {}
        self._markers: ChatMarkers | None = None
        self._encode = lru_cache(_REMEMBERED)(self._encode_now)

    def _encode_now(self, parts: tuple[TextPart, ...], first: bool) -> tuple[int, ...]:
        return tuple(self.engine.encode_parts(parts, add_special_tokens=first))

    async def encode(self, parts: Sequence[TextPart], first: bool) -> list[int]:
        """See Backend."""
        return list(self._encode(tuple(parts), first))

    async def markers(self) -> ChatMarkers:
        """See Backend."""
        if self._markers is None:
            self._markers = self.engine.chat_markers()
        return self._markers

    async def generate(self, call: Call) -> Reply:
        """See Backend."""
        output = await self.engine.async_generate(list(call.tokens), self._sampling(call), **self._of(call))
        return _reply(output, call)

    async def stream(self, call: Call) -> AsyncGenerator[Reply, None]:
        """See Backend."""
        async for output in self.engine.async_stream(list(call.tokens), self._sampling(call), **self._of(call)):
            yield _reply(output, call)

    def _sampling(self, call: Call) -> SamplingParams:
        """The call's parameters over the engine's defaults."""
        given = {name: getattr(call.sampling, name) for name in (*call.given, "max_new_tokens", "block_length")}
        if any(name in given for name in RULES):
            given = {**dict.fromkeys(RULES), **given}
        return replace(self.engine.default_sampling_params, **given)

    def _of(self, call: Call) -> dict[str, Any]:
        canvas = None if call.canvas is None else list(call.canvas)
        return {**self._options, "canvas": canvas, "shared_prefix": call.shared_prefix}

    async def score(
        self, tokens: Sequence[int], choices: Sequence[Sequence[int]], method: str, shared_prefix: int
    ) -> Scored:
        """See Backend."""
        scored = await self.engine.async_score(
            list(tokens), choices, method, shared_prefix=shared_prefix, **self._options  # type: ignore[arg-type]
        )  # fmt: skip
        return Scored(tuple(choice.token_scores for choice in scored.choices), figures_of(scored))

    async def warm(self, tokens: Sequence[int]) -> dict[str, Any] | None:
        """See Backend."""
        if not self._reuses:
            return None
        return await asyncio.to_thread(self._warm, list(tokens))

    def _warm(self, tokens: list[int]) -> dict[str, Any] | None:
        """What is cached whole already is left as it is: and trusted to its end only if it was warmed here, since else
        it may have been captured in front of something else."""
        engine, size = self.engine, self.engine.page_size
        whole = tuple(tokens[: len(tokens) // size * size])
        cached = bool(whole) and engine.cached_tokens(tokens, cache_salt=self._salt) >= len(whole)
        figures: dict[str, Any] | None = {} if whole in self._warmed else None
        if not cached:
            figures = figures_of(engine.generate(tokens, SamplingParams(max_new_tokens=0), **self._options))
            self._warmed[whole] = None
            if len(self._warmed) > _REMEMBERED:
                del self._warmed[next(iter(self._warmed))]
        return figures

    async def pin(self, tokens: Sequence[int]) -> bool:
        """See Backend."""
        from ...runtime.errors import ShoalError

        if not self._reuses:
            return False
        try:
            return await asyncio.to_thread(self.engine.pin, list(tokens), cache_salt=self._salt) > 0
        except ShoalError:  # the engine was shut down
            return False

    async def unpin(self, tokens: Sequence[int]) -> None:
        """See Backend."""
        from ...runtime.errors import ShoalError

        try:
            await asyncio.to_thread(self.engine.unpin, list(tokens), cache_salt=self._salt)
        except ShoalError:  # flushed, or the engine was shut down
            return

    async def unconditional(self) -> tuple[int, ...]:
        """See Backend."""
        return (self.engine.model_config.eos_token_id,)

    async def server_info(self) -> dict[str, Any]:
        """See Backend."""
        return {**asdict(self.engine.config), "max_tokens": self.engine.model_config.max_position_embeddings}

    async def flush_cache(self) -> None:
        """See Backend."""
        await asyncio.to_thread(self.engine.flush_cache)


def _reply(output: RequestOutput, call: Call) -> Reply:
    reason = None if output.finish_reason is None else {"type": output.finish_reason}
    if reason is not None and output.matched_stop is not None:
        reason["matched"] = output.matched_stop  # type: ignore[assignment]
    meta = {"id": output.rid, "finish_reason": reason, **figures_of(output)}
    holes = tuple(Filled(hole.text, hole.token_ids) for hole in output.holes) if call.canvas is not None else ()
    return Reply(output.text, output.token_ids, meta, holes)
