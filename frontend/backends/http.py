"""Programs on a server, over HTTP."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any

from ...runtime.text.chat_markers import ChatMarkers
from ...runtime.text.parts import TextPart
from .. import driver
from ..backend import Call, Filled, Reply, Scored
from ..errors import ServerError
from .figures import figures_of

if TYPE_CHECKING:
    import httpx

_REMEMBERED = 4096
_CONNECTIONS = 64


class HTTPBackend:
    """Runs calls on a shoal server. `cache_mode` and `cache_salt` are those of all calls.

    Nothing is retried, and nothing is pinned: a client that goes away must not hold a server's memory.

    Args:
        url: of the server, as http://127.0.0.1:30000.
        api_key: sent as a bearer token.
        timeout_s: seconds that one call may take.
    """

    def __init__(
        self, url: str, *, api_key: str | None = None, timeout_s: float = 600.0, cache_mode: str | None = None,
        cache_salt: str = "",
    ):  # fmt: skip
        self.url = url.rstrip("/")
        self._timeout = timeout_s
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._options: dict[str, Any] = {"cache_mode": cache_mode, "cache_salt": cache_salt or None}
        self._client: httpx.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._limit: asyncio.Semaphore | None = None
        self._encoded: dict[tuple[tuple[TextPart, ...], bool], asyncio.Task[list[int]]] = {}
        self._info: asyncio.Task[dict[str, Any]] | None = None
        self._markers: ChatMarkers | None = None

    def _open(self) -> tuple[httpx.AsyncClient, asyncio.Semaphore]:
        """The client of the driver's loop (another one after a fork of the process)."""
        import httpx

        loop = asyncio.get_running_loop()
        if self._client is None or self._limit is None or self._loop is not loop:
            limits = httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS)
            self._client = httpx.AsyncClient(
                base_url=self.url, timeout=httpx.Timeout(self._timeout, connect=10.0), limits=limits,
                headers=self._headers, trust_env=False,
            )  # fmt: skip
            self._limit, self._loop = asyncio.Semaphore(_CONNECTIONS), loop
            self._encoded, self._info = {}, None
        return self._client, self._limit

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        import httpx

        client, limit = self._open()
        try:
            async with limit:
                answer = await client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise self._lost(error) from error
        return self._checked(path, answer.status_code, answer.content)

    def _checked(self, path: str, status: int, content: bytes) -> Any:
        try:
            value = json.loads(content)
        except ValueError:
            value = None
        if status != 200:
            detail = value.get("error", value) if isinstance(value, dict) else None
            detail = detail if isinstance(detail, dict) else {}
            words = detail.get("message") or content[:200].decode(errors="replace")
            message = f"{self.url}{path} answered {status}: {words}"
            raise ServerError(message, status=status, field=detail.get("param"))
        return value

    def _lost(self, error: Exception) -> ServerError:
        words = str(error) or type(error).__name__
        return ServerError(f"the server at {self.url} can't be reached, or went away: {words}", field="backend")

    # What Backend says

    async def encode(self, parts: Sequence[TextPart], first: bool) -> list[int]:
        """See Backend. Texts are encoded by the server and remembered."""
        self._open()
        key = (tuple(parts), first)
        task = self._encoded.get(key)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            if len(self._encoded) >= _REMEMBERED:
                self._encoded.pop(next(iter(self._encoded)))
            body = {"parts": [part._asdict() for part in parts], "add_special_tokens": first}
            task = self._encoded[key] = asyncio.ensure_future(self._tokens(body))
        return list(await asyncio.shield(task))

    async def _tokens(self, body: dict[str, Any]) -> list[int]:
        return list((await self._ask("POST", "/tokenize", body))["tokens"])

    async def markers(self) -> ChatMarkers:
        """See Backend."""
        if self._markers is None:
            given = (await self._model_info()).get("chat_markers")
            if not isinstance(given, dict):
                raise ServerError(f"{self.url} does not say what its chat template puts around messages",
                                  field="chat_markers")  # fmt: skip
            self._markers = ChatMarkers.from_json(given)
        return self._markers

    async def _model_info(self) -> dict[str, Any]:
        self._open()
        if self._info is None or (self._info.done() and self._info.exception() is not None):
            self._info = asyncio.ensure_future(self._ask("GET", "/model_info"))
        return await asyncio.shield(self._info)

    async def generate(self, call: Call) -> Reply:
        """See Backend."""
        return self._reply(await self._ask("POST", "/generate", self._body(call)), call)

    async def stream(self, call: Call) -> AsyncGenerator[Reply, None]:
        """See Backend."""
        import httpx

        client, limit = self._open()
        body = {**self._body(call), "stream": True}
        try:
            async with limit, client.stream("POST", "/generate", json=body) as answer:
                if answer.status_code != 200:
                    self._checked("/generate", answer.status_code, await answer.aread())
                finished = False
                async for line in answer.aiter_lines():
                    data = line.removeprefix("data:").strip()
                    if not line.startswith("data:") or data == "[DONE]":
                        continue
                    reply = self._reply(json.loads(data), call)
                    finished = reply.meta.get("finish_reason") is not None
                    yield reply
                if not finished:
                    raise self._lost(RuntimeError("the stream broke off"))
        except httpx.HTTPError as error:
            raise self._lost(error) from error

    def _body(self, call: Call) -> dict[str, Any]:
        sampling = {name: getattr(call.sampling, name) for name in call.given}
        sampling["max_new_tokens"] = call.sampling.max_new_tokens
        if call.sampling.block_length is not None:
            sampling["block_length"] = call.sampling.block_length
        sampling = {name: list(value) if isinstance(value, tuple) else value for name, value in sampling.items()}
        if "logit_bias" in sampling:
            sampling["logit_bias"] = {str(token): bias for token, bias in sampling["logit_bias"]}
        body = {"input_ids": list(call.tokens), "sampling_params": sampling, "shared_prefix": call.shared_prefix}
        if call.canvas is not None:
            body["canvas"] = list(call.canvas)
        return {**body, **{name: value for name, value in self._options.items() if value is not None}}

    def _reply(self, value: dict[str, Any], call: Call) -> Reply:
        if "error" in value:
            error = value["error"]
            raise ServerError(f"{self.url}: {error.get('message', error)}", status=error.get("code"))
        info = value["meta_info"]
        reason = info.get("finish_reason")
        if reason is not None and reason.get("type") in ("abort", "error"):
            raise ServerError(f"{self.url} ended the call: {reason.get('message', reason['type'])}")
        holes = tuple(Filled(hole["text"], tuple(hole["output_ids"])) for hole in value.get("holes", ()))
        if call.canvas is not None and not holes:
            raise ServerError(f"{self.url} knows no canvas templates", field="canvas")
        meta = {"id": info.get("id"), "finish_reason": reason, **figures_of(info)}
        return Reply(value["text"], tuple(value["output_ids"]), meta, holes)

    async def score(
        self, tokens: Sequence[int], choices: Sequence[Sequence[int]], method: str, shared_prefix: int
    ) -> Scored:
        """See Backend."""
        body = {"input_ids": list(tokens), "choices": [list(choice) for choice in choices], "method": method,
                "shared_prefix": shared_prefix}  # fmt: skip
        body |= {name: value for name, value in self._options.items() if value is not None}
        value = await self._ask("POST", "/score", body)
        scores = (tuple(-math.inf if s is None else s for s in one["token_scores"]) for one in value["choices"])
        return Scored(tuple(scores), figures_of(value["meta_info"]))

    async def warm(self, tokens: Sequence[int]) -> dict[str, Any] | None:
        """See Backend."""
        mode = self._options["cache_mode"] or (await self.server_info()).get("cache_mode")
        if mode != "bicache":
            return None
        body = {"input_ids": list(tokens), "sampling_params": {"max_new_tokens": 0}}
        body |= {name: value for name, value in self._options.items() if value is not None}
        return figures_of((await self._ask("POST", "/generate", body))["meta_info"])

    async def pin(self, tokens: Sequence[int]) -> bool:
        """See Backend: not here."""
        return False

    async def unpin(self, tokens: Sequence[int]) -> None:
        """See Backend."""

    async def unconditional(self) -> tuple[int, ...]:
        """See Backend."""
        return (int((await self._model_info())["eos_token_id"]),)

    async def server_info(self) -> dict[str, Any]:
        """See Backend."""
        info: dict[str, Any] = await self._ask("GET", "/server_info")
        return info

    async def flush_cache(self) -> None:
        """See Backend."""
        import httpx

        client, _ = self._open()
        try:
            answer = await client.post("/flush_cache")
        except httpx.HTTPError as error:
            raise self._lost(error) from error
        if answer.status_code != 200:
            raise ServerError(f"{self.url}/flush_cache answered {answer.status_code}: {answer.text[:200]}",
                              status=answer.status_code)  # fmt: skip

    def get_model_name(self) -> str:
        """The model's path, as the server was given it."""
        return str(driver.run(self._model_info())["model_path"])


RuntimeEndpoint = HTTPBackend
"""SGLang's name."""
