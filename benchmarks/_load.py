"""A closed-loop HTTP load, a sink and a way to run a server on a core of its own. Raw protocols: far cheaper than
what they measure, so that one core carries load and sink beside the server's core."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results"


def cores() -> tuple[int, int]:
    """The server's core and that of load and sink; the same one where there is no other."""
    found = sorted(os.sched_getaffinity(0))
    return found[0], found[-1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(url: str, timeout: float = 1.0) -> int:
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:  # noqa: S310  # loopback
            return int(answer.status)
    except urllib.error.HTTPError as exc:
        return exc.code
    except OSError:
        return 0


@contextmanager
def server(command: Sequence[str], env: Mapping[str, str], ready: str, core: int) -> Iterator[tuple[int, float]]:
    """Run a server on one core until the block ends; give its pid and the seconds from start to the first 200."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "", **env},
        cwd=ROOT,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),  # one thread so far
        stderr=subprocess.DEVNULL,
    )
    try:
        while get(ready) != 200:
            if process.poll() is not None or time.perf_counter() - started > 20:
                raise RuntimeError(f"{command} does not get ready")
            time.sleep(0.002)
        yield process.pid, time.perf_counter() - started
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def memory_mib(pid: int) -> dict[str, float]:
    """PSS and RSS of a process and its children, in MiB."""
    pids = [pid]
    with suppress(OSError):
        pids += [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    total = {"pss": 0.0, "rss": 0.0}
    for one in pids:
        for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name.lower() in total:
                total[name.lower()] += int(rest.split()[0]) / 1024
    return {name: round(value, 1) for name, value in total.items()}


class SinkProtocol(asyncio.Protocol):
    """Answers 202 to each request, after `delay_s`. Requests on one connection come one at a time."""

    ANSWER = b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n"

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a TCP transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._buffer) < end + 4 + length:
                return
            self._buffer = self._buffer[end + 4 + length :]
            self._sink.count += 1
            if self._sink.delay_s:
                asyncio.get_running_loop().call_later(self._sink.delay_s, self._answer)
            else:
                self._answer()

    def _answer(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(self.ANSWER)


@dataclass
class Sink:
    delay_s: float = 0.0
    count: int = 0
    port: int = 0

    async def start(self) -> asyncio.Server:
        listener = await asyncio.get_running_loop().create_server(lambda: SinkProtocol(self), "127.0.0.1", 0)
        self.port = listener.sockets[0].getsockname()[1]
        return listener


class Caller(asyncio.Protocol):
    """One kept connection that sends a request, waits for its answer, and sends the next."""

    def __init__(self, requests: Callable[[], bytes | None], done: Callable[[float, int], None]) -> None:
        self._requests = requests
        self._done = done
        self._buffer = b""
        self._began = 0.0
        self.finished = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a TCP transport
        self._send()

    def _send(self) -> None:
        request = self._requests()
        assert self._transport is not None
        if request is None:
            self._transport.close()
            if not self.finished.done():
                self.finished.set_result(None)
            return
        self._began = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self._buffer) < end + 4 + length:
            return
        self._buffer = self._buffer[end + 4 + length :]
        self._done(time.perf_counter() - self._began, int(head[9:12]))
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.finished.done():
            self.finished.set_exception(exc or ConnectionResetError("the server closed the connection"))


@dataclass
class Measured:
    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)

    def percentile_ms(self, share: float) -> float:
        ordered = sorted(self.latencies_s)
        return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)


async def load(
    port: int, requests: Sequence[bytes], *, in_flight: int, seconds: float | None = None, count: int | None = None
) -> Measured:
    """Send requests in turn over `in_flight` connections for a time or a count."""
    measured = Measured()
    began = time.perf_counter()
    sent = 0

    def following() -> bytes | None:
        nonlocal sent
        over = (seconds is not None and time.perf_counter() - began >= seconds) or sent == count
        if over:
            return None
        sent += 1
        return requests[sent % len(requests)]

    def done(latency: float, status: int) -> None:
        measured.latencies_s.append(latency)
        measured.statuses[status] = measured.statuses.get(status, 0) + 1

    loop = asyncio.get_running_loop()
    callers = [
        (await loop.create_connection(lambda: Caller(following, done), "127.0.0.1", port))[1] for _ in range(in_flight)
    ]
    await asyncio.gather(*[caller.finished for caller in callers])
    measured.seconds = time.perf_counter() - began
    return measured


def post(path: str, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    named = {"content-type": "application/json", **(headers or {}), "content-length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    return f"POST {path} HTTP/1.1\r\nhost: localhost\r\n{head}\r\n".encode() + body


def run(command: list[str], env: Mapping[str, str], cwd: Path) -> tuple[float, float, str]:
    """Wall seconds, peak MiB of the largest process, and what a program of Python printed."""
    began = time.perf_counter()
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen([sys.executable, *command], env=dict(env), cwd=cwd, stdout=out)
        _, status, used = os.wait4(process.pid, 0)
        took = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        said = out.read().decode()
    assert process.returncode == 0, said
    return took, used.ru_maxrss / 1024, said


def median(runs: Sequence[Mapping[str, Any]], *path: str) -> float:
    """Of the values under a path of keys, one a run."""
    values: list[float] = []
    for run in runs:
        value: Any = run
        for key in path:
            value = value[key]
        values.append(value)
    return statistics.median(values)


Bound = tuple[str, float, str, float]
"""What, measured, `>=` or `<=`, the bound."""


def report(name: str, title: str, table: Sequence[str], bounds: Sequence[Bound], runs: Any) -> int:
    """Print the figures, keep them with the raw ones in results/, and give the exit code: 1 if a bound is broken."""
    where = f"Python {platform.python_version()}, {os.cpu_count()} cores"
    lines = [f"{title} {where}.", "", *table]
    if bounds:
        lines += ["", "| ratio | measured | bound | holds |", "|---|---|---|---|"]
    holds = {}
    for what, value, sign, bound in bounds:
        holds[what] = value >= bound if sign == ">=" else value <= bound
        lines.append(f"| {what} | {value:.3g} | {sign} {bound:g} | {'yes' if holds[what] else 'NO'} |")
    text = "\n".join(lines) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text)
    (RESULTS / f"{name}.json").write_text(json.dumps({"about": where, "runs": runs, "holds": holds}, indent=1) + "\n")
    print("\n" + text)
    return 0 if all(holds.values()) else 1
