"""The receiver as it is shipped: functions-framework under uvicorn, a process of its own, over real sockets."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aegis import events
from tests.receiver.http_server import Got, HttpServer, http_server
from tests.receiver.world import JSON, alert, labels, payload
from tests.support import free_port, until

ROOT = Path(__file__).parents[2]
EXAMPLE = Path(__file__).with_name("example.json").read_bytes()
UVICORN = ["-m", "uvicorn", "functions_framework.aio:app", "--lifespan", "on", "--no-access-log"]

ADDRESS = r"http://127\.0\.0\.1:(\d+)"


@dataclass
class Running:
    process: subprocess.Popen[str]
    log: Path
    port: int = 0

    def call(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] = JSON
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=15)
        try:
            connection.request(method, path, body, dict(headers))
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        finally:
            connection.close()

    def post(self, body: bytes, path: str = "/alertmanager", headers: Mapping[str, str] = JSON) -> int:
        return self.call("POST", path, body, headers)[0]

    def ready(self) -> bool:
        try:
            return self.call("GET", "/health/readiness")[0] in (200, 503)
        except OSError:
            assert self.process.poll() is None, self.log.read_text()
            return False


@contextmanager
def receiver(
    directory: Path, sink: str, command: list[str] | None = None, *, port: int = 0, **env: str
) -> Iterator[Running]:
    """Start a host on a port of its own choice, or on one that is given to a host that does not tell its choice."""
    log = directory / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *(command or UVICORN), "--port", str(port)],
            env={
                "PATH": os.environ["PATH"],
                "FUNCTION_TARGET": "main",
                "FUNCTION_SOURCE": str(ROOT / "functions/alert_receiver/main.py"),
                "K_SINK": sink,
                **env,
            },
            cwd=directory,
            stderr=output,
            stdout=output,
            text=True,
        )
    running = Running(process, log, port)
    try:
        if not port:
            until(lambda: re.search(ADDRESS, log.read_text()), "its address in the log", within_s=30)
            (found,) = re.findall(ADDRESS, log.read_text())
            running.port = int(found)
        until(running.ready, "readiness", within_s=30)
        yield running
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def sink() -> Iterator[HttpServer]:
    with http_server() as running:
        yield running


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, sink: HttpServer) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("receiver")
    (directory / "aegis.yaml").write_text("receiver: {model: {default: default}}")
    (directory / "seal").write_text("k" * 32)
    settings: dict[str, Any] = {
        "AEGIS_CONFIG": str(directory / "aegis.yaml"),
        "AEGIS_SEAL_KEY_FILE": str(directory / "seal"),
    }
    with receiver(directory, sink.url, AEGIS_SINK_TIMEOUT="2s", AEGIS_DEADLINE="3s", **settings) as running:
        yield running


@pytest.fixture(autouse=True)
def fresh(sink: HttpServer) -> None:
    sink.got.clear()
    sink.answer = lambda _: (202, {}, b"")
    sink.most_at_once = 0


def test_the_example_that_people_post_reaches_the_sink_sealed(host: Running, sink: HttpServer) -> None:
    assert host.post(EXAMPLE) == 200
    (got,) = sink.got
    event = events.decode(got.headers, got.body)
    assert (event.type, event.subject) == (events.DETECTED, "default/default/unknown")
    assert events.sealed(event, [b"k" * 32])
    assert events.from_cloudevent(event).dataset_uri == "s3://my-staging-bucket/datasets/cifar/v2/"


@pytest.mark.parametrize("path", ["/alertmanager/", "/nothing", "/alertmanager/x", "//alertmanager", "/robots.txt"])
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_wrong_path_is_404_never_a_redirect(host: Running, method: str, path: str) -> None:
    assert host.call(method, path, EXAMPLE)[0] == 404


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_another_method_on_the_webhook_is_405(host: Running, method: str) -> None:
    assert host.call(method, "/alertmanager")[0] == 405


@pytest.mark.parametrize("path", ["/health/liveness", "/health/readiness", "/metrics", "/status"])
def test_the_paths_of_every_function_answer(host: Running, path: str) -> None:
    assert host.call("GET", path)[0] == 200


def test_a_big_body_is_read_to_its_end_and_its_413_can_be_read(host: Running, sink: HttpServer) -> None:
    body = payload(alert(annotations={"summary": "x" * 12_000_000}))
    for _ in range(2):  # with http.client, which writes all of the body before it reads
        status, _, answer = host.call("POST", "/alertmanager", body)
        assert status == 413
        assert "larger than" in json.loads(answer)["error"]
    assert sink.got == []


def test_a_big_body_in_chunks_without_a_length_is_counted(host: Running) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", host.port, timeout=15)
    connection.request("POST", "/alertmanager", iter([b"x" * 100_000] * 60), dict(JSON), encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


@pytest.mark.parametrize(("path", "headers", "status"), [("/alertmanager", {}, 415), ("/x", JSON, 404)])
def test_an_early_answer_to_a_big_body_can_be_read(
    host: Running, path: str, headers: dict[str, str], status: int
) -> None:
    assert host.post(b"x" * 12_000_000, path, headers) == status


def test_a_connection_is_kept_over_refusals(host: Running) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", host.port, timeout=15)
    found = []
    for body in (b"[", EXAMPLE, b"x" * 5_000_000, EXAMPLE):
        connection.request("POST", "/alertmanager", body, dict(JSON))
        response = connection.getresponse()
        response.read()
        found.append(response.status)
    connection.close()
    assert found == [400, 200, 413, 200]


def test_many_deliveries_at_once_all_arrive(host: Running, sink: HttpServer) -> None:
    bodies = [payload(*[alert(labels=labels(model_name=f"m{i}-{j}")) for j in range(5)]) for i in range(40)]
    with ThreadPoolExecutor(20) as pool:
        assert set(pool.map(host.post, bodies)) == {200}
    assert len({got.headers["ce-subject"] for got in sink.got}) == 200
    assert sink.most_at_once <= 16


def test_a_sink_that_fails_gives_503_and_the_next_try_succeeds(host: Running, sink: HttpServer) -> None:
    sink.answer = lambda _: (500, {}, b"")
    assert host.post(EXAMPLE) == 503
    sink.answer = lambda _: (202, {}, b"")
    assert host.post(EXAMPLE) == 200
    assert len({got.headers["ce-id"] for got in sink.got}) == 1


def test_a_sink_that_is_slow_gives_503_below_alertmanagers_ten_seconds(host: Running, sink: HttpServer) -> None:
    def slow(_: Got) -> None:
        time.sleep(4)

    sink.answer = slow
    began = time.monotonic()
    assert host.post(payload(*[alert(labels=labels(model_name=f"m{i}")) for i in range(40)])) == 503
    assert time.monotonic() - began < 6
    assert host.call("GET", "/health/readiness")[0] == 200


def test_a_redirect_of_the_sink_gives_503(host: Running, sink: HttpServer) -> None:
    sink.answer = lambda _: (302, {"location": "/else"}, b"")
    assert host.post(EXAMPLE) == 503


def test_what_the_sink_refuses_arrives_as_a_dead_letter(host: Running, sink: HttpServer) -> None:
    sink.answer = lambda got: (422 if got.headers["ce-type"] == events.DETECTED else 202, {}, b"")
    assert host.post(EXAMPLE) == 200
    assert [got.headers["ce-type"] for got in sink.got] == [events.DETECTED, events.REJECTED]


def test_a_client_that_leaves_halfway_harms_nobody(host: Running) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", host.port, timeout=15)
    connection.putrequest("POST", "/alertmanager")
    connection.putheader("content-type", "application/json")
    connection.putheader("content-length", "1000000")
    connection.endheaders(b"{")
    connection.close()
    assert host.post(EXAMPLE) == 200


def test_metrics_count_what_happened(host: Running) -> None:
    host.post(payload(alert(labels=labels(alertname="Other"))))
    text = host.call("GET", "/metrics")[2].decode()
    assert re.search(r'aegis_receiver_alerts_total\{reason="alertname",result="ignored"\} [1-9]', text)
    assert re.search(r'aegis_receiver_requests_total\{path="/alertmanager",status="200"\} [1-9]', text)


def test_foreign_text_is_escaped_in_answers_and_logs(host: Running) -> None:
    evil = "\x1b[2J\u202eevil"
    assert host.post(payload(alert(labels=labels(model_name=evil)))) == 200
    assert "\\u001b[2J" in host.log.read_text()
    assert "\x1b" not in host.log.read_text()
    assert b"\x1b" not in host.call("POST", "/alertmanager", payload(version=evil))[2]


def test_a_sink_that_is_down_gives_503_and_a_return_of_it_is_noticed(tmp_path: Path) -> None:
    with http_server() as first:
        port = first.port
    with receiver(tmp_path, f"http://127.0.0.1:{port}/") as host:
        body = payload(alert())
        assert host.post(body) == 503
        assert host.call("GET", "/health/readiness")[0] == 200  # a broken Broker must not make pods unready
        with http_server(port) as back:
            assert host.post(body) == 200
            assert len(back.got) == 1


def test_a_rotated_token_is_taken_within_seconds(tmp_path: Path, sink: HttpServer) -> None:
    token = tmp_path / "token"
    token.write_text("one")
    (tmp_path / "aegis.yaml").write_text(f"receiver: {{credentials: [{{name: am, bearer_file: {token}}}]}}")
    with receiver(tmp_path, sink.url, AEGIS_CONFIG=str(tmp_path / "aegis.yaml")) as host:
        body = payload(alert())
        assert host.post(body) == 401
        assert host.post(body, headers=JSON | {"authorization": "Bearer one"}) == 200
        token.with_suffix(".new").write_text("two")
        token.with_suffix(".new").replace(token)
        until(lambda: host.post(body, headers=JSON | {"authorization": "Bearer two"}) == 200)
        assert host.post(body, headers=JSON | {"authorization": "Bearer one"}) == 401


def test_wrong_settings_keep_the_process_alive_and_unready(tmp_path: Path) -> None:
    with receiver(tmp_path, "http://broker.example/") as host:
        status, _, answer = host.call("GET", "/health/readiness")
        assert (status, json.loads(answer)["problems"][0].split(":")[0]) == (503, "AEGIS_SEAL_KEY_FILE")
        assert host.call("GET", "/health/liveness")[0] == 200
        assert host.post(EXAMPLE) == 503


def test_requests_in_flight_finish_when_the_process_is_asked_to_end(tmp_path: Path, sink: HttpServer) -> None:
    def slow(_: Got) -> tuple[int, dict[str, str], bytes]:
        time.sleep(0.5)
        return 202, {}, b""

    sink.answer = slow
    with receiver(tmp_path, sink.url) as host, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(host.post, payload(alert()))
        until(lambda: sink.now == 1)
        host.process.send_signal(signal.SIGTERM)
        assert answer.result(10) == 200


def test_the_functions_framework_command_serves_it_too(tmp_path: Path, sink: HttpServer) -> None:
    source = str(ROOT / "functions/alert_receiver/main.py")
    command = ["-m", "functions_framework", "--asgi", "--target", "main", "--source", source, "--host", "127.0.0.1"]
    with receiver(tmp_path, sink.url, command, port=free_port()) as host:
        assert host.post(payload(alert())) == 200
    assert len(sink.got) == 1


def test_main_can_be_loaded_without_any_setting() -> None:
    from alert_receiver.main import main

    assert asyncio.iscoroutinefunction(main)
