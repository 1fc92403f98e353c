"""The limits: bare ASGI apps that parse the same body and post as many events, with a raw pool or with aiohttp."""

from __future__ import annotations

import asyncio
import json
import os
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiohttp import ClientSession

PORT = int(os.environ.get("SINK_PORT", "0"))
CONCURRENCY = 16
BODY = b'{"labels":' + b"x" * 620 + b"}"  # as long as a drift event
HEADERS = {
    "content-type": "application/json",
    "ce-specversion": "1.0",
    "ce-type": "dev.aegis.drift.detected.v1",
    "ce-source": "/alertmanager/default",
    "ce-id": "0" * 32,
    "ce-subject": "default/churn/7",
    "ce-time": "2026-01-01T00:00:00.000Z",
    "ce-severity": "warning",
    "ce-traceparent": "00-" + "0" * 32 + "-" + "0" * 16 + "-01",
    "ce-seal": "0" * 64,
}
RAW = (
    b"POST / HTTP/1.1\r\nhost: localhost\r\n"
    + b"".join(f"{name}: {value}\r\n".encode() for name, value in HEADERS.items())
    + f"content-length: {len(BODY)}\r\n\r\n".encode()
    + BODY
)
Post = Callable[[], Awaitable[None]]


class Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.answered: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a TCP transport

    def post(self) -> asyncio.Future[None]:
        assert self._transport is not None
        self.answered = asyncio.get_running_loop().create_future()
        self._transport.write(RAW)
        return self.answered

    def data_received(self, data: bytes) -> None:
        if self.answered is not None and data.startswith(b"HTTP/1.1 202"):
            self.answered.set_result(None)


class Raw:
    """A pool of kept sockets."""

    def __init__(self) -> None:
        self._idle: deque[Connection] = deque()
        self._turns = asyncio.Semaphore(CONCURRENCY)

    async def post(self) -> None:
        async with self._turns:
            if self._idle:
                connection = self._idle.pop()
            else:
                loop = asyncio.get_running_loop()
                connection = (await loop.create_connection(Connection, "127.0.0.1", PORT))[1]
            await connection.post()
            self._idle.append(connection)


class Aiohttp:
    """The same client library as the receiver's, as its manual shows it."""

    def __init__(self) -> None:
        self._session: ClientSession | None = None

    async def post(self) -> None:
        if self._session is None:
            import aiohttp

            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONCURRENCY))
        async with self._session.post(f"http://127.0.0.1:{PORT}/", data=BODY, headers=HEADERS) as answer:
            await answer.read()


def make(client: Callable[[], Raw | Aiohttp]) -> Callable[[Any, Any, Any], Awaitable[None]]:
    clients: list[Raw | Aiohttp] = []

    async def worker(events: list[Any]) -> None:
        while events:
            events.pop()
            await clients[0].post()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        if scope["method"] == "POST":
            body, more = b"", True
            while more:
                message = await receive()
                body += message.get("body", b"")
                more = message.get("more_body", False)
            alerts = json.loads(body)["alerts"]
            if not clients:
                clients.append(client())
            await asyncio.gather(*[worker(alerts) for _ in range(min(CONCURRENCY, len(alerts)))])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    return app


raw = make(Raw)
aiohttp_app = make(Aiohttp)
