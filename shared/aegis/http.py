"""A function as `handle(request) -> response`, neutral to its host, and the adapter to functions-framework.

Here stand the parts that both functions need: bounded reading, credentials, health and metrics paths, the deadline
and the outermost exception boundary. What a path does is the function's own.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import ipaddress
import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from aegis.errors import Permanent, Temporary
from aegis.telemetry import Metrics

log = logging.getLogger("aegis.http")

DRAIN_LIMIT = 64 * 1024 * 1024
"""How much of an oversized body is read and thrown away. Closing with an unread body resets the connection, and a
413 would then look retryable to Alertmanager."""
SECRET_CHECK_S = 1.0
"""How often a secret's file is looked at for a change: a rotated secret is in use a second later."""
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip", "via", "k-proxy-request")
_BY_A_PAGE = ("origin", "sec-fetch-")
"""Beginnings of the headers that a browser adds to what a page sends, and that no page can take away."""


class HttpError(Exception):
    """An answer that ends the request early."""

    def __init__(self, status: int, message: str, faults: Mapping[str, str] | None = None, **headers: str) -> None:
        super().__init__(message)
        self.response = error(status, message, faults, headers=headers)


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def error(
    status: int,
    message: str,
    faults: Mapping[str, str] | None = None,
    *,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A JSON answer that names what is wrong; ASCII only, so that foreign text cannot steer a terminal."""
    body: dict[str, Any] = {"error": message}
    if faults:
        body["faults"] = dict(faults)
    return as_json(status, body, headers)


def as_json(status: int, body: Any, headers: Mapping[str, str] | None = None) -> Response:
    return Response(status, json.dumps(body).encode() + b"\n", {"content-type": "application/json", **(headers or {})})


@dataclass(slots=True)
class Request:
    """One request. `headers` are lower-case, repeated ones joined with a comma; `peer` is the client's address."""

    method: str
    path: str
    headers: Mapping[str, str]
    chunks: AsyncIterator[bytes]
    peer: str = ""

    @property
    def loopback(self) -> bool:
        """Whether a program on this machine calls.

        Not if a proxy says that it forwards: then nobody knows. Nor a web page in this machine's browser, which may
        be anybody's: it is known by its headers or, where it got here by a name of its own that now leads to
        loopback, by the Host. (HTTP/1.0 need not name a host; every browser does.)
        """
        if any(name in self.headers for name in _FORWARDED):
            return False
        if any(name.startswith(_BY_A_PAGE) for name in self.headers):
            return False
        host = self.headers.get("host")
        return _is_loopback(self.peer) and (host is None or _names_loopback(host))

    async def read(self, limit: int, *, within_s: float) -> bytes:
        """Return the body. Raises HttpError: 413 over `limit` bytes (after draining it), 408-like stalls as 503."""
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(within_s):
                async for chunk in self.chunks:
                    size += len(chunk)
                    if size <= limit:
                        parts.append(chunk)
                    elif size > DRAIN_LIMIT:
                        break
                    else:
                        parts.clear()
        except TimeoutError:
            raise HttpError(503, f"the body did not arrive within {within_s:g} s") from None
        if size > limit:
            raise HttpError(413, f"the body is larger than {limit} bytes")
        return b"".join(parts)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _names_loopback(host: str) -> bool:
    """Whether a Host header is localhost or an address of loopback, with or without a port."""
    found = _HOST.fullmatch(host.strip().lower())
    return found is not None and (found["name"] == "localhost" or _is_loopback(found["name"] or found["six"]))


_HOST = re.compile(r"(?:(?P<name>[a-z0-9.]+)|\[(?P<six>[0-9a-f:.]+)\])(?::[0-9]{1,5})?", re.ASCII)

Handler = Callable[[Request], Awaitable[Response]]


class Function:
    """Routes, health, metrics and the last line of defence of one function."""

    def __init__(
        self,
        routes: Mapping[str, tuple[Iterable[str], Handler]],
        metrics: Metrics,
        *,
        problems: Callable[[], Sequence[str]],
        status: Callable[[], Awaitable[Mapping[str, str]]],
        max_in_flight: int,
        deadline_s: float,
    ) -> None:
        """`routes` maps a path to its methods and handler; `problems` lists what makes the function not ready
        (settings, never dependencies); `status` says how the dependencies are, for people."""
        self._routes = {path: (frozenset(methods), handler) for path, (methods, handler) in routes.items()}
        self._metrics = metrics
        self._problems = problems
        self._status = status
        self._max_in_flight = max_in_flight
        self._deadline_s = deadline_s
        self._in_flight = 0

    async def handle(self, request: Request) -> Response:
        """Answer one request; never raises."""
        started = monotonic()
        response = await self._answer(request)
        if request.path in self._routes:
            self._metrics.request(request.path, response.status, monotonic() - started)
        return response

    async def _answer(self, request: Request) -> Response:
        route = self._routes.get(request.path)
        if route is None:
            return await self._own_paths(request)
        methods, handler = route
        if request.method not in methods:
            return error(405, f"{request.method} is not for this path", headers={"allow": ", ".join(sorted(methods))})
        if self._in_flight >= self._max_in_flight:
            return error(503, "busy: too many requests in flight")
        self._in_flight += 1
        try:
            async with asyncio.timeout(self._deadline_s):
                return await handler(request)
        except HttpError as exc:
            return exc.response
        except Permanent as exc:
            return error(422, exc.message, exc.faults)
        except Temporary as exc:
            log.warning("temporary failure", extra={"error": str(exc)})
            return error(503, str(exc))
        except TimeoutError:
            return error(503, f"not done within {self._deadline_s:g} s")
        except Exception:  # the outermost boundary: an unknown fault must look retryable, and must be seen
            log.exception("unexpected failure")
            return error(503, "unexpected failure; see the log")
        finally:
            self._in_flight -= 1

    async def _own_paths(self, request: Request) -> Response:
        if request.path not in ("/health/liveness", "/health/readiness", "/status", "/metrics"):
            return error(404, "no such path")
        if request.method not in ("GET", "HEAD"):
            return error(405, f"{request.method} is not for this path", headers={"allow": "GET, HEAD"})
        match request.path:
            case "/health/liveness":
                return Response(200, b"alive\n", {"content-type": "text/plain"})
            case "/health/readiness":
                problems = list(self._problems())
                return (
                    as_json(503, {"problems": problems})
                    if problems
                    else Response(200, b"ready\n", {"content-type": "text/plain"})
                )
            case "/metrics":
                return Response(200, self._metrics.render(), {"content-type": Metrics.CONTENT_TYPE})
            case _:
                return as_json(200, dict(await self._status()))


# --- credentials -------------------------------------------------------------------------------------------------


class SecretFile:
    """A secret mounted as a file, read again when the file changes. Never in argv, environment, logs or errors."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = monotonic) -> None:
        self._path = path
        self._clock = clock
        self._checked = -SECRET_CHECK_S
        self._stamp: tuple[int, int, int] | None = None
        self._value = b""

    def problem(self) -> str | None:
        """What is wrong with the file, or None."""
        try:
            self.read()
        except Temporary as exc:
            return str(exc)
        return None

    def read(self) -> bytes:
        """Return the secret without trailing line ends. Raises Temporary if there is none to read."""
        now = self._clock()
        if now - self._checked < SECRET_CHECK_S and self._value:
            return self._value
        try:
            stat = self._path.stat()
            stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if stamp != self._stamp:
                self._value = self._path.read_bytes().strip(b"\r\n")
                self._stamp = stamp
        except OSError as exc:
            raise Temporary(f"the secret file {self._path} cannot be read: {exc.strerror}") from None
        if not self._value:
            raise Temporary(f"the secret file {self._path} is empty")
        self._checked = now
        return self._value


@dataclass(frozen=True, slots=True)
class Credential:
    """Who may call. `user` set means basic, else bearer; `environments` are those that the caller may speak for."""

    name: str
    secret: SecretFile
    user: str | None = None
    environments: frozenset[str] = frozenset({"*"})


def authenticate(header: str | None, credentials: Sequence[Credential]) -> Credential | None:
    """Return the credential that an Authorization header proves, or None. The time does not depend on which."""
    scheme, _, rest = (header or "").partition(" ")
    rest = rest.strip()
    found = None
    for credential in credentials:
        if credential.user is None:
            offered = rest.encode("latin-1", "replace") if scheme.lower() == "bearer" else b""
            expected = credential.secret.read()
        else:
            offered = _basic(rest) if scheme.lower() == "basic" else b""
            expected = credential.user.encode() + b":" + credential.secret.read()
        # Digests have one length, so the comparison does not tell how long the secret is.
        if hmac.compare_digest(hashlib.sha256(offered).digest(), hashlib.sha256(expected).digest()) and found is None:
            found = credential
    return found


def _basic(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


# --- hosts ------------------------------------------------------------------------------------------------------


def from_asgi(scope: Mapping[str, Any], chunks: AsyncIterator[bytes]) -> Request:
    """A request as an ASGI host gives it."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    peer = scope.get("client")
    return Request(scope["method"], scope["path"], headers, chunks, str(peer[0]) if peer else "")


# --- functions-framework -----------------------------------------------------------------------------------------


def functions_framework_entry(function: Callable[[], Function]) -> Callable[[Any], Awaitable[Any]]:
    """Adapt a function to functions-framework's ASGI mode as an HTTP function.

    Not as a CloudEvent function: that answers 200 with the body `OK`, which a Broker takes for a failure. `function`
    is called at the first request, after the host has forked.
    """
    from starlette.responses import Response as StarletteResponse  # only this host has it

    made: list[Function] = []

    async def main(request: Any) -> Any:
        if not made:
            made.append(function())
        response = await made[0].handle(_from_starlette(request))
        return StarletteResponse(response.body, response.status, dict(response.headers))

    return main


def _from_starlette(request: Any) -> Request:
    return from_asgi(request.scope, _body(request))


async def _body(request: Any) -> AsyncIterator[bytes]:
    from starlette.requests import ClientDisconnect

    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect as exc:  # a sender's timeout: ordinary, and nobody is left to read the answer
        raise HttpError(503, "the caller left before its body was complete") from exc
