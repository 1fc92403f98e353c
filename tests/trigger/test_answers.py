"""What retrain-trigger answers, row by row. A Broker's Trigger decides by the answer whether an event is delivered
again, so each row is a promise. In process here; test_host.py asks the real host."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aegis import events
from aegis.errors import Conflict, Permanent, Temporary
from aegis.http import Request, Response
from retrain_trigger.model import Record
from tests.trigger.world import NOW, Ports, World, ask, chunks, drift, post, resealed, wake_up

KEY = b"k" * 32


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "ledger.db")


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "seal.key"
    path.write_bytes(KEY + b"\n")
    return path


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("letmein\n")
    return path


def cloud_event(response: Response) -> tuple[events.CloudEvent, dict[str, Any]]:
    """The CloudEvent of an answer, as a Broker reads it."""
    found = events.decode(response.headers, response.body)
    return found, json.loads(found.data)


def broker_safe(response: Response) -> None:
    """What must hold of every answer, whatever was asked."""
    assert response.status not in (409, 429)
    assert not 300 <= response.status < 400
    if 200 <= response.status < 300 and response.body:
        events.decode(response.headers, response.body)


# --- decided ---


def test_a_submitted_retrain_is_answered_with_the_event_that_says_so(world: World) -> None:
    response = post(world.function(), drift(seen=NOW))
    assert response.status == 200
    event, data = cloud_event(response)
    assert event.type == events.SUBMITTED
    assert event.subject == "default/churn/7"
    assert data["decision"] == "Submit"
    assert data["workflow"] == world.workflow_names()[0]
    assert data["event_id"] == drift().id


def test_a_hold_is_answered_with_nothing(world: World) -> None:
    function = world.function()
    post(function, drift())
    response = post(function, drift())
    assert (response.status, response.body) == (204, b"")
    assert len(world.workflow_names()) == 1


def test_a_hold_tells_its_reason_to_a_caller_who_prefers_that(world: World) -> None:
    function = world.function()
    post(function, drift())
    response = post(function, drift(), prefer="respond-async, return=representation")
    event, data = cloud_event(response)
    assert (response.status, event.type) == (200, events.DECIDED)
    assert (data["decision"], data["reason"]) == ("Hold", "InFlight")
    assert world.workflow_names()[0] in data["message"]


def test_two_answers_about_one_event_are_two_events(world: World) -> None:
    function = world.function()
    first, _ = cloud_event(post(function, drift()))
    world.now += timedelta(seconds=1)
    second, _ = cloud_event(post(function, drift(), prefer="return=representation"))
    assert first.id != second.id


def test_a_resolve_is_answered_with_nothing(world: World) -> None:
    response = post(world.function(), drift(ends_at=NOW))
    assert (response.status, response.body) == (204, b"")
    assert world.workflow_names() == []


def test_an_old_redelivery_is_ignored_with_success(world: World) -> None:
    response = post(world.function(), drift(seen=NOW - timedelta(hours=9)), prefer="return=representation")
    _, data = cloud_event(response)
    assert (response.status, data["decision"], data["reason"]) == (200, "Ignore", "Stale")


@pytest.mark.parametrize("structured", [False, True], ids=["binary", "structured"])
def test_both_content_modes_are_read(world: World, key_file: Path, structured: bool) -> None:
    function = world.function(trust_loopback=False, seal_keys=(key_file,))
    assert post(function, drift(summary="café \U0001f600"), key=KEY, structured=structured).status == 200


@pytest.mark.parametrize(
    "media", [None, "application/json", "application/cloudevents+json", "Application/CloudEvents+JSON; charset=UTF-8"]
)
def test_a_structured_event_is_json_also_where_no_content_type_says_so(world: World, media: str | None) -> None:
    _, body = events.encode(events.to_cloudevent(drift()), structured=True)
    assert ask(world.function(), headers={} if media is None else {"content-type": media}, body=body).status == 200


# --- malformed: 400 ---


def _changed(**changes: Any) -> Callable[[dict[str, str], bytes], tuple[dict[str, str], bytes]]:
    def change(headers: dict[str, str], body: bytes) -> tuple[dict[str, str], bytes]:
        data = {**json.loads(body), **changes}
        return headers, json.dumps({k: v for k, v in data.items() if v != "(none)"}).encode()

    return change


def _headers(**changes: str | None) -> Callable[[dict[str, str], bytes], tuple[dict[str, str], bytes]]:
    def change(headers: dict[str, str], body: bytes) -> tuple[dict[str, str], bytes]:
        named = {name.replace("_", "-"): value for name, value in changes.items()}
        merged: dict[str, str | None] = {**headers, **named}
        return {name: value for name, value in merged.items() if value is not None}, body

    return change


def _as_text(media: str) -> tuple[dict[str, str], bytes]:
    """The content types of a CORS simple request, which needs nobody's leave."""
    _, body = events.encode(events.to_cloudevent(drift()), structured=True)
    return {"content-type": media}, body


MALFORMED: dict[str, Callable[[dict[str, str], bytes], tuple[dict[str, str], bytes]]] = {
    "nothing at all": lambda _h, _b: ({}, b""),
    "no JSON": lambda h, _b: (h, b"{"),
    "an array": lambda h, _b: (h, b"[]"),
    "NaN": lambda h, _b: (h, b'{"score": NaN}'),
    "a byte order mark": lambda h, b: (h, b"\xef\xbb\xbf" + b),
    "not UTF-8": lambda h, _b: (h, b'{"model": "\xff"}'),
    "deep nesting": lambda h, _b: (h, b"[" * 9999 + b"]" * 9999),
    "a duplicate key": lambda h, b: (h, b'{"model": "a", ' + b[1:]),
    "no id": _headers(ce_id=None),
    "an empty source": _headers(ce_source=""),
    "another version of CloudEvents": _headers(ce_specversion="0.3"),
    "a time that is none": _headers(ce_time="yesterday"),
    "a time that has no UTC form": _headers(ce_time="0001-01-01T00:00:00+05:00"),
    "no time": _headers(ce_time=None),
    "no data": lambda h, _b: (h, b""),
    "data that is XML": _headers(content_type="application/xml"),
    "a type of nobody": _headers(ce_type="com.example.order.v1"),
    "a subject of another model": _headers(ce_subject="default/fraud/7"),
    "a header that is not UTF-8": _headers(ce_subject="%ff"),
    "a batch": _headers(content_type="application/cloudevents-batch+json"),
    "a structured event as a web page may send it": lambda _h, _b: _as_text("text/plain"),
    "a structured event as a form": lambda _h, _b: _as_text("application/x-www-form-urlencoded"),
    "a model that is no name": _changed(model="a/b"),
    "a model that is no text": _changed(model=7),
    "no environment": _changed(environment="(none)"),
    "a template in the version": _changed(model_version="{{workflow.name}}"),
    "a fingerprint that is none": _changed(fingerprint="xyz"),
    "a severity of nobody": _changed(severity="loud"),
    "a start that is none": _changed(starts_at="soon"),
    "no start": _changed(starts_at="(none)"),
    "a score that is text": _changed(score="0.3"),
    "a score beyond all numbers": _changed(score=10**400),
    "labels that are a list": _changed(labels=["a"]),
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED)
def test_what_is_malformed_is_400_and_moves_nothing(world: World, change: Any) -> None:
    headers, body = change(*events.encode(events.to_cloudevent(drift())))
    response = ask(world.function(), headers=headers, body=body)
    assert response.status == 400, response.body
    assert json.loads(response.body)["error"]
    assert world.ports.ledger.count() == 0


def test_an_end_before_the_start_is_400(world: World) -> None:
    event = drift(starts_at=NOW, ends_at=NOW - timedelta(hours=1))
    assert post(world.function(), event).status == 400


def test_every_fault_is_named_at_once(world: World) -> None:
    headers, body = events.encode(events.to_cloudevent(drift()))
    wrong = {**json.loads(body), "model": "a/b", "severity": "loud", "fingerprint": 3}
    response = ask(world.function(), headers=headers, body=json.dumps(wrong).encode())
    assert {"model", "severity", "fingerprint"} <= set(json.loads(response.body)["faults"])


def test_a_batch_of_events_is_refused_by_name(world: World) -> None:
    _, body = events.encode(events.to_cloudevent(drift()), structured=True)
    response = ask(
        world.function(), headers={"content-type": "application/cloudevents-batch+json"}, body=b"[" + body + b"]"
    )
    assert response.status == 400
    assert b"batch" in response.body


# --- who may order: 401 ---


def test_an_event_without_a_seal_is_401_and_moves_nothing(world: World, key_file: Path) -> None:
    function = world.function(trust_loopback=False, seal_keys=(key_file,))
    response = post(function, drift())
    assert response.status == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert world.ports.ledger.count() == 0
    assert b"aegis_trigger_unauthenticated_total 1.0" in ask(function, "GET", "/metrics").body


def test_a_sealed_event_is_taken_from_anywhere(world: World, key_file: Path) -> None:
    function = world.function(trust_loopback=False, seal_keys=(key_file,))
    assert post(function, drift(), key=KEY, peer="10.1.2.3").status == 200


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "another"},
        {"source": "/alertmanager/other"},
        {"subject": ""},
        {"type": events.RESOLVED},
        {"time": NOW + timedelta(seconds=1)},
        {"data": events.to_cloudevent(drift("fraud")).data},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_seal_covers_what_an_event_says(world: World, key_file: Path, changes: dict[str, Any]) -> None:
    function = world.function(trust_loopback=False, seal_keys=(key_file,))
    assert post(function, resealed(drift(), KEY, **changes)).status == 401


def test_a_seal_survives_a_broker_that_rewrites_times_and_turns_binary_into_structured(
    world: World, key_file: Path
) -> None:
    function = world.function(trust_loopback=False, seal_keys=(key_file,))
    headers, body = events.encode(events.to_cloudevent(drift(summary="é"), KEY), structured=True)
    rewritten = body.replace(b"12:00:00.000Z", b"14:00:00+02:00", 1)
    assert rewritten != body
    assert ask(function, headers=headers, body=rewritten).status == 200


def test_two_keys_hold_during_a_rotation_and_the_old_one_ends_with_it(world: World, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"old-key")
    new.write_bytes(b"new-key")
    both = world.function(trust_loopback=False, seal_keys=(new, old))
    assert post(both, drift("a"), key=b"old-key").status == 200
    assert post(both, drift("b"), key=b"new-key").status == 200
    after = world.function(trust_loopback=False, seal_keys=(new,))
    assert post(after, drift("c"), key=b"old-key").status == 401


def test_a_changed_key_file_is_read_again(world: World, key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aegis.http.SECRET_CHECK_S", 0.0)
    function = world.function(trust_loopback=False, seal_keys=(key_file,))
    assert post(function, drift("a"), key=KEY).status == 200
    key_file.write_bytes(b"the next key")
    assert post(function, drift("b"), key=KEY).status == 401
    assert post(function, drift("b"), key=b"the next key").status == 200


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer letmein", 200),
        ("bearer letmein", 200),
        ("Bearer letmei", 401),
        ("Bearer letmein2", 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        ("Basic bGV0bWVpbg==", 401),
        ("letmein", 401),
        ("", 401),
    ],
)
def test_a_bearer_token_may_order(world: World, token_file: Path, header: str, status: int) -> None:
    function = world.function(trust_loopback=False, bearer_tokens=(token_file,))
    assert post(function, drift(), authorization=header).status == status


def test_a_wrong_seal_does_not_spoil_a_right_token(world: World, key_file: Path, token_file: Path) -> None:
    function = world.function(trust_loopback=False, seal_keys=(key_file,), bearer_tokens=(token_file,))
    assert post(function, drift(), key=b"wrong", authorization="Bearer letmein").status == 200


@pytest.mark.parametrize(
    ("trust", "peer", "header", "status"),
    [
        (True, "127.0.0.1", {}, 200),
        (True, "::1", {}, 200),
        (True, "10.0.0.1", {}, 401),
        (True, "", {}, 401),
        (True, "localhost", {}, 401),
        (True, "127.0.0.1", {"x_forwarded_for": "10.0.0.1"}, 401),
        (True, "127.0.0.1", {"forwarded": "for=10.0.0.1"}, 401),
        (True, "127.0.0.1", {"k_proxy_request": "activator"}, 401),
        (True, "127.0.0.1", {"origin": "https://evil.example"}, 401),
        (True, "127.0.0.1", {"origin": "null"}, 401),
        (True, "127.0.0.1", {"origin": "http://localhost:12001"}, 401),
        (True, "127.0.0.1", {"sec_fetch_site": "cross-site"}, 401),
        (True, "127.0.0.1", {"sec_fetch_mode": "no-cors"}, 401),
        (True, "127.0.0.1", {"host": "evil.example"}, 401),
        (True, "127.0.0.1", {"host": "evil.example:12001"}, 401),
        (True, "127.0.0.1", {"host": "127.0.0.1.evil.example:12001"}, 401),
        (True, "127.0.0.1", {"host": "localhost.evil.example"}, 401),
        (True, "127.0.0.1", {"host": "localhost:12001, evil.example"}, 401),
        (True, "127.0.0.1", {"host": "evil.example@localhost"}, 401),
        (True, "127.0.0.1", {"host": "10.0.0.1"}, 401),
        (True, "127.0.0.1", {"host": "0.0.0.0"}, 401),  # noqa: S104  # reaches this machine from a browser
        (True, "127.0.0.1", {"host": ""}, 401),
        (True, "127.0.0.1", {"host": "127.0.0.1:12001"}, 200),
        (True, "127.0.0.1", {"host": "127.7.7.7"}, 200),
        (True, "127.0.0.1", {"host": "localhost"}, 200),
        (True, "127.0.0.1", {"host": "LocalHost:12001"}, 200),
        (True, "::1", {"host": "[::1]:12001"}, 200),
        (True, "::1", {"host": "[::2]:12001"}, 401),
        (True, "10.0.0.1", {"host": "localhost"}, 401),
        (False, "127.0.0.1", {}, 401),
    ],
)
def test_loopback_is_trusted_only_when_it_is_set_and_a_program_on_this_machine_calls(
    world: World, key_file: Path, trust: bool, peer: str, header: dict[str, Any], status: int
) -> None:
    function = world.function(trust_loopback=trust, seal_keys=(key_file,))
    assert post(function, drift(), peer=peer, **header).status == status


def test_a_secret_that_cannot_be_read_is_503_and_unready_but_never_lets_anybody_in(
    world: World, key_file: Path
) -> None:
    function = world.function(trust_loopback=False, seal_keys=(key_file,))
    key_file.unlink()
    assert post(function, drift(), key=b"").status == 503
    ready = ask(function, "GET", "/health/readiness")
    assert ready.status == 503
    assert "seal.key" in json.loads(ready.body)["problems"][0]


def test_an_empty_secret_lets_nobody_in(world: World, token_file: Path) -> None:
    token_file.write_text("\n")
    function = world.function(trust_loopback=False, bearer_tokens=(token_file,))
    assert post(function, drift(), authorization="Bearer ").status == 503


# --- rejected: 422 ---


def test_a_dataset_outside_the_prefixes_is_422_and_creates_nothing(world: World) -> None:
    response = post(world.function(), drift(dataset_uri="s3://elsewhere/x"))
    assert response.status == 422
    assert "dataset_uri" in json.loads(response.body)["faults"]
    assert world.ports.ledger.count() == 0


def test_a_known_model_keeps_a_row_of_the_rejection_but_no_evidence(world: World) -> None:
    function = world.function()
    post(function, drift())
    before = world.record().status
    for _ in range(3):
        assert post(function, drift(fingerprint="00000000000000bb", dataset_uri="s3://data/../x")).status == 422
    after = world.record().status
    assert after.evidence == before.evidence
    assert [(row.reason, row.count) for row in after.history[len(before.history) :]] == [
        ("Invalid", 1)
    ]  # repeats cost a read


def test_an_unknown_model_is_422_where_models_are_registered_first(world: World) -> None:
    world.limits = replace(world.limits, create_unknown=False)
    response = post(world.function(), drift())
    assert response.status == 422
    assert "model" in json.loads(response.body)["faults"]
    assert world.ports.ledger.count() == 0


def test_models_beyond_the_cap_are_422_and_known_ones_go_on(world: World) -> None:
    world.limits = replace(world.limits, max_models=2)
    function = world.function()
    assert [post(function, drift(model)).status for model in ("a", "b", "c")] == [200, 200, 422]
    assert post(function, drift("a")).status == 204


def test_foreign_text_in_an_answer_is_ascii(world: World) -> None:
    headers, body = events.encode(events.to_cloudevent(drift()))
    wrong = {**json.loads(body), "model": "\u202e\x1b[31mevil"}
    response = ask(world.function(), headers=headers, body=json.dumps(wrong).encode())
    assert response.status == 400
    assert response.body.isascii()
    assert b"\x1b" not in response.body


# --- not now: 503 ---


class Broken:
    """A port whose calls all fail, as an API server that does not answer or refuses."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Any:
        def call(*_: object, **__: object) -> Any:
            raise self._error

        return call


class Losing:
    """A ledger whose every write is lost to somebody else."""

    def __init__(self, world: World) -> None:
        self._ledger = world.ports.ledger
        self.writes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    def write(self, *_: object, **__: object) -> Record:
        self.writes += 1
        raise Conflict("somebody else")


@pytest.mark.parametrize("port", ["ledger", "budgets"])
@pytest.mark.parametrize(
    ("error", "status"),
    [(Temporary("the API server does not answer"), 503), (RuntimeError("a bug"), 503), (OSError("reset"), 503)],
    ids=["temporary", "bug", "os"],
)
def test_a_store_that_fails_is_503(world: World, port: str, error: Exception, status: int) -> None:
    ports = replace(world.ports, **{port: Broken(error)})
    response = post(world.function(world.trigger(ports)), drift())
    assert response.status == status
    assert world.workflow_names() == []
    assert post(world.function(), drift()).status == 200, "the same event, delivered again"


def test_a_conflict_after_every_retry_is_503(world: World) -> None:
    post(world.function(), drift(ends_at=NOW))
    ledger = Losing(world)
    trigger = world.trigger(Ports(ledger, world.ports.budgets, world.ports.workflows))
    assert post(world.function(trigger), drift()).status == 503
    assert ledger.writes == 8


def test_a_ledger_from_a_newer_version_is_503(world: World) -> None:
    function = world.function()
    post(function, drift())
    stored = world.objects.get("ManagedModel", "churn.default")
    assert stored is not None
    status = {**stored.doc["status"], "formatVersion": 99}
    world.objects.replace("ManagedModel", stored.name, {**stored.doc, "status": status}, stored.version)
    assert post(function, drift()).status == 503


@pytest.mark.parametrize("error", [Temporary("no answer"), Permanent("refused")], ids=["temporary", "refused"])
def test_a_workflow_that_cannot_be_created_is_reconciles_work_and_no_failure(world: World, error: Exception) -> None:
    ports = replace(world.ports, workflows=_CreatesNothing(world, error))
    assert post(world.function(world.trigger(ports)), drift()).status == 200, "the claim is made"
    retrain = world.record().status.retrain
    assert retrain is not None
    assert (retrain.phase, world.workflow_names()) == ("Claimed", [])
    world.now += timedelta(seconds=61)
    assert post(world.function(), wake_up()).status == 204
    assert world.workflow_names() == [retrain.workflow]


class _CreatesNothing:
    def __init__(self, world: World, error: Exception) -> None:
        self._workflows = world.ports.workflows
        self._error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._workflows, name)

    def create(self, *_: object) -> str:
        raise self._error


def test_too_many_at_once_are_503(world: World) -> None:
    function = world.function()
    function._max_in_flight = 1
    held, release = threading.Event(), threading.Event()

    async def slow(_: Request) -> Response:
        held.set()
        await asyncio.to_thread(release.wait, 10)
        return Response(204)

    function._routes["/slow"] = (frozenset(["POST"]), slow)

    async def both() -> tuple[Response, Response]:
        first = asyncio.create_task(function.handle(Request("POST", "/slow", {}, chunks())))
        await asyncio.to_thread(held.wait, 10)
        second = await function.handle(Request("POST", "/slow", {}, chunks()))
        release.set()
        return await first, second

    first, second = asyncio.run(both())
    assert (first.status, second.status) == (204, 503)


# --- wake-ups ---


@pytest.mark.parametrize("kind", ["dev.knative.sources.ping", events.FINISHED])
def test_a_wake_up_needs_no_seal_and_reconciles(world: World, key_file: Path, kind: str) -> None:
    function = world.function(trust_loopback=False, seal_keys=(key_file,))
    post(function, drift(), key=KEY)
    world.end(world.workflow_names()[0], "Rejected")
    response = post(function, wake_up(kind), peer="10.0.0.1")
    assert (response.status, response.body) == (204, b"")
    retrain = world.record().status.retrain
    assert retrain is not None
    assert (retrain.phase, retrain.outcome) == ("Finished", "Rejected")


def test_a_finished_event_is_not_believed_only_the_workflow_is(world: World) -> None:
    function = world.function()
    post(function, drift())
    lie = replace(wake_up(events.FINISHED), data=b'{"model":"churn","outcome":"Promoted"}')
    assert post(function, lie).status == 204
    retrain = world.record().status.retrain
    assert retrain is not None
    assert retrain.phase == "Submitted"


def test_reconcile_can_be_posted_without_an_event(world: World) -> None:
    response = ask(world.function(), "POST", "/reconcile")
    assert (response.status, response.body) == (204, b"")


def test_a_wake_up_during_a_reconcile_makes_it_look_again(world: World) -> None:
    class Slow:
        def __init__(self) -> None:
            self.started, self.go, self.rounds = threading.Event(), threading.Event(), 0

        def reconcile(self, *, until: Callable[[], bool]) -> dict[str, int]:  # noqa: ARG002
            self.rounds += 1
            self.started.set()
            assert self.go.wait(10)
            return {}

    slow = Slow()
    function = world.function(slow)  # type: ignore[arg-type]

    async def run() -> tuple[int, int]:
        first = asyncio.create_task(function.handle(Request("POST", "/reconcile", {}, chunks())))
        await asyncio.to_thread(slow.started.wait, 10)
        second = await function.handle(Request("POST", "/reconcile", {}, chunks()))
        assert slow.rounds == 1
        slow.go.set()
        return (await first).status, second.status

    assert asyncio.run(run()) == (204, 204)
    assert slow.rounds == 2


def test_a_store_that_does_not_answer_a_wake_up_is_503(world: World) -> None:
    ports = replace(world.ports, budgets=Broken(Temporary("no answer")))
    assert post(world.function(world.trigger(ports)), wake_up()).status == 503


# --- dead letters ---


@pytest.mark.parametrize("path", ["/", "/dead-letters"])
def test_a_rejected_alert_is_logged_counted_and_taken(
    world: World, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    function = world.function()
    letter = events.CloudEvent(
        type=events.REJECTED, source="/alertmanager/test", id="x", data=b'{"faults":{"model":"missing"}}',
        extensions={"knativeerrorcode": "422"},
    )  # fmt: skip
    with caplog.at_level(logging.WARNING, "aegis"):
        response = post(function, letter, path=path)
    assert (response.status, response.body) == (204, b"")
    (logged,) = [record for record in caplog.records if record.message == "dead letter"]
    assert "missing" in vars(logged)["data"]
    assert vars(logged)["knativeerrorcode"] == "422"
    metrics = ask(function, "GET", "/metrics").body.decode()
    assert f'aegis_trigger_dead_letters_total{{type="{events.REJECTED}"}} 1.0' in metrics


def test_a_drift_event_that_died_is_a_dead_letter_and_orders_nothing(world: World) -> None:
    assert post(world.function(), drift(), path="/dead-letters").status == 204
    assert world.ports.ledger.count() == 0


def test_a_dead_letter_of_any_type_is_counted_as_other(world: World) -> None:
    function = world.function()
    for name in ("a.b", "c.d"):
        assert post(function, events.CloudEvent(type=name, source="/x", id="1"), path="/dead-letters").status == 204
    assert 'type="other"} 2.0' in ask(function, "GET", "/metrics").body.decode()


def test_a_dead_letter_that_is_no_event_is_400(world: World) -> None:
    assert ask(world.function(), "POST", "/dead-letters", body=b"?").status == 400


# --- the rest of the surface ---


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 405),
        ("HEAD", "/", 405),
        ("PUT", "/", 405),
        ("GET", "/reconcile", 405),
        ("GET", "/dead-letters", 405),
        ("POST", "/health/liveness", 405),
        ("POST", "/metrics", 405),
        ("POST", "/other", 404),
        ("POST", "//", 404),
        ("POST", "/reconcile/", 404),
    ],
)
def test_other_methods_and_paths(world: World, method: str, path: str, status: int) -> None:
    response = ask(world.function(), method, path)
    assert response.status == status
    assert ("allow" in response.headers) == (status == 405)


def test_health_status_and_metrics(world: World) -> None:
    function = world.function()
    assert ask(function, "GET", "/health/liveness").status == 200
    assert ask(function, "GET", "/health/readiness").status == 200
    post(function, drift())
    status = json.loads(ask(function, "GET", "/status").body)
    assert "1 models" in status["ledger"]
    text = ask(function, "GET", "/metrics").body.decode()
    assert 'aegis_trigger_decisions_total{decision="Submit",reason="Drift"} 1.0' in text
    assert 'aegis_trigger_requests_total{path="/",status="200"} 1.0' in text


def test_readiness_does_not_depend_on_the_ledger_but_status_shows_it(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    function = world.function(ledger=tmp_path / "file" / "ledger.db")
    assert ask(function, "GET", "/health/readiness").status == 200
    assert "not usable" in json.loads(ask(function, "GET", "/status").body)["ledger"]


def test_a_body_over_the_limit_is_413_after_it_was_drained(world: World) -> None:
    function = world.function(body_limit=1000)
    drained = 0

    async def fifty() -> AsyncIterator[bytes]:
        nonlocal drained
        for _ in range(50):
            drained += 100
            yield b" " * 100

    response = asyncio.run(function.handle(Request("POST", "/", {}, fifty())))
    assert (response.status, drained) == (413, 5000)


def test_a_body_at_the_limit_is_read(world: World) -> None:
    headers, body = events.encode(events.to_cloudevent(drift()))
    assert ask(world.function(body_limit=len(body)), headers=headers, body=body).status == 200
    assert ask(world.function(body_limit=len(body) - 1), headers=headers, body=body).status == 413


# --- whatever is sent ---

_TEXT = st.text(max_size=20)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=8,
)
_FIELDS = ["model", "environment", "model_version", "severity", "fingerprint", "starts_at", "ends_at", "dataset_uri",
           "score", "feature", "summary", "labels", "truncated"]  # fmt: skip
_HEADER = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=30)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.dictionaries(st.sampled_from(_FIELDS), _JSON, max_size=4),
    headers=st.dictionaries(
        st.sampled_from(["ce-id", "ce-time", "ce-type", "ce-source", "ce-subject", "ce-specversion", "ce-seal",
                         "ce-traceparent", "content-type", "prefer", "authorization"]),
        _HEADER,
        max_size=3,
    ),
    structured=st.booleans(),
)  # fmt: skip
def test_no_input_gets_an_answer_that_a_broker_misreads(
    world: World, data: dict[str, Any], headers: dict[str, str], structured: bool
) -> None:
    own = events.to_cloudevent(drift())
    body = json.dumps({**json.loads(own.data), **data}).encode()
    encoded, sent = events.encode(replace(own, data=b"{}"), structured=structured)
    sent = sent.replace(b'"data": {}', b'"data": ' + body) if structured else body
    response = ask(world.function(), headers={**encoded, **headers}, body=sent)
    broker_safe(response)
    assert response.status in (200, 204, 400, 401, 422), response.body


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=200), media=st.sampled_from(["", "application/json", "application/cloudevents+json"]))
def test_no_bytes_get_an_answer_that_a_broker_misreads(world: World, body: bytes, media: str) -> None:
    response = ask(world.function(), headers={"content-type": media} if media else {}, body=body)
    broker_safe(response)
    assert response.status == 400
