"""A small HTTP proxy that makes chosen calls go wrong: it refuses, delays, answers 500 after the work was done, or
kills the calling process before or after the call. Every boundary at which it did so is named at the end of the run.

HTTP/1.1 on loopback, one request a connection upstream, that with TLS if need be; what comes through otherwise is what
the caller sent.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.faults.boundaries import hit

Headers = list[tuple[str, str]]
LIMIT = 256 * 1024 * 1024


class Kind(StrEnum):
    REFUSE = "refused"
    """The connection is reset; the server never hears of the call."""
    ANSWER = "told instead"
    """The caller gets the fault's `answer`; the server never hears of the call."""
    ERROR_AFTER = "500 after the work"
    RESET_AFTER = "reset after the work"
    CUT = "cut in the middle of the answer"
    """The caller gets the head and the first `keep` bytes of the body, then the connection closes."""
    DELAY = "delayed"
    """The server gets the call at once; its answer is held back."""
    KILL_BEFORE = "caller killed before"
    KILL_AFTER = "caller killed after the work"


@dataclass
class Fault:
    """What happens to the `nth` call (from 1) whose method and path match; `times` calls from there on.

    The path is matched as the report shows it. `about` is a text that the call must hold, in its target or its body.
    `answer` is what `Kind.ANSWER` says, by default 503. `pid` says whom a fault kills, by default the caller, and
    `whom` what the report calls that process. `fired` counts the calls to which it
    happened.
    """

    kind: Kind
    path: str = ".*"
    method: str = ".*"
    nth: int = 1
    times: int = 1
    about: str = ""
    delay_s: float = 0.0
    keep: int = 0
    answer: Message = field(default_factory=lambda: told(503, b"a fault\n"))
    pid: Callable[[], int] | None = None
    whom: str = "caller"
    seen: int = 0
    fired: int = 0

    def takes(self, call: Call, content: bytes) -> bool:
        if not (re.fullmatch(self.method, call.method) and re.fullmatch(self.path, call.path)):
            return False
        if self.about.encode() not in content:
            return False
        self.seen += 1
        return self.nth <= self.seen < self.nth + self.times


@dataclass(frozen=True)
class Call:
    """A call that came: the proxy's name, the method, the path without its query, as the report shows it; and the range
    of bytes that it asked for."""

    server: str
    method: str
    path: str
    span: str = field(default="", compare=False)


@dataclass
class Message:
    start: str
    headers: Headers
    body: bytes

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name), "")

    def encode(self) -> bytes:
        """With a plain length instead of chunks, and closing."""
        dropped = ("transfer-encoding", "content-length", "connection", "expect", "keep-alive")
        kept = [(key, value) for key, value in self.headers if key.lower() not in dropped]
        kept += [("Content-Length", str(len(self.body))), ("Connection", "close")]
        if self.start.split(" ")[1:2] in (["204"], ["304"]):
            kept = [pair for pair in kept if pair[0] != "Content-Length"]
        head = "".join(f"{key}: {value}\r\n" for key, value in kept)
        return f"{self.start}\r\n{head}\r\n".encode("latin-1") + self.body


def told(status: int, body: bytes, **headers: str) -> Message:
    """An answer for `Kind.ANSWER`."""
    named = {"Content-Type": "text/plain", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return Message(f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", list(named.items()), body)


@dataclass
class FaultProxy:
    """`with FaultProxy("sink", port) as proxy:` listens on `proxy.port` and forwards to `upstream`.

    `name` names who talks to whom in the report. A fault is `proxy.add(Fault(...))`, `proxy.clear()` takes all away;
    `down()` and `up()` close and open the port itself. `simplify` shortens paths for the report. Proxies that share
    one list of `calls` know in which order they came.
    """

    name: str
    upstream: int
    port: int = 0
    faults: list[Fault] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    simplify: Callable[[str], str] = lambda path: path
    tls: ssl.SSLContext | None = None
    """How the server is trusted, if it speaks TLS."""

    def __enter__(self) -> FaultProxy:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{self.name}")
        self._thread.start()
        self._tasks: set[asyncio.Task[None]] = set()
        self._errors: list[Exception] = []
        self._server: asyncio.Server | None = None
        self.up()
        return self

    def __exit__(self, _t: type[BaseException] | None, _e: BaseException | None, _b: TracebackType | None) -> None:
        self.down()
        self._do(self._cancel())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        if self._errors:
            raise ExceptionGroup(f"inside the proxy {self.name}", self._errors)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, fault: Fault) -> Fault:
        self.faults.append(fault)
        return fault

    def clear(self) -> None:
        self.faults.clear()

    def down(self) -> None:
        """Nobody listens any more: a caller's connection is refused by the kernel."""
        self._do(self._close())

    def up(self) -> None:
        self._do(self._listen())

    # --- inside the loop ---

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, limit=1 << 20)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _cancel(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await _read(reader, writer)
            if request is not None:
                await self._handle(request, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # one side left, which is what these tests are about
        except Exception as error:  # noqa: BLE001  # the outermost boundary of a call: `__exit__` raises it
            self._errors.append(error)
        finally:
            writer.close()

    async def _handle(self, request: Message, writer: asyncio.StreamWriter) -> None:
        method, target, _ = request.start.split(" ", 2)
        call = Call(self.name, method, self.simplify(target.partition("?")[0]), request.header("range"))
        self.calls.append(call)
        content = target.encode() + b" " + request.body
        fault = next((fault for fault in list(self.faults) if fault.takes(call, content)), None)
        kind = fault.kind if fault else None
        if fault and kind in (Kind.REFUSE, Kind.KILL_BEFORE):
            _happens(fault, call, writer)
            _reset(writer)
            return
        answer = fault.answer if fault and kind is Kind.ANSWER else await self._forward(request)
        if fault:
            _happens(fault, call, writer)
        if fault and kind is Kind.DELAY:
            await asyncio.sleep(fault.delay_s)
        elif fault and kind is Kind.CUT:
            head = answer.encode().removesuffix(answer.body)
            writer.write(head + answer.body[: fault.keep])
            await writer.drain()
            writer.close()
            return
        elif kind is Kind.ERROR_AFTER:
            answer = Message("HTTP/1.1 500 Internal Server Error", [("Content-Type", "text/plain")], b"a fault\n")
        elif fault and kind is not Kind.ANSWER:
            _reset(writer)
            return
        writer.write(_head_only(answer) if method == "HEAD" else answer.encode())
        await writer.drain()

    async def _forward(self, request: Message) -> Message:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream, limit=1 << 20, ssl=self.tls)
        try:
            writer.write(request.encode())
            await writer.drain()
            answer = await _read(reader, None, head=request.start.startswith("HEAD "))
        finally:
            writer.close()
        if answer is None:
            raise ConnectionResetError("the server closed without an answer")
        return answer


def _happens(fault: Fault, call: Call, writer: asyncio.StreamWriter) -> None:
    """Count it, for the test and for the report, and kill who is to be killed."""
    if fault.kind in (Kind.KILL_BEFORE, Kind.KILL_AFTER):
        pid = fault.pid() if fault.pid else _caller(writer)
        assert pid != os.getpid(), "a test calls through a proxy that kills its callers"
        os.kill(pid, signal.SIGKILL)
    fault.fired += 1
    what = str(fault.kind).replace("caller", fault.whom).replace("told", f"told {fault.answer.start.split(' ')[1]}")
    hit(call.server, f"{call.method} {call.path}", what)


def _caller(writer: asyncio.StreamWriter) -> int:
    """The process at the other end of a connection: the kernel knows the socket, and /proc who holds it.

    Both change while they are read, so one look may miss it.
    """
    theirs, ours = (f"0100007F:{writer.get_extra_info(name)[1]:04X}" for name in ("peername", "sockname"))
    for _ in range(100):
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        held = {f"socket:[{line[9]}]" for line in lines if line[1:3] == [theirs, ours]}
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it ended meanwhile, or one of its files was closed
                if any(str(entry.readlink()) in held for entry in (process / "fd").iterdir()):
                    return int(process.name)
    raise AssertionError("the caller is gone")


def _reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _head_only(answer: Message) -> bytes:
    """The answer to a HEAD keeps the length of the body that is not sent."""
    kept = [(key, value) for key, value in answer.headers if key.lower() not in ("connection", "transfer-encoding")]
    head = "".join(f"{key}: {value}\r\n" for key, value in [*kept, ("Connection", "close")])
    return f"{answer.start}\r\n{head}\r\n".encode("latin-1")


async def _read(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter | None, *, head: bool = False
) -> Message | None:
    """One message: by length, by chunks, or (an answer) to the end. None when the other side sent nothing."""
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    start, *lines = raw[:-4].decode("latin-1").split("\r\n")
    if writer is None and start.split(" ")[1].startswith("1"):
        return await _read(reader, writer, head=head)  # 100 Continue
    headers = [(line.partition(":")[0].strip(), line.partition(":")[2].strip()) for line in lines]
    message = Message(start, headers, b"")
    if writer is not None and message.header("expect").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    if head:
        return message
    if message.header("transfer-encoding").lower() == "chunked":
        message.body = await _chunks(reader)
    elif length := message.header("content-length"):
        message.body = await reader.readexactly(int(length))
    elif writer is None and start.split(" ")[1] not in ("204", "304"):
        message.body = await reader.read(LIMIT)
    return message


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    parts = []
    while size := int((await reader.readline()).partition(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readline()
    while (await reader.readline()).strip():
        pass  # trailers
    return b"".join(parts)
