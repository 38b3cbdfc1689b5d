"""JSON bodies: parsed, and refused by their number of entries before anything looks at each one.

A body of 8 MB may hold two million of them. Validation, the table of fields and error messages take microseconds for
each, on the loop that serves everybody; parsing takes 10 ns for a number, but 1,000 for a list or an object (the
garbage collector looks at all of them again and again): these are counted before.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from .api_error import ApiError, bad_request
from .state import ServerState, server_state

IDS_PER_TOKEN = 8
"""Lists of token ids with up to so many ids for each token that a request may have get the exact error about length;
longer ones are refused at once."""
_IDS = ("input_ids", "prompt", "canvas", "choices", "tokens")
_MOST_NAMES = 500
_LARGE_BYTES = 64 << 10
_PAUSE = 3
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)


class JSONBodyRoute(APIRoute):
    """A route whose body is parsed and bounded by this module."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See APIRoute."""
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            own = _JSONRequest(request.scope, request.receive)
            try:
                return await handle(own)
            except (HTTPException, RequestValidationError) as error:
                # FastAPI's frame holds the error, whose traceback holds the frame, and with it the body, until the
                # garbage collector runs.
                cause, error.__traceback__ = error.__cause__, None
                if cause is not None:
                    cause.__traceback__ = None
                if isinstance(cause, ApiError):
                    raise cause from None
                raise
            finally:
                if own.is_large:
                    server_state(request).return_memory_soon()

        return bounded


class _JSONRequest(Request):
    is_large = False

    async def json(self) -> Any:
        """The body as JSON. Raises json.JSONDecodeError, ValueError, RecursionError, ApiError."""
        if not hasattr(self, "_json"):
            state = server_state(self)
            body, bound = await self.body(), EntryBound.of(state)
            self.is_large = len(body) > _LARGE_BYTES
            async with _turn(state.large_bodies if self.is_large else None):
                value, error = bound.load(body)
            if error is not None:
                # The exception may live on in a cycle of frames until the garbage collector runs.
                self._body = body = b""
                raise error
            self._json = value
        return self._json


@asynccontextmanager
async def _turn(lock: asyncio.Lock | None) -> AsyncIterator[None]:
    """Large bodies come one after another, with pauses: together they take a quarter of the loop's time at most."""
    if lock is None:
        yield
        return
    async with lock:
        start = time.perf_counter()
        try:
            yield
        finally:
            await asyncio.sleep(_PAUSE * (time.perf_counter() - start))


def parsed(body: bytes) -> Any:
    """The JSON value of a body in UTF-8, as Python's json has it (NaN and half surrogate pairs included), but faster.

    Raises json.JSONDecodeError, UnicodeDecodeError, ValueError, RecursionError.
    """
    try:
        return msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return json.loads(body.decode("utf-8-sig"))


@dataclass(frozen=True, slots=True)
class EntryBound:
    """What a body may have. All checks raise ApiError (400).

    Attributes:
        max_entries: most members of objects and items of lists; lists of whole numbers alone do not count.
        max_tokens: see ServiceInfo; 0 while it is not known (the routes answer 503 then, whatever the body has).
    """

    max_entries: int
    max_tokens: int

    @classmethod
    def of(cls, state: ServerState) -> EntryBound:
        """The bound of a server."""
        max_tokens = state.service.info.max_tokens if state.service.status.state == "up" else 0
        return cls(1000 + 32 * state.config.max_batch + 8 * max_tokens, max_tokens)

    def load(self, body: bytes) -> tuple[Any, Exception | None]:
        """The value of a body that passes all checks, or what is wrong with it: an error that does not hold the body.

        That is an ApiError, or one of `parsed`.
        """
        try:
            self.check_bytes(body)
            value = parsed(body)
            self.check(value)
            return value, None
        except json.JSONDecodeError as error:
            found: Exception = json.JSONDecodeError(error.msg, "", 0)
            found.pos = error.pos  # type: ignore[attr-defined]
            return None, found
        except UnicodeDecodeError as error:
            return None, UnicodeDecodeError(error.encoding, b"", error.start, error.end, error.reason)
        except (ApiError, ValueError, RecursionError) as error:
            error.__context__ = None
            return None, error.with_traceback(None)

    def check_bytes(self, body: bytes) -> None:
        """The number of lists, objects and members of objects, before they are made."""
        likely = body.count(b"[") + body.count(b"{") + body.count(b'":')
        if likely > self.max_entries:
            bare = _STRING.sub(b"", body)
            if max(bare.count(b"[") + bare.count(b"{"), bare.count(b":")) > self.max_entries:
                raise self._too_many("body")

    def check(self, body: Any) -> None:
        """The number of entries, of different names, and of token ids in a list."""
        left, names = self.max_entries, set[str]()
        fields = body if isinstance(body, dict) and len(body) <= _MOST_NAMES else {"body": body}
        names.update(fields)
        for field, value in fields.items():
            found = [value]
            while found:
                one = found.pop()
                if isinstance(one, dict):
                    if len(one) <= _MOST_NAMES:
                        names.update(one)
                    if len(one) > _MOST_NAMES or len(names) > _MOST_NAMES:
                        words = f"one request may have {_MOST_NAMES} different ones"
                        raise bad_request(field, f"{field} has too many names of fields; {words}")
                    parts: Any = one.values()
                elif not isinstance(one, list):
                    continue
                elif one and type(one[0]) is int and self._is_over(field, one):
                    raise self._too_long(field, one)
                elif set(map(type, one)) == {int}:
                    continue
                else:
                    parts = one
                left -= len(parts)
                if left < 0:
                    raise self._too_many(field)
                found += [part for part in parts if isinstance(part, dict | list)]

    def _too_many(self, field: str) -> ApiError:
        message = (
            f"{field} has too many entries in its lists and objects; one request may have {self.max_entries} "
            "(1000 + 32 x max_batch + 8 x the model's maximum)"
        )
        return bad_request(field, message)

    def _is_over(self, field: str, ids: list[int]) -> bool:
        return field in _IDS and 0 < IDS_PER_TOKEN * self.max_tokens < len(ids)

    def _too_long(self, field: str, ids: list[int]) -> ApiError:
        words = f"prompt and canvas may have {self.max_tokens} in all"
        return bad_request(field, f"{field} has a list of {len(ids)} token ids; {words}")
