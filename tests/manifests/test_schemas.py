"""The published schemas against what the functions and the last step really send."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]  # its stubs are a package of their own

from aegis import events
from retrain_trigger.policy import Kind
from sign_model.finish import request
from tests.events.test_cloudevents import DRIFT, NOW, drifts
from tests.manifests.overlays import KNATIVE, Json, built, of
from tests.receiver.world import World as Receiver
from tests.receiver.world import alert, labels, payload
from tests.trigger.world import PREFIX, drift, post
from tests.trigger.world import World as Trigger

SCHEMAS = KNATIVE / "schemas"


def schema(type_: str) -> Json:
    found: Json = json.loads((SCHEMAS / f"{type_}.json").read_text())
    return found


def conforms(type_: str, data: Any) -> None:
    Draft202012Validator(schema(type_)).validate(data)
    assert data.keys() <= schema(type_)["properties"].keys()


def test_each_event_type_has_its_schema_and_each_schema_its_event_type(kubectl: str) -> None:
    types = {d["spec"]["type"]: d["spec"] for d in of(built(kubectl, "quickstart"), "EventType").values()}
    assert {file.stem for file in SCHEMAS.iterdir()} == types.keys()
    sent = {events.DETECTED, events.RESOLVED, events.REJECTED, events.SUBMITTED, events.FINISHED}
    assert types.keys() == sent
    for type_, spec in types.items():
        assert spec["schema"] == schema(type_)["$id"] == f"urn:aegis:schema:{type_}"
        assert spec["reference"]["name"] == "default"
        Draft202012Validator.check_schema(schema(type_))


@given(drifts)
@settings(deadline=None)
def test_every_drift_event_conforms(event: events.DriftEvent) -> None:
    made = dataclasses.replace(event, ends_at=None if event.firing else NOW)
    data = json.loads(events.to_cloudevent(made).data)
    type_ = events.DETECTED if event.firing else events.RESOLVED
    conforms(type_, data)
    assert data.keys() == schema(type_)["properties"].keys() == set(schema(type_)["required"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "a/b"),
        ("environment", ""),
        ("model_version", None),
        ("severity", "page"),
        ("fingerprint", "xyz"),
        ("score", "0.5"),
        ("labels", {"a": 1}),
        ("truncated", "no"),
        ("starts_at", None),
        ("ends_at", "2026-01-01T00:00:00.000Z"),
    ],
)
def test_what_the_trigger_would_refuse_the_schema_refuses(field: str, value: Any) -> None:
    data = json.loads(events.to_cloudevent(DRIFT).data) | {field: value}
    assert not Draft202012Validator(schema(events.DETECTED)).is_valid(data)


def test_a_rejected_alert_conforms() -> None:
    receiver = Receiver()
    receiver.post(payload(alert(labels=labels(model_name=None)), alert(startsAt="x"), "no alert"))
    rejected = [json.loads(e.data) for e in receiver.sink.events if e.type == events.REJECTED]
    assert len(rejected) == 3
    for data in rejected:
        conforms(events.REJECTED, data)


def test_the_reply_to_a_retrain_conforms(tmp_path: Path) -> None:
    answer = post(Trigger(tmp_path / "ledger.db").function(), drift(dataset_uri=PREFIX + "new"))
    assert answer.status == 200
    event = events.decode(answer.headers, answer.body)
    assert event.type == events.SUBMITTED
    conforms(events.SUBMITTED, json.loads(event.data))
    assert schema(events.SUBMITTED)["properties"]["decision"] == {"const": Kind.SUBMIT.value}


def test_the_end_of_a_retrain_conforms() -> None:
    env = {"AEGIS_SINK": "http://sink", "AEGIS_WORKFLOW": "aegis-churn-00000000-1", "AEGIS_WORKFLOW_STATUS": "Failed"}
    told = request(env, datetime.now(UTC))
    assert told is not None
    assert told.get_header("Ce-type") == events.FINISHED
    assert isinstance(told.data, bytes)
    conforms(events.FINISHED, json.loads(told.data))
