"""A small HTTP/1.1 server in a thread whose answers a test decides; it keeps what it got."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Got:
    path: str
    headers: Mapping[str, str]
    body: bytes
    connection: int


@dataclass
class HttpServer:
    """`answer` gives (status, headers, body) for a request, or None to close the connection without an answer."""

    answer: Callable[[Got], tuple[int, dict[str, str], bytes] | None] = lambda _: (202, {}, b"")
    got: list[Got] = field(default_factory=list)
    port: int = 0
    most_at_once: int = 0
    now: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/broker"


@contextmanager
def http_server(port: int = 0) -> Iterator[HttpServer]:
    server = HttpServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:  # the library's name
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            got = Got(self.path, headers, body, self.client_address[1])
            with server.lock:
                server.got.append(got)
                server.now += 1
                server.most_at_once = max(server.most_at_once, server.now)
            answer = server.answer(got)
            with server.lock:
                server.now -= 1
            if answer is None:
                self.close_connection = True
                return
            status, extra, text = answer
            self.send_response(status)
            for name, value in extra.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST  # noqa: N815  # the library's name: a followed redirect arrives as GET

        def log_message(self, format: str, *args: Any) -> None:  # the library's name
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that left

    listener = Server(("127.0.0.1", port), Handler)
    server.port = listener.server_address[1]
    thread = threading.Thread(target=lambda: listener.serve_forever(0.02), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()
