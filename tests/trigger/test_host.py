"""retrain-trigger in the host that the image runs: a real uvicorn process with functions-framework's ASGI app."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from aegis import events
from aegis.events import DriftEvent
from retrain_trigger.sqlite import Objects
from tests.trigger.host import Host, trigger_host
from tests.trigger.world import drift, wake_up

KEY = b"a key of the host's own"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("host")
    (home / "key").write_bytes(KEY)
    (home / "token").write_text("letmein\n")
    return home


@pytest.fixture(scope="module")
def host(home: Path) -> Iterator[Host]:
    """The host as in a cluster: no trust in loopback."""
    secrets: dict[str, Any] = {
        "seal_keys": str(home / "key"),
        "bearer_tokens": str(home / "token"),
        "trust_loopback": "",
    }
    with trigger_host(home / "ledger.db", home / "log", **secrets) as running:
        yield running.ready()


def live(model: str, **more: object) -> DriftEvent:
    return drift(model, seen=datetime.now(UTC), **more)  # type: ignore[arg-type]


def send(
    host: Host, event: DriftEvent | events.CloudEvent, *, structured: bool = False, seal: bool = True, **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    own = events.to_cloudevent(event, KEY if seal else None) if isinstance(event, DriftEvent) else event
    encoded, body = events.encode(own, structured=structured)
    return host.request("POST", "/", body, {**encoded, **headers})


def workflows_of(home: Path, model: str) -> int:
    return sum(name.startswith(f"aegis-{model}-") for name in Objects(home / "ledger.db").names("Workflow"))


@pytest.mark.parametrize("structured", [False, True], ids=["binary", "structured"])
def test_submit_then_hold(host: Host, home: Path, structured: bool) -> None:
    model = f"submit-{structured}".lower()
    status, body, headers = send(host, live(model, summary="é"), structured=structured)
    assert status == 200
    answer = events.decode(headers, body)
    assert answer.type == events.SUBMITTED
    status, body, headers = send(host, live(model), structured=structured)
    assert (status, body) == (204, b"")
    assert workflows_of(home, model) == 1


def test_a_caller_may_ask_for_the_decision(host: Host) -> None:
    send(host, live("prefer"))
    status, body, headers = send(host, live("prefer"), Prefer="return=representation")
    assert status == 200
    assert events.decode(headers, body).type == events.DECIDED
    assert json.loads(body)["reason"] == "InFlight"


@pytest.mark.parametrize(
    ("name", "status"),
    [("malformed", 400), ("batch", 400), ("unsealed", 401), ("rejected", 422), ("too big", 413)],
)
def test_refusals(host: Host, name: str, status: int) -> None:
    event = live("refused", dataset_uri="s3://elsewhere/x" if name == "rejected" else None)
    headers, body = events.encode(events.to_cloudevent(event, None if name == "unsealed" else KEY))
    if name == "malformed":
        body = body[:-1]
        headers["ce-seal"] = events.seal(events.decode(headers, body), KEY)
    if name == "batch":
        headers, body = {"content-type": "application/cloudevents-batch+json"}, b"[]"
    if name == "too big":
        body += b" " * 300_000
    answer = host.request("POST", "/", body, headers)
    assert answer[0] == status
    assert json.loads(answer[1])["error"]


def test_a_bearer_token_orders_without_a_seal(host: Host) -> None:
    assert send(host, live("bearer"), seal=False, Authorization="Bearer letmein")[0] == 200
    assert send(host, live("bearer-2"), seal=False, Authorization="Bearer letmeout")[0] == 401


def test_wake_ups_and_dead_letters_need_no_seal(host: Host) -> None:
    for path, kind in (("/", "dev.knative.sources.ping"), ("/", events.FINISHED), ("/dead-letters", events.REJECTED)):
        headers, body = events.encode(wake_up(kind))
        assert host.request("POST", path, body, headers)[:2] == (204, b"")


@pytest.mark.parametrize("path", ["/health/liveness", "/health/readiness", "/status", "/metrics"])
def test_own_paths(host: Host, path: str) -> None:
    status, body, _ = host.request("GET", path)
    assert status == 200
    assert body
    assert host.request("HEAD", path)[:2] == (200, b"")
    assert host.request("POST", path)[0] == 405


def test_the_webhook_is_not_for_get_and_other_paths_are_not_there(host: Host) -> None:
    assert host.request("GET", "/")[0] == 405
    assert host.request("POST", "/alertmanager")[0] == 404


def test_a_chunked_body_is_read_and_bounded(host: Host) -> None:
    headers, body = events.encode(events.to_cloudevent(live("chunked"), KEY))
    assert _chunked(host, headers, [body[:10], body[10:]]).startswith(b"HTTP/1.1 200")
    assert _chunked(host, headers, [b" " * 65536] * 20).startswith(b"HTTP/1.1 413")


def _chunked(host: Host, headers: dict[str, str], chunks: list[bytes]) -> bytes:
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with socket.create_connection(("127.0.0.1", host.port), timeout=10) as raw:
        raw.sendall(f"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n{head}\r\n".encode())
        for chunk in chunks:
            raw.sendall(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        raw.sendall(b"0\r\n\r\n")
        return raw.recv(4096)


def test_a_caller_that_leaves_in_the_middle_disturbs_nobody(host: Host) -> None:
    with socket.create_connection(("127.0.0.1", host.port), timeout=10) as raw:
        raw.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
    assert send(host, live("after-leaver"))[0] == 200
    assert "Traceback" not in host.text()


def test_a_store_that_cannot_be_opened_is_503_while_the_process_stays_ready(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with trigger_host(tmp_path / "file" / "ledger.db", tmp_path / "log") as host:
        host.ready()
        assert send(host, live("churn"))[0] == 503
        headers, body = events.encode(wake_up())
        assert host.request("POST", "/", body, headers)[0] == 503
        assert b"not usable" in host.request("GET", "/status")[1]
        (tmp_path / "file").unlink()
        assert send(host, live("churn"))[0] == 200, "mended, without a restart"


def test_the_functions_framework_command_serves_it_too(tmp_path: Path) -> None:
    with trigger_host(tmp_path / "ledger.db", tmp_path / "log", command=True) as host:
        host.ready()
        by_a_page: dict[str, Any] = {
            "Origin": "https://evil.example",
            "Sec-Fetch-Site": "cross-site",
            "Sec-Fetch-Mode": "no-cors",
        }
        assert send(host, live("churn"), seal=False, **by_a_page)[0] == 401
        assert send(host, live("churn"), seal=False, Host="rebound.example")[0] == 401
        _, body = events.encode(events.to_cloudevent(live("churn")), structured=True)
        assert host.request("POST", "/", body, {"Content-Type": "text/plain"})[0] == 400
        assert workflows_of(tmp_path, "churn") == 0
        status, body, headers = send(host, live("churn"), seal=False)
        assert status == 200
        assert events.decode(headers, body).type == events.SUBMITTED
        assert send(host, live("churn"), seal=False)[:2] == (204, b"")


@pytest.mark.parametrize("command", [False, True], ids=["uvicorn", "functions-framework"])
def test_bad_settings_end_the_process_and_name_every_fault(tmp_path: Path, command: bool) -> None:
    bad = {
        "budget": "0",
        "body_limit": "lots",
        "run_deadline": "0s",
        "log_level": "loud",
        "trust_loopback": "",
        "dataset_prefixes": "s3://data/,https://x/",
    }
    with trigger_host(None, tmp_path / "log", command=command, **bad) as host:
        assert host.process is not None
        try:
            code = host.process.wait(60)
        except subprocess.TimeoutExpired:
            pytest.fail("the process goes on with bad settings")
        assert code != 0
    text = host.log.read_text()
    for name in ("BUDGET", "BODY_LIMIT", "RUN_DEADLINE", "LOG_LEVEL", "SEAL_KEYS", "DATASET_PREFIXES"):
        assert f"AEGIS_{name}: " in text
    assert "https://x/" in text


def test_a_request_in_flight_is_finished_when_the_host_is_told_to_stop(tmp_path: Path) -> None:
    with trigger_host(tmp_path / "ledger.db", tmp_path / "log") as host:
        host.ready()
        headers, body = events.encode(events.to_cloudevent(live("churn")))
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        with socket.create_connection(("127.0.0.1", host.port), timeout=20) as raw:
            raw.sendall(f"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n{head}\r\n".encode())
            raw.sendall(body[:-1])
            host.request("GET", "/health/liveness")  # by now the other request is being read
            assert host.process is not None
            host.process.terminate()
            raw.sendall(body[-1:])
            assert raw.recv(4096).startswith(b"HTTP/1.1 200")
        assert host.process.wait(20) is not None
