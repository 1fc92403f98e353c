"""Where events go: a Broker or the trigger itself, over HTTP. Decides nothing about events.

aiohttp is imported, and the client made, at the first event: the host forks after it has loaded the function, and a
cold start should not pay for what readiness does not need.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from aegis.errors import Permanent, Temporary
from aegis.events import CloudEvent, encode
from aegis.http import SecretFile

if TYPE_CHECKING:
    from aiohttp import ClientSession

REFUSALS = frozenset({400, 413, 422})
"""Answers that say the event itself is at fault. All others may change: a missing Broker, a wrong token, a 3xx."""
MAX_ANSWER = 64 * 1024
"""How much of an answer is read to keep the connection; an answer that is longer costs it."""
IDLE_S = 30.0
"""Idle connections are closed before the usual 60 to 90 s of proxies and servers, so that none dies in use."""


class Refused(Permanent):
    """The sink refuses this event for good."""


class Sink(Protocol):
    async def send(self, event: CloudEvent) -> None:
        """Return once the sink has the event. Raises Refused or Temporary."""

    def state(self) -> str:
        """How the sink was lately, for people."""

    async def close(self) -> None: ...


class HttpSink:
    """POSTs events in binary mode over kept connections, at most `concurrency` at once."""

    def __init__(
        self,
        url: str,
        *,
        concurrency: int,
        timeout_s: float,
        extensions: Mapping[str, str] | None = None,
        token: SecretFile | None = None,
        ca_certs: str = "",
    ) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._extensions = dict(extensions or {})
        self._token = token
        self._ca_certs = ca_certs
        self._turns = asyncio.Semaphore(concurrency)
        self._session: ClientSession | None = None
        self._dropped: tuple[type[Exception], ...] = (ConnectionError,)
        self._failed: tuple[type[Exception], ...] = (OSError,)
        self._last: tuple[str | int, float] | None = None

    async def send(self, event: CloudEvent) -> None:
        if self._extensions:
            event = replace(event, extensions={**event.extensions, **self._extensions})
        headers, body = encode(event)
        if self._token is not None:
            headers["authorization"] = "Bearer " + self._token.read().decode("latin-1")
        async with self._turns:
            try:
                status = await self._post(headers, body)
            except Temporary as exc:
                self._last = (str(exc), monotonic())
                raise
        self._last = (status, monotonic())
        if status in REFUSALS:
            raise Refused(f"the sink refused the event with {status}", {"sink": f"answered {status}"})
        if not 200 <= status < 300:
            raise Temporary(f"the sink answered {status}")

    def state(self) -> str:
        if self._last is None:
            return "no event sent yet"
        what, when = self._last
        said = f"answered {what}" if isinstance(what, int) else what
        return f"{said}, {monotonic() - when:.0f} s ago"

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _post(self, headers: Mapping[str, str], body: bytes) -> int:
        session = self._session or self._connect()
        for last in (False, True):
            try:
                async with session.post(self._url, data=body, headers=headers, allow_redirects=False) as answer:
                    if not answer.content.at_eof():
                        await answer.content.read(MAX_ANSWER)
                    return answer.status
            except TimeoutError:
                raise Temporary(f"the sink did not answer within {self._timeout_s:g} s") from None
            except self._dropped as exc:
                # Likely a kept connection that the sink closed meanwhile. An event may be sent twice: same id.
                if last:
                    raise Temporary(f"the sink cannot be reached: {type(exc).__name__}") from exc
            except self._failed as exc:
                raise Temporary(f"the sink cannot be reached: {type(exc).__name__}") from exc
        raise AssertionError("unreachable")

    def _connect(self) -> ClientSession:
        from aiohttp import (
            ClientError,
            ClientOSError,
            ClientSession,
            ClientTimeout,
            DummyCookieJar,
            ServerDisconnectedError,
            TCPConnector,
        )

        # ClientOSError is what aiohttp makes of a reset while it writes.
        self._dropped = (ServerDisconnectedError, ClientOSError, ConnectionError)
        self._failed = (ClientError, OSError)
        context = None
        if self._ca_certs:
            import ssl

            context = ssl.create_default_context()
            context.load_verify_locations(cadata=self._ca_certs)
        self._session = ClientSession(
            connector=TCPConnector(limit=0, keepalive_timeout=IDLE_S, ssl=context or True),
            cookie_jar=DummyCookieJar(),
            # Timers on the socket cost a third of one around the whole exchange, and a sink sends no long answers.
            timeout=ClientTimeout(total=None, sock_connect=self._timeout_s, sock_read=self._timeout_s),
            auto_decompress=False,
        )
        return self._session
