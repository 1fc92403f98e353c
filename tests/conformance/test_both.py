"""What callers, probes and operators may expect of each function, whatever hosts it."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conformance.conftest import KEY, Start, settings_of
from tests.conformance.hosts import answers
from tests.conformance.messages import JSON, in_flight, usual
from tests.receiver.http_server import HttpServer
from tests.support import until
from tests.trigger.host import Host

LIMITS = {"alert_receiver": 4 * 1024 * 1024, "retrain_trigger": 256 * 1024}
PATHS = {"alert_receiver": "/alertmanager", "retrain_trigger": "/"}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("path", "body"), [("/health/liveness", b"alive\n"), ("/health/readiness", b"ready\n")], ids=["alive", "ready"]
)
def test_probes_find_it_alive_and_ready(either: Host, method: str, path: str, body: bytes) -> None:
    assert either.request(method, path)[:2] == (200, body if method == "GET" else b"")


def test_status_tells_people_how_its_dependencies_are(either: Host) -> None:
    status, body, headers = either.request("GET", "/status")
    assert (status, headers["content-type"]) == (200, "application/json")
    assert json.loads(body).keys() == ({"sink"} if either.function == "alert_receiver" else {"ledger"})


def test_metrics_count_requests_by_path_and_status(either: Host) -> None:
    path = PATHS[either.function]
    either.request("POST", path, b"{", JSON)
    status, body, headers = either.request("GET", "/metrics")
    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    counted = rf'aegis_\w+_requests_total{{path="{path}",status="400"}} [1-9]'
    assert re.search(counted, body.decode())


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", ["/nothing", "/alertmanager/", "//", "/health", "/robots.txt", "/%2e%2e/status"])
def test_another_path_is_404_and_never_a_redirect(either: Host, method: str, path: str) -> None:
    assert either.request(method, path)[0] == 404


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_another_method_is_405_and_names_those_that_are_taken(either: Host, method: str) -> None:
    status, _, headers = either.request(method, PATHS[either.function])
    assert (status, headers["allow"]) == (405, "POST")
    if method not in ("GET", "HEAD"):
        status, _, headers = either.request(method, "/metrics")
        assert (status, headers["allow"]) == (405, "GET, HEAD")


def test_a_body_over_the_limit_is_413_and_the_answer_can_be_read(either: Host) -> None:
    body = b"x" * (LIMITS[either.function] + 1)
    status, answer, _ = either.request("POST", PATHS[either.function], body, JSON)
    assert (status, json.loads(answer)) == (413, {"error": f"the body is larger than {len(body) - 1} bytes"})


def test_a_body_without_a_length_is_counted(either: Host) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", either.port, timeout=15)
    pieces = iter([b"x" * 65_536] * (LIMITS[either.function] // 65_536 + 1))
    connection.request("POST", PATHS[either.function], pieces, JSON, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


@pytest.mark.parametrize("path", ["/nothing", "/metrics"])
def test_an_answer_that_comes_before_the_body_can_be_read(either: Host, path: str) -> None:
    for _ in range(2):
        assert either.request("POST", path, b"x" * 12_000_000, JSON)[0] == (404 if path == "/nothing" else 405)


def test_a_connection_serves_on_after_refusals(either: Host) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", either.port, timeout=15)
    found = []
    for body in (b"{", b"x" * (LIMITS[either.function] + 1), b"{"):
        connection.request("POST", PATHS[either.function], body, JSON)
        answer = connection.getresponse()
        answer.read()
        found.append(answer.status)
    connection.close()
    assert found == [400, 413, 400]


def test_headers_of_twelve_kilobytes_are_taken(either: Host) -> None:
    path, headers, body = usual(either, "large-headers")
    assert either.request("POST", path, body, {**headers, "x-padding": "x" * 12_000})[0] == 200


def test_a_client_that_leaves_halfway_harms_nobody(either: Host) -> None:
    path, headers, body = usual(either, "after-one-that-left")
    with socket.create_connection(("127.0.0.1", either.port), timeout=15) as gone:
        gone.sendall(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n".encode() + b"\r\n{")
    assert either.request("POST", path, body, headers)[0] == 200


def test_requests_at_once_are_all_answered(either: Host) -> None:
    requests = [usual(either, f"at-once-{number}") for number in range(40)]
    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(lambda each: either.request("POST", each[0], each[2], each[1])[0], requests))
    assert set(found) == {200}


def test_probes_are_answered_while_requests_wait(either: Host) -> None:
    waiting = [in_flight(either, f"waiting-{number}") for number in range(5)]
    began = time.monotonic()
    assert either.request("GET", "/health/liveness", timeout=2)[0] == 200
    assert time.monotonic() - began < 2
    for connection, body in waiting:
        connection.sendall(body)
        assert connection.recv(65_536).startswith(b"HTTP/1.1 20")
        connection.close()


@pytest.mark.parametrize("function", PATHS)
def test_a_request_in_flight_is_finished_when_the_process_is_asked_to_end(
    make: Start, sink: HttpServer, function: str, tmp_path: Path
) -> None:
    with make(function, settings_of(function, tmp_path, sink), tmp_path / "log") as host:
        host.ready()
        connection, body = in_flight(host, "in-flight")
        assert host.process is not None
        host.process.send_signal(signal.SIGTERM)
        until(lambda: refuses(host), "no new connection is taken")
        connection.sendall(body)
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200")
        connection.close()
        assert host.process.wait(20) in (0, -signal.SIGTERM)


@pytest.mark.parametrize("function", PATHS)
def test_without_its_secret_it_lives_and_is_not_ready_until_the_secret_comes(
    make: Start, sink: HttpServer, function: str, tmp_path: Path
) -> None:
    env = settings_of(function, tmp_path, sink)
    (tmp_path / "key").unlink()
    with make(function, env, tmp_path / "log") as host:
        until(lambda: answers(host), "an answer")
        status, body, _ = host.request("GET", "/health/readiness")
        assert status in (500, 503)  # func-python's own, and ours: both mean "not ready" to a probe
        assert json.loads(body) == {"problems": [f"the secret file {tmp_path / 'key'} cannot be read: {GONE}"]}
        assert host.request("GET", "/health/liveness")[0] == 200
        path, headers, request = usual(host, "no-secret")
        assert host.request("POST", path, request, headers)[0] == 503
        (tmp_path / "key").write_bytes(KEY)
        assert host.ready().request("POST", path, request, headers)[0] == 200


GONE = "No such file or directory"


def refuses(host: Host) -> bool:
    try:
        socket.create_connection(("127.0.0.1", host.port), timeout=5).close()
    except OSError:
        return True
    return False
