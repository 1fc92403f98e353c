"""The adapter to func-python, the host that `kn func` puts around a function.

As an HTTP function. func-python's CloudEvent flavour would decode events before us: it reads a body of any size,
answers a batch and every path that carries no event by itself, and puts messages of exceptions into answers.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from aegis.errors import Permanent
from aegis.http import DRAIN_LIMIT, Function, HttpError, Request, Response, from_asgi

log = logging.getLogger("aegis.func_python")

DRAIN_WITHIN_S = 5.0
"""For what an early answer has left unread: hypercorn closes a connection with an unread body, and the caller then
sees a reset in place of the answer."""

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Hosted:
    """What `new()` returns. The host asks `alive` and `ready` for the paths under /health and sends all others to
    `handle`. No exception leaves them: its message would go to the caller, and its traceback nowhere."""

    def __init__(self, make: Callable[[], Function]) -> None:
        """Ends the process if the settings are such that the function cannot be made."""
        try:
            self._function = make()
        except Permanent as exc:
            sys.exit(str(exc))

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. After an unexpected failure nothing is sent, which the host makes an empty 500."""
        try:
            body = _Body(receive)
            response = await self._function.handle(from_asgi(scope, body.chunks()))
            await body.drain()
            await send({"type": "http.response.start", "status": response.status, "headers": _encoded(response)})
            await send({"type": "http.response.body", "body": response.body})
        except Exception:  # else func-python sends its text to the caller
            log.exception("unexpected failure")

    def alive(self) -> tuple[bool, str]:
        return self._health("/health/liveness")

    def ready(self) -> tuple[bool, str]:
        """Whether the function is ready, and the same text that other hosts answer."""
        return self._health("/health/readiness")

    def _health(self, path: str) -> tuple[bool, str]:
        answer = self._function.handle(Request("GET", path, {}, _nothing()))
        try:
            answer.send(None)  # health waits for nothing, so one step brings its answer
        except StopIteration as done:
            response: Response = done.value
            return response.status == 200, response.body.decode()
        except Exception:  # as above
            log.exception("unexpected failure")
        answer.close()
        return False, "unexpected failure; see the log\n"


class _Body:
    """The body of a request, as it arrives."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._more = True

    async def chunks(self) -> AsyncIterator[bytes]:
        while self._more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._more = False
                raise HttpError(503, "the caller left before its body was complete")
            self._more = message.get("more_body", False)
            yield message.get("body", b"")

    async def drain(self) -> None:
        size = 0
        try:
            async with asyncio.timeout(DRAIN_WITHIN_S):
                async for chunk in self.chunks():
                    size += len(chunk)
                    if size > DRAIN_LIMIT:
                        return
        except (TimeoutError, HttpError):
            return  # the answer goes out all the same


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield


def _encoded(response: Response) -> list[tuple[bytes, bytes]]:
    """The headers as the host sends them; with a length, or it would send every answer in chunks."""
    headers = dict(response.headers)
    if response.status != 204:
        headers["content-length"] = str(len(response.body))
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
