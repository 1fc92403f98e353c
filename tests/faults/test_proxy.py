"""The fault proxy itself: without a fault it changes nothing, with one it does what it says and keeps count."""

from __future__ import annotations

import http.client
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.faults.boundaries import HITS, lines
from tests.faults.proxy import Call, Fault, FaultProxy, Kind


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    done: list[tuple[str, str, bytes]]

    def answer(self) -> None:
        length = self.headers.get("Content-Length")
        body = self.rfile.read(int(length)) if length else b""
        self.server.done.append((self.command, self.path, body))  # type: ignore[attr-defined]
        if self.path == "/empty":
            self.send_response(204)
            self.end_headers()
            return
        self.send_response(201)
        self.send_header("X-Seen", self.headers.get("X-Sent", ""))
        if self.path == "/chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
            return
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_HEAD = answer  # noqa: N815  # the library's names

    def log_message(self, *_: object) -> None: ...


class Server(ThreadingHTTPServer):
    done: list[tuple[str, str, bytes]]


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.done = []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join(10)
    server.server_close()


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultProxy]:
    before = HITS.copy()
    with FaultProxy("test", server.server_port) as proxy:
        yield proxy
    HITS.clear()
    HITS.update(before)


def ask(
    proxy: FaultProxy, method: str = "POST", path: str = "/a", body: bytes | None = b"hello", timeout: float = 10
) -> tuple[int, bytes, str | None]:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=timeout)
    try:
        connection.request(method, path, body, {"X-Sent": "yes"})
        response = connection.getresponse()
        return response.status, response.read(), response.getheader("X-Seen")
    finally:
        connection.close()


def test_without_a_fault_nothing_changes(proxy: FaultProxy, server: Server) -> None:
    assert ask(proxy) == (201, b"hello", "yes")
    assert ask(proxy, "PUT", "/big?x=1", b"z" * 3_000_000)[1] == b"z" * 3_000_000
    assert ask(proxy, "GET", "/chunked", None)[1] == b"abcde"
    assert ask(proxy, "GET", "/empty", None)[0] == 204
    assert ask(proxy, "HEAD", "/a", None)[0] == 201
    assert [call[:2] for call in server.done][:2] == [("POST", "/a"), ("PUT", "/big?x=1")]
    assert proxy.calls[0] == Call("test", "POST", "/a")
    assert "test" not in lines(), "no fault, no boundary"


def test_a_chunked_request_arrives_whole(proxy: FaultProxy, server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
    connection.request("POST", "/a", iter([b"ab", b"cd"]), encode_chunked=True)
    connection.getresponse().read()
    connection.close()
    assert server.done == [("POST", "/a", b"abcd")]


def test_refused_calls_never_reach_the_server(proxy: FaultProxy, server: Server) -> None:
    proxy.add(Fault(Kind.REFUSE))
    with pytest.raises(ConnectionResetError):
        ask(proxy)
    assert server.done == []
    assert ask(proxy)[0] == 201, "once"


def test_500_comes_after_the_work(proxy: FaultProxy, server: Server) -> None:
    proxy.add(Fault(Kind.ERROR_AFTER))
    assert ask(proxy)[:2] == (500, b"a fault\n")
    assert len(server.done) == 1


def test_a_delay_holds_the_answer_back_not_the_work(proxy: FaultProxy, server: Server) -> None:
    proxy.add(Fault(Kind.DELAY, delay_s=30))
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        ask(proxy, timeout=0.3)
    assert time.monotonic() - started < 5
    assert len(server.done) == 1


def test_an_answer_is_cut_behind_as_many_bytes_as_the_fault_keeps(proxy: FaultProxy, server: Server) -> None:
    proxy.add(Fault(Kind.CUT, keep=3))
    with pytest.raises(http.client.IncompleteRead) as caught:
        ask(proxy)
    assert caught.value.partial == b"hel"
    assert len(server.done) == 1


def test_only_the_chosen_call_goes_wrong(proxy: FaultProxy) -> None:
    proxy.add(Fault(Kind.ERROR_AFTER, method="PUT", path="/a/.*", nth=2))
    statuses = [ask(proxy, method, path)[0] for method, path in
                (("POST", "/a/1"), ("PUT", "/a/1"), ("PUT", "/b"), ("PUT", "/a/2"), ("PUT", "/a/3"))]  # fmt: skip
    assert statuses == [201, 201, 201, 500, 201]


def test_down_is_refused_by_the_kernel_and_up_comes_back_on_the_same_port(proxy: FaultProxy) -> None:
    proxy.down()
    with pytest.raises(ConnectionRefusedError):
        ask(proxy)
    proxy.up()
    assert ask(proxy)[0] == 201


def test_only_a_call_about_something_goes_wrong(proxy: FaultProxy) -> None:
    proxy.add(Fault(Kind.ERROR_AFTER, about="wanted", times=2))
    assert [ask(proxy, path=path, body=body)[0] for path, body in
            (("/a?b=c", b"x"), ("/a?b=wanted", b"x"), ("/a", b"it is wanted"))] == [201, 500, 500]  # fmt: skip


@pytest.mark.parametrize(("kind", "work"), [(Kind.KILL_BEFORE, 0), (Kind.KILL_AFTER, 1)])
def test_the_caller_is_killed(proxy: FaultProxy, server: Server, kind: Kind, work: int) -> None:
    code = f"import urllib.request; urllib.request.urlopen('{proxy.url}/x', b'data'); print('survived')"
    fault = proxy.add(Fault(kind))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as caller:
        out, _ = caller.communicate(timeout=20)
    assert (caller.returncode, out, fault.fired) == (-9, b"", 1)
    assert len(server.done) == work


def test_somebody_else_is_killed_if_it_is_said(proxy: FaultProxy) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        proxy.add(Fault(Kind.KILL_BEFORE, pid=lambda: other.pid))
        with pytest.raises(ConnectionResetError):
            ask(proxy)
        assert other.wait(20) == -9


def test_each_boundary_is_named(proxy: FaultProxy) -> None:
    proxy.simplify = lambda path: path.replace("/1", "/<n>")
    proxy.add(Fault(Kind.ERROR_AFTER, path="/a/<n>", times=2))
    ask(proxy, path="/a/1")
    ask(proxy, path="/a/1")
    place = lines().index("test")
    assert lines()[place + 1] == "  POST /a/<n>: 500 after the work 2x"
