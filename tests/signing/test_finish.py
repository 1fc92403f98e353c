"""The finish step: one CloudEvent to the trigger, and never a failure."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from aegis.errors import OK
from sign_model.finish import main
from tests.signing.world import World


class Sink(HTTPServer):
    """Answers every POST with `status` and keeps what came."""

    def __init__(self) -> None:
        self.status = 204
        self.got: list[tuple[dict[str, str], bytes]] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    server: Sink

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(self.server.status)
        self.send_header("Location", f"{self.server.url}elsewhere")
        self.end_headers()

    def do_GET(self) -> None:
        self.server.got.append(({}, b""))
        self.send_error(404)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def sink() -> Iterator[Sink]:
    with Sink() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_the_trigger_gets_one_cloudevent(world: World, sink: Sink) -> None:
    assert main(world.env(AEGIS_SINK=sink.url, AEGIS_WORKFLOW_STATUS="Succeeded")) == OK
    ((headers, body),) = sink.got
    assert json.loads(body) == {"workflow": "aegis-digits-1", "status": "Succeeded"}
    wanted = {
        "content-type": "application/json",
        "ce-specversion": "1.0",
        "ce-type": "dev.aegis.retrain.finished.v1",
        "ce-source": "/aegis/workflows",
        "ce-id": "uid-1.finished",
        "ce-subject": "default/digits",
    }
    assert wanted.items() <= headers.items()
    assert headers["ce-time"].endswith("Z")


@pytest.mark.parametrize("status", [302, 307, 400, 503])
def test_no_answer_makes_it_fail_and_no_redirect_is_followed(status: int, world: World, sink: Sink) -> None:
    sink.status = status
    assert main(world.env(AEGIS_SINK=sink.url)) == OK
    assert len(sink.got) == 1


def test_no_trigger_no_address_and_bad_addresses_are_no_failure(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        for sink in (nobody, "", "file:///etc/passwd", "http://", "http://[", "http://user:hunter2-x@127.0.0.1:bad/"):
            assert main(world.env(AEGIS_SINK=sink)) == OK
    assert "hunter2" not in "".join(capsys.readouterr())
