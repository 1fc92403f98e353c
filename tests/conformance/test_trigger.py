"""The trigger under each host, over the SQLite ledger."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aegis import events
from tests.conformance.conftest import Start, settings_of
from tests.conformance.messages import in_flight, sealed_drift
from tests.receiver.http_server import HttpServer
from tests.trigger.host import Host
from tests.trigger.world import wake_up

PLAIN = {"ce-specversion": "1.0", "ce-id": "1", "ce-type": events.DETECTED, "ce-source": "/s"}


@pytest.mark.parametrize("structured", [False, True], ids=["binary", "structured"])
def test_a_drift_is_submitted_once_and_its_repeat_acknowledged(trigger: Host, structured: bool) -> None:
    headers, request = sealed_drift(f"submitted-{structured}", structured=structured)
    status, body, answer = trigger.request("POST", "/", request, headers)
    assert (status, events.decode(answer, body).type) == (200, events.SUBMITTED)
    assert trigger.request("POST", "/", request, headers)[:2] == (204, b"")


@pytest.mark.parametrize("structured", [False, True], ids=["binary", "structured"])
def test_an_event_without_a_content_type_is_json(trigger: Host, structured: bool) -> None:
    headers, request = sealed_drift(f"bare-{structured}", structured=structured)
    del headers["content-type"]
    assert trigger.request("POST", "/", request, headers)[0] == 200


def test_one_drift_told_many_times_at_once_is_submitted_once(trigger: Host) -> None:
    headers, request = sealed_drift("told-at-once")
    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(lambda _: trigger.request("POST", "/", request, headers)[0], range(20)))
    assert sorted(found) == [200] + [204] * 19


def test_the_seal_holds_for_text_beyond_ascii(trigger: Host) -> None:
    headers, request = sealed_drift("beyond-ascii", summary="dérive \u202e 漂移")
    assert trigger.request("POST", "/", request, headers)[0] == 200


@pytest.mark.parametrize("key", [None, b"another key"], ids=["no seal", "another key"])
def test_without_a_valid_seal_nothing_is_ordered(trigger: Host, key: bytes | None) -> None:
    headers, request = sealed_drift("unsealed", key=key)
    status, body, answer = trigger.request("POST", "/", request, headers)
    assert (status, answer["www-authenticate"]) == (401, "Bearer")
    assert list(json.loads(body)) == ["error"]


def test_an_event_that_was_changed_after_the_sealing_is_refused(trigger: Host) -> None:
    headers, request = sealed_drift("changed")
    assert trigger.request("POST", "/", request.replace(b"changed", b"chanced"), headers)[0] == 401


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"content-type": "application/cloudevents-batch+json"}, b"[]"),
        ({"content-type": "application/cloudevents+json"}, b"{"),
        ({"content-type": "application/cloudevents+json"}, b"[]"),
        ({"content-type": "application/cloudevents+json"}, b"\xff\xfe"),
        ({"content-type": "text/plain"}, b"{}"),
        ({}, b""),
        ({**PLAIN, "ce-id": ""}, b"{}"),
        ({**PLAIN, "ce-specversion": "0.3"}, b"{}"),
        ({**PLAIN, "ce-time": "yesterday"}, b"{}"),
        ({**PLAIN, "ce-type": "%ff"}, b"{}"),
        ({**PLAIN, "ce-type": "com.example.other"}, b"{}"),
    ],
)
def test_what_is_malformed_is_refused_for_good(trigger: Host, headers: Mapping[str, str], body: bytes) -> None:
    status, answer, _ = trigger.request("POST", "/", body, headers)
    assert (status, next(iter(json.loads(answer)))) == (400, "error")


def test_data_from_elsewhere_is_rejected(trigger: Host) -> None:
    headers, request = sealed_drift("elsewhere", dataset_uri="s3://elsewhere/x")
    status, body, _ = trigger.request("POST", "/", request, headers)
    assert (status, list(json.loads(body)["faults"])) == (422, ["dataset_uri"])


def test_a_caller_may_ask_for_the_decision(trigger: Host) -> None:
    headers, request = sealed_drift("asked")
    trigger.request("POST", "/", request, headers)
    status, body, answer = trigger.request("POST", "/", request, {**headers, "prefer": "return=representation"})
    assert (status, events.decode(answer, body).type) == (200, events.DECIDED)
    assert json.loads(body)["decision"] == "Hold"


@pytest.mark.parametrize(
    ("path", "event"),
    [
        ("/", wake_up()),
        ("/", wake_up(events.FINISHED)),
        ("/", wake_up(events.REJECTED)),
        ("/reconcile", wake_up()),
        ("/dead-letters", wake_up("any.event.at.all")),
    ],
)
def test_wake_ups_and_dead_letters_are_acknowledged(trigger: Host, path: str, event: events.CloudEvent) -> None:
    headers, body = events.encode(event)
    assert trigger.request("POST", path, body, headers)[:2] == (204, b"")


def test_a_ledger_that_keeps_an_event_waiting_keeps_no_probe_waiting(trigger: Host) -> None:
    ledger = sqlite3.connect(trigger.env["AEGIS_LEDGER"], isolation_level=None)
    ledger.execute("BEGIN EXCLUSIVE")
    connection, body = in_flight(trigger, "locked")
    connection.sendall(body)
    for _ in range(10):  # by the last of them the function has long had the body
        assert trigger.request("GET", "/health/liveness", timeout=4)[0] == 200  # the wait for the ledger: 5 s
    ledger.execute("ROLLBACK")
    ledger.close()
    assert connection.recv(65_536).startswith(b"HTTP/1.1 200")
    connection.close()


def test_a_ledger_that_cannot_be_opened_gives_503_and_leaves_it_ready(
    make: Start, sink: HttpServer, tmp_path: Path
) -> None:
    env = settings_of("retrain_trigger", tmp_path, sink, AEGIS_LEDGER=str(tmp_path))
    with make("retrain_trigger", env, tmp_path / "log") as host:
        headers, request = sealed_drift("no-ledger")
        status, body, _ = host.ready().request("POST", "/", request, headers)
        assert (status, list(json.loads(body))) == (503, ["error"])
        assert b"Traceback" not in body
        assert json.loads(host.request("GET", "/status")[1])["ledger"].startswith("not usable: ")
        assert host.request("GET", "/health/readiness")[0] == 200


def test_wrong_settings_end_the_process_and_are_named(make: Start, sink: HttpServer, tmp_path: Path) -> None:
    env = settings_of("retrain_trigger", tmp_path, sink, AEGIS_BUDGET="none")
    with make("retrain_trigger", env, tmp_path / "log") as host:
        assert host.process is not None
        assert host.process.wait(60) != 0
        assert "AEGIS_BUDGET" in host.text()
