"""The server that a chat in the terminal talks to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import httpx

from ..runtime.errors import EngineError, InvalidRequestError

Event = dict[str, Any]
_TIMEOUT = httpx.Timeout(30.0, read=None)


class ChatServer:
    """Calls one server. Every method raises EngineError if it can't be reached, InvalidRequestError if it refuses.

    Args:
        url: its address.
        key: the API key that it asks for; None: none.
        transport: of the HTTP client, for tests.
    """

    def __init__(self, url: str, key: str | None = None, transport: httpx.BaseTransport | None = None):
        self.url = url.rstrip("/")
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._client = httpx.Client(base_url=self.url, headers=headers, timeout=_TIMEOUT, transport=transport)

    def __enter__(self) -> ChatServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._client.close()

    def get(self, path: str) -> Any:
        """The JSON of a GET."""
        try:
            response = self._client.get(path)
            _check(response)
            return response.json()
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def ask(self, body: dict[str, Any]) -> Iterator[Event]:
        """Chunks of a chat completion with snapshots of its canvas."""
        asked = {**body, "stream": True, "stream_mode": "denoise", "stream_options": {"include_usage": True}}
        try:
            with self._client.stream("POST", "/v1/chat/completions", json=asked) as response:
                if response.status_code != 200:
                    response.read()
                _check(response)
                for line in response.iter_lines():
                    data = line.removeprefix("data: ")
                    if data == "[DONE]":
                        return
                    if data:
                        event = json.loads(data)
                        if "error" in event:
                            raise EngineError(event["error"]["message"])
                        yield event
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: httpx.HTTPError) -> EngineError:
        reason = f"{type(error).__name__}: {error}"
        return EngineError(f"no answer from {self.url} ({reason}); shoal serve shop, or make serve, starts a server")


def _check(response: httpx.Response) -> None:
    if response.status_code == 200:
        return
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = f"the server answered {response.status_code}"
    raise InvalidRequestError(message, field="server", value=response.status_code)
