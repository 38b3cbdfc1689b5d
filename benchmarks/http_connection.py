"""A cheap client of an HTTP server."""

from __future__ import annotations

import asyncio
import json
from typing import Any


class Connection:
    """A keep-alive HTTP/1.1 connection that costs little: one request at a time."""

    def __init__(self, port: int):
        self._port = port
        self._streams: Any = None

    async def post(self, path: str, body: dict[str, Any]) -> bytes:
        """The body of the reply, decoded from chunks where it comes in chunks."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert answer.startswith(b"http/1.1 200"), answer
        if b"content-length:" in answer:
            return await reader.readexactly(int(answer.split(b"content-length:")[1].split(b"\r\n")[0]))
        parts = []
        while size := int(await reader.readline(), 16):
            parts.append((await reader.readexactly(size + 2))[:-2])
        await reader.readline()
        return b"".join(parts)
