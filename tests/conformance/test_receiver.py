"""The receiver under each host."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aegis import events
from tests.conformance.conftest import KEY, Start, settings_of
from tests.conformance.hosts import answers
from tests.conformance.messages import JSON, alerts, as_event
from tests.receiver.http_server import HttpServer
from tests.support import until
from tests.trigger.host import Host


def test_alertmanagers_delivery_reaches_the_sink_sealed(receiver: Host, sink: HttpServer) -> None:
    status, body, _ = receiver.request("POST", "/alertmanager", alerts("churn"), JSON)
    assert (status, json.loads(body)) == (200, {"forwarded": 1})
    (got,) = sink.got
    event = events.decode(got.headers, got.body)
    assert (event.type, event.subject) == (events.DETECTED, "default/churn/unknown")
    assert events.sealed(event, [KEY])


@pytest.mark.parametrize("structured", [False, True], ids=["binary", "structured"])
@pytest.mark.parametrize("path", ["/", "/alertmanager"])
def test_a_cloudevent_is_acknowledged_without_a_body(
    receiver: Host, sink: HttpServer, path: str, structured: bool
) -> None:
    headers, body = events.encode(as_event(alerts("churn")), structured=structured)
    assert receiver.request("POST", path, body, headers)[:2] == (200, b"")
    assert len(sink.got) == 1


def test_a_binary_event_without_a_content_type_is_json(receiver: Host, sink: HttpServer) -> None:
    headers, body = events.encode(as_event(alerts("churn")))
    del headers["content-type"]
    assert receiver.request("POST", "/", body, headers)[0] == 200
    assert len(sink.got) == 1


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/alertmanager", b"[", JSON, 400),
        ("/alertmanager", b"[]", JSON, 400),
        ("/alertmanager", alerts("x"), {}, 415),
        ("/alertmanager", alerts("x"), {"content-type": "text/plain"}, 415),
        ("/alertmanager", alerts("x"), {**JSON, "content-encoding": "gzip"}, 415),
        ("/", alerts("x"), JSON, 415),
        ("/", b"[]", {"content-type": "application/cloudevents-batch+json"}, 400),
        ("/", b"{}", {"content-type": "application/cloudevents+json"}, 400),
        ("/", b"{}", {"ce-specversion": "1.0", "ce-id": "", "ce-type": "t", "ce-source": "/s"}, 400),
        ("/", b"\xff", {"content-type": "application/cloudevents+json"}, 400),
    ],
)
def test_what_is_malformed_is_refused_for_good(
    receiver: Host, sink: HttpServer, path: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    found, answer, _ = receiver.request("POST", path, body, headers)
    assert (found, next(iter(json.loads(answer)))) == (status, "error")
    assert sink.got == []


def test_a_sink_that_fails_gives_503_and_leaves_the_receiver_ready(receiver: Host, sink: HttpServer) -> None:
    sink.answer = lambda _: (500, {}, b"secret of the broker")
    status, body, _ = receiver.request("POST", "/alertmanager", alerts("churn"), JSON)
    assert (status, json.loads(body)) == (503, {"error": "1 events not delivered: the sink answered 500"})
    assert receiver.request("GET", "/health/readiness")[0] == 200


def test_wrong_settings_are_named_by_readiness(make: Start, sink: HttpServer, tmp_path: Path) -> None:
    env = settings_of("alert_receiver", tmp_path, sink, K_SINK="nowhere")
    with make("alert_receiver", env, tmp_path / "log") as host:
        until(lambda: answers(host), "an answer")
        status, body, _ = host.request("GET", "/health/readiness")
        assert status in (500, 503)
        assert json.loads(body) == {"problems": ["K_SINK: must be an http or https URL"]}
        assert host.request("GET", "/health/liveness")[0] == 200
        assert host.request("POST", "/alertmanager", alerts("churn"), JSON)[0] == 503


def test_an_unexpected_failure_is_told_to_the_log_alone(make: Start, sink: HttpServer, tmp_path: Path) -> None:
    env = settings_of("alert_receiver", tmp_path, sink, K_CA_CERTS="these are no certificates")
    with make("alert_receiver", env, tmp_path / "log") as host:
        status, body, _ = host.ready().request("POST", "/alertmanager", alerts("churn"), JSON)
        assert (status, json.loads(body)) == (503, {"error": "unexpected failure; see the log"})
        assert "load_verify_locations" in host.text()
