"""The envelope and its alerts: each row of what may arrive malformed."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alert_receiver.alertmanager import Alert, BadEnvelope, Rejected, fingerprint, read
from tests.receiver.world import NOW, alert, labels, payload

CAPTURES = sorted(path for path in (Path(__file__).parent.parent / "captures").glob("s*.json"))


def one(**changes: Any) -> Alert | Rejected:
    (found,) = read(payload(alert(**changes)), now=NOW).alerts
    return found


def good(**changes: Any) -> Alert:
    found = one(**changes)
    assert isinstance(found, Alert), found
    return found


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        pytest.param(b"", "is not JSON", id="empty"),
        pytest.param(b"alerts", "is not JSON", id="not JSON"),
        pytest.param(b"[]", "must be a JSON object", id="an array"),
        pytest.param(b'"4"', "must be a JSON object", id="text"),
        pytest.param(b"\xef\xbb\xbf" + payload(alert()), "byte order mark", id="BOM"),
        pytest.param(payload(alert()).decode().encode("utf-16"), "is not UTF-8", id="UTF-16"),
        pytest.param(b'{"version":"4\xff"}', "is not UTF-8", id="invalid UTF-8"),
        pytest.param(b'{"version":"4","version":"4","alerts":[]}', "duplicate key", id="duplicate keys"),
        pytest.param(b'{"version":"4","alerts":[NaN]}', "NaN", id="NaN"),
        pytest.param(b'{"version":"4","alerts":[-Infinity]}', "Infinity", id="infinity"),
        pytest.param(b'{"version":"4","alerts":[1e999]}', "out of range", id="a number out of range"),
        pytest.param(b'{"version":"4","alerts":[' + b"9" * 5000 + b"]}", "digits", id="an endless number"),
        pytest.param(b"[" * 100_000, "too deeply", id="deep nesting that never ends"),
        pytest.param(b"[" * 70 + b"]" * 70, "too deeply", id="deep nesting"),
        pytest.param(b'{"version":"4","alerts":[],"x":"\\ud800"}', "surrogate", id="half a surrogate pair"),
        pytest.param(payload(alert(), version=4), "not '4' (int)", id="version an integer"),
        pytest.param(payload(alert(), version="1"), "not '1' (str)", id="version of Grafana"),
        pytest.param(payload(alert(), version=...), "version: missing", id="version missing"),
        pytest.param(payload(alerts=...), "alerts: missing", id="alerts missing"),
        pytest.param(payload(alerts=None), "alerts: missing", id="alerts null"),
        pytest.param(payload(alerts={}), "alerts: must be an array", id="alerts an object"),
        pytest.param(payload(truncatedAlerts="1"), "truncatedAlerts: must be a whole", id="truncatedAlerts as text"),
        pytest.param(payload(truncatedAlerts=True), "truncatedAlerts: must be a whole", id="truncatedAlerts true"),
        pytest.param(payload(truncatedAlerts=-1), "truncatedAlerts: must be a whole", id="truncatedAlerts negative"),
        pytest.param(payload(truncatedAlerts=10**400), "truncatedAlerts: must be a whole", id="truncatedAlerts huge"),
        pytest.param(payload(receiver=5), "receiver: must be text", id="receiver a number"),
        pytest.param(payload(groupLabels=[1]), "groupLabels: must be an object", id="groupLabels a list"),
    ],
)
def test_a_bad_envelope_is_refused_and_its_cause_named(body: bytes, cause: str) -> None:
    with pytest.raises(BadEnvelope) as caught:
        read(body, now=NOW)
    assert cause in str(caught.value)


def test_every_fault_of_an_envelope_is_named() -> None:
    with pytest.raises(BadEnvelope) as caught:
        read(payload(version=4, alerts=...), now=NOW)
    assert set(caught.value.faults) == {"version", "alerts"}


def test_brackets_in_text_are_not_nesting() -> None:
    assert good(annotations={"summary": "[{" * 500}).annotations["summary"] == "[{" * 500


def test_no_alerts_is_a_good_envelope() -> None:
    assert read(payload(), now=NOW).alerts == ()


def test_the_smallest_payload_that_people_post_is_enough() -> None:
    body = (
        b'{"version":"4","alerts":[{"status":"firing","labels":{"alertname":"A"},"startsAt":"2025-01-01T00:00:00Z"}]}'
    )
    (found,) = read(body, now=NOW).alerts
    assert isinstance(found, Alert)
    assert found.recomputed == "absent"
    assert found.ends_at is None


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        pytest.param({"labels": labels(shard=7)}, "labels.shard", id="numeric label value"),
        pytest.param({"labels": labels(shard=["a"])}, "labels.shard", id="list as label value"),
        pytest.param({"labels": labels(shard=True)}, "labels.shard", id="boolean label value"),
        pytest.param({"labels": ["a"]}, "labels", id="labels a list"),
        pytest.param({"annotations": {"summary": 1}}, "annotations.summary", id="numeric annotation"),
        pytest.param({"startsAt": None}, "startsAt", id="startsAt absent"),
        pytest.param({"startsAt": "yesterday"}, "startsAt", id="startsAt invalid"),
        pytest.param({"startsAt": "2026-02-30T00:00:00Z"}, "startsAt", id="startsAt no such day"),
        pytest.param({"startsAt": "2026-01-01T00:00:00"}, "startsAt", id="startsAt without zone"),
        pytest.param({"startsAt": 1767225600}, "startsAt", id="startsAt a number"),
        pytest.param({"startsAt": "0001-01-01T00:00:00Z"}, "startsAt", id="startsAt year 1"),
        pytest.param({"startsAt": "0001-01-01T00:00:00+05:00"}, "startsAt", id="startsAt year 1 with an offset"),
        pytest.param({"startsAt": "9999-12-31T23:59:59-01:00"}, "startsAt", id="startsAt past the last year"),
        pytest.param({"startsAt": "2026-01-02T12:00:00.001Z"}, "startsAt", id="startsAt more than 24 h ahead"),
        pytest.param({"endsAt": "2026-01-01T10:00:00Z"}, "endsAt", id="endsAt before startsAt"),
        pytest.param({"endsAt": "soon"}, "endsAt", id="endsAt invalid"),
        pytest.param({"status": "pending"}, "status", id="unknown status"),
        pytest.param({"status": ["firing"]}, "status", id="status a list"),
        pytest.param({"status": None}, "status", id="status absent"),
        pytest.param({"generatorURL": {"a": 1}}, "generatorURL", id="generatorURL an object"),
        pytest.param({"fingerprint": 7}, "fingerprint", id="fingerprint a number"),
    ],
)
def test_a_faulty_alert_is_rejected_alone(changes: dict[str, Any], field: str) -> None:
    found = read(payload(alert(**changes), alert()), now=NOW).alerts
    assert isinstance(found[0], Alert)  # the good one
    assert isinstance(found[1], Rejected)
    assert list(found[1].faults) == [field]


def test_every_fault_of_an_alert_is_named() -> None:
    found = one(labels=labels(a=1, b=2), status="?", startsAt="?", endsAt="?")
    assert isinstance(found, Rejected)
    assert set(found.faults) == {"labels.a", "labels.b", "status", "startsAt", "endsAt"}


@pytest.mark.parametrize("raw", [1, None, "alert", [], True])
def test_an_alert_that_is_no_object_is_rejected(raw: Any) -> None:
    (found,) = read(payload(raw), now=NOW).alerts
    assert isinstance(found, Rejected)
    assert found.faults == {"alert": "must be an object"}
    assert found.status == ""


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-01T10:00:00.123456789Z", datetime(2026, 1, 1, 10, 0, 0, 123000, UTC)),
        ("2026-01-01T12:30:00+02:30", datetime(2026, 1, 1, 10, tzinfo=UTC)),
        ("2026-01-01t10:00:00.5z", datetime(2026, 1, 1, 10, 0, 0, 500000, UTC)),
        ("2026-01-02T12:00:00Z", datetime(2026, 1, 2, 12, tzinfo=UTC)),  # just 24 h ahead
    ],
)
def test_times_become_utc_milliseconds(text: str, moment: datetime) -> None:
    assert good(startsAt=text).starts_at == moment


def test_a_firing_alert_has_no_end() -> None:
    assert good(endsAt="2026-01-01T13:00:00Z").ends_at is None


def test_a_resolved_alert_keeps_its_end() -> None:
    assert good(status="resolved", endsAt="2026-01-01T11:30:00Z").ends_at == datetime(2026, 1, 1, 11, 30, tzinfo=UTC)


@pytest.mark.parametrize("ends_at", [None, "", "0001-01-01T00:00:00Z", "0001-01-01T00:00:00+01:00"])
def test_a_resolved_alert_without_an_end_ended_now(ends_at: str | None) -> None:
    assert good(status="resolved", endsAt=ends_at).ends_at == NOW


def test_a_resolved_alert_that_begins_ahead_does_not_end_before_it() -> None:
    found = good(status="resolved", startsAt="2026-01-01T13:00:00Z")
    assert found.ends_at == found.starts_at


def test_the_fingerprint_is_alertmanagers() -> None:
    # From a recorded delivery.
    recorded = {
        "alertname": "ModelDrift",
        "instance": "10.0.0.0:8000",
        "job": "drift-exporter",
        "model_name": "model-00",
        "model_version": "1",
        "severity": "warning",
    }
    assert fingerprint(recorded) == "7ce948e90483a789"


@pytest.mark.parametrize(("given_", "why"), [("", "absent"), ("0" * 16, "wrong"), (None, "absent")])
def test_a_fingerprint_that_is_absent_or_wrong_is_recomputed(given_: str | None, why: str) -> None:
    found = good(fingerprint=given_)
    assert (found.recomputed, found.fingerprint) == (why, fingerprint(labels()))


def test_a_right_fingerprint_is_kept() -> None:
    assert good(fingerprint=fingerprint(labels())).recomputed is None


def test_empty_labels_and_annotations_count_as_absent() -> None:
    found = good(labels=labels(zone=""), annotations={"summary": ""})
    assert found.labels == labels()
    assert found.annotations == {}
    assert good(labels=labels(zone="")).fingerprint == fingerprint(labels())


def test_the_same_alert_twice_is_ordered_by_its_begin() -> None:
    resolved = alert(status="resolved", startsAt="2026-01-01T09:00:00Z", endsAt="2026-01-01T09:30:00Z")
    found = read(payload(alert(), resolved), now=NOW).alerts
    assert [a.firing for a in found if isinstance(a, Alert)] == [False, True]


def test_of_one_begin_the_firing_comes_before_its_end() -> None:
    resolved = alert(status="resolved", endsAt="2026-01-01T11:30:00Z")
    found = read(payload(resolved, alert()), now=NOW).alerts
    assert [a.firing for a in found if isinstance(a, Alert)] == [True, False]


def test_truncated_alerts_are_counted() -> None:
    assert read(payload(truncatedAlerts=3), now=NOW).truncated == 3


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.stem)
def test_every_recorded_alert_is_read_and_has_the_fingerprint_that_we_compute(path: Path) -> None:
    recorded = json.loads(path.read_text())
    bodies = [d["request"].get("body") for d in recorded["deliveries"]]
    for body in bodies:
        if not isinstance(body, dict) or "alerts" not in body:
            continue
        envelope = read(json.dumps(body).encode(), now=datetime(2026, 11, 23, 8, tzinfo=UTC))
        assert len(envelope.alerts) == len(body["alerts"])
        for found in envelope.alerts:
            assert isinstance(found, Alert), found
            assert found.recomputed is None


def test_there_are_recordings() -> None:
    assert len(CAPTURES) > 40


texts = st.text(max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
times = st.datetimes().map(lambda t: t.isoformat() + "Z") | st.sampled_from(
    ["0001-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-01-01T00:00:60Z", ""]
)
alerts = st.fixed_dictionaries(
    {},
    optional={
        "status": st.sampled_from(["firing", "resolved", "x"]) | values,
        "labels": st.dictionaries(texts, texts | values, max_size=4) | values,
        "annotations": st.dictionaries(texts, texts | values, max_size=4) | values,
        "startsAt": times | values,
        "endsAt": times | values,
        "generatorURL": texts | values,
        "fingerprint": texts | values,
    },
)


@given(st.lists(alerts | values, max_size=4))
def test_whatever_alerts_arrive_each_is_an_alert_or_rejected_with_faults(raw: list[Any]) -> None:
    envelope = read(payload(*raw), now=NOW)
    assert len(envelope.alerts) == len(raw)
    for found in envelope.alerts:
        if isinstance(found, Rejected):
            assert found.faults
        else:
            assert found.starts_at.utcoffset() == NOW.utcoffset()
            assert found.ends_at is None or found.ends_at >= found.starts_at
            assert found.firing == (found.ends_at is None)


@given(values | st.fixed_dictionaries({}, optional={"version": st.just("4") | values, "alerts": values}))
def test_whatever_json_arrives_it_is_an_envelope_or_a_named_fault(value: Any) -> None:
    try:
        read(json.dumps(value).encode(), now=NOW)
    except BadEnvelope as exc:
        assert exc.message  # noqa: PT017  # either outcome is right


@given(st.binary(max_size=64))
def test_whatever_bytes_arrive_they_are_an_envelope_or_a_named_fault(body: bytes) -> None:
    with pytest.raises(BadEnvelope):
        read(body, now=NOW)
