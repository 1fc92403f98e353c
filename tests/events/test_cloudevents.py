"""CloudEvents over HTTP: what is written can be read, by us and by the SDK; what is malformed is named."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cloudevents.conversion import from_http, to_binary
from cloudevents.http import CloudEvent as SdkEvent
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis.events import (
    MAX_DEPTH,
    CloudEvent,
    DriftEvent,
    Malformed,
    canonical_json,
    decode,
    encode,
    event_id,
    from_cloudevent,
    parse_time,
    rfc3339,
    strict_json,
    to_cloudevent,
    to_ms,
)

NOW = datetime(2026, 1, 1, 12, 0, 0, 123000, UTC)
BINARY = {"content-type": "application/json", "ce-specversion": "1.0", "ce-id": "1", "ce-type": "t", "ce-source": "/s"}
ATTRIBUTES = {"specversion": "1.0", "id": "1", "type": "t", "source": "/s"}

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
moments = st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(9000, 1, 1)).map(  # noqa: DTZ001  # made UTC below
    lambda t: t.replace(tzinfo=UTC, microsecond=t.microsecond // 1000 * 1000)
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=10,
)
cloud_events = st.builds(
    CloudEvent,
    type=text,
    source=text,
    id=text,
    subject=st.just("") | text,
    time=st.none() | moments,
    data=st.just(b"") | json_values.filter(lambda v: v is not None).map(canonical_json),
    extensions=st.dictionaries(st.from_regex(r"x[a-z0-9]{1,18}", fullmatch=True), text, max_size=3),
)


def structured(**changes: Any) -> bytes:
    return json.dumps({k: v for k, v in (ATTRIBUTES | changes).items() if v is not ...}).encode()


@given(cloud_events, st.booleans())
@settings(deadline=None)
def test_an_event_that_is_written_is_read_back(event: CloudEvent, structured_mode: bool) -> None:
    headers, body = encode(event, structured=structured_mode)
    assert all(value.isascii() and value.isprintable() for value in headers.values())
    assert decode(headers, body) == event


@given(cloud_events)
@settings(deadline=None)
def test_the_sdk_reads_what_is_written_in_binary_mode(event: CloudEvent) -> None:
    headers, body = encode(event)
    found = from_http(SdkEvent, headers, body)
    assert found.get_attributes().keys() >= {"specversion", "id", "source", "type", *event.extensions}
    assert found.get_data() == (json.loads(event.data) if event.data else None)


def test_binary_headers_are_those_of_the_sdk() -> None:
    event = CloudEvent(type="t", source="/s", id="1", subject="a/b", time=NOW, data=b"{}", extensions={"seal": "0f"})
    attributes = {"type": "t", "source": "/s", "id": "1", "subject": "a/b", "time": rfc3339(NOW), "seal": "0f"}
    headers, _ = to_binary(SdkEvent(attributes | {"datacontenttype": "application/json"}, {}))
    assert encode(event)[0] == headers


@pytest.mark.parametrize("missing", ["type", "source", "id"])
def test_an_event_without_an_attribute_that_is_needed_is_not_written(missing: str) -> None:
    attributes: dict[str, Any] = {"type": "t", "source": "/s", "id": "1"} | {missing: ""}
    event = CloudEvent(**attributes)
    with pytest.raises(Malformed):
        encode(event)


@pytest.mark.parametrize(
    ("headers", "body", "fault"),
    [
        ({"ce-id": ""}, b"", "id"),
        ({"ce-type": ""}, b"", "type"),
        ({"ce-source": ""}, b"", "source"),
        ({"ce-specversion": "0.3"}, b"", "specversion"),
        ({"ce-id": "x" * 1025}, b"", "id"),
        ({"ce-time": "yesterday"}, b"", "time"),
        ({"ce-some-thing": "x"}, b"", "some-thing"),
        ({"ce-data_base64": "x"}, b"", "data_base64"),
        ({"content-type": "text/plain"}, b"x", "datacontenttype"),
        ({"ce-datacontenttype": "text/plain"}, b"", "datacontenttype"),
    ],
)
def test_a_malformed_binary_event_is_refused_by_name(headers: dict[str, str], body: bytes, fault: str) -> None:
    with pytest.raises(Malformed) as caught:
        decode(BINARY | headers, body)
    assert list(caught.value.faults) == [fault]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"id": ...}, "id"),
        ({"id": 7}, "id"),
        ({"type": None}, "type"),
        ({"source": ["/s"]}, "source"),
        ({"specversion": 1.0}, "specversion"),
        ({"subject": 7}, "subject"),
        ({"time": 7}, "time"),
        ({"time": "2026-01-01"}, "time"),
        ({"data_base64": "e30="}, "data_base64"),
        ({"datacontenttype": "text/xml"}, "datacontenttype"),
        ({"datacontenttype": 7}, "datacontenttype"),
        ({"extension": {"a": 1}}, "extension"),
        ({"extension": None}, "extension"),
        ({"Extension": "x"}, "Extension"),
    ],
)
def test_a_malformed_structured_event_is_refused_by_name(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(Malformed) as caught:
        decode({"content-type": "application/cloudevents+json"}, structured(**changes))
    assert list(caught.value.faults) == [fault]


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'"x"', b"\xff", b'{"id":"1","id":"2"}', b"[" * 99999])
def test_a_body_that_is_no_event_is_refused(body: bytes) -> None:
    with pytest.raises(Malformed):
        decode({"content-type": "application/cloudevents+json"}, body)


@pytest.mark.parametrize(
    "media",
    ["application/cloudevents+json", "application/cloudevents+json; charset=utf-8", "application/json", "", None],
)
def test_a_structured_event_is_read_as_json(media: str | None) -> None:
    assert decode({} if media is None else {"content-type": media}, structured()).id == "1"


@pytest.mark.parametrize(
    "media",
    ["text/plain", "text/plain;charset=UTF-8", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
     "text/json", "application/cloudevents", "application/cloudevents+xml", "application/cloudevents+json, text/plain"],
)  # fmt: skip
def test_a_body_of_another_content_type_is_no_structured_event(media: str) -> None:
    with pytest.raises(Malformed, match="content type"):
        decode({"content-type": media}, structured())


def test_batches_are_refused() -> None:
    with pytest.raises(Malformed, match="batches"):
        decode({"content-type": "application/cloudevents-batch+json"}, b"[]")


def test_a_header_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(Malformed, match="UTF-8"):
        decode(BINARY | {"ce-subject": "%ff"}, b"")


def test_every_fault_is_named_at_once() -> None:
    with pytest.raises(Malformed) as caught:
        decode({}, structured(id="", type=7, time="?"))
    assert set(caught.value.faults) == {"id", "type", "time"}


def test_without_content_type_a_binary_body_counts_as_json() -> None:
    headers = {name: value for name, value in BINARY.items() if name != "content-type"}
    assert decode(headers, b'{"a":1}').data == b'{"a":1}'


names = st.sampled_from(
    ["content-type", "ce-specversion", "ce-id", "ce-type", "ce-source", "ce-time", "ce-subject", "x"]
)
latin = st.text(st.characters(max_codepoint=255), max_size=20)
common = st.sampled_from(
    ["1.0", "application/json", "application/cloudevents+json", "%F0%9F", "%00", "2026-01-01T00:00:00Z"]
)


@given(
    st.dictionaries(names, latin | common), st.binary(max_size=50) | json_values.map(lambda v: json.dumps(v).encode())
)
@settings(deadline=None)
def test_whatever_headers_and_body_arrive_they_are_an_event_or_malformed(headers: dict[str, str], body: bytes) -> None:
    for given_headers in (headers, BINARY | headers):
        try:
            event = decode(given_headers, body)
        except Malformed as exc:
            assert str(exc)  # noqa: PT017  # either outcome is right
        else:
            assert event.id
            assert event.type


@given(
    st.dictionaries(st.sampled_from([*ATTRIBUTES, "time", "subject", "data", "datacontenttype", "x", "Ü"]), json_values)
)
@settings(deadline=None)
def test_whatever_a_structured_event_holds_it_is_an_event_or_malformed(changes: dict[str, Any]) -> None:
    try:
        event = decode({"content-type": "application/cloudevents+json"}, structured(**changes))
    except Malformed as exc:
        assert str(exc)  # noqa: PT017  # either outcome is right
    else:
        assert all(isinstance(value, str) for value in event.extensions.values())


# --- JSON and time ---


@given(json_values)
def test_canonical_json_is_read_back_and_does_not_depend_on_order(value: Any) -> None:
    assert strict_json(canonical_json(value)) == value
    if isinstance(value, dict):
        assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)


def test_nesting_is_bounded_whatever_the_stack() -> None:
    deep = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert strict_json(deep) is not None
    with pytest.raises(ValueError, match="too deeply"):
        strict_json(b"[[" + deep + b"]]")


@given(moments)
def test_a_time_is_read_back(moment: datetime) -> None:
    assert parse_time(rfc3339(moment)) == moment


@given(moments, st.integers(min_value=-14 * 60 + 1, max_value=14 * 60 - 1))
def test_a_time_means_the_same_in_any_zone(moment: datetime, minutes: int) -> None:
    sign, away = "-" if minutes < 0 else "+", abs(minutes)
    local = (moment + timedelta(minutes=minutes)).isoformat(timespec="milliseconds")[:-6]
    assert to_ms(parse_time(f"{local}{sign}{away // 60:02}:{away % 60:02}")) == to_ms(moment)


@given(st.text(max_size=30) | st.from_regex(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", fullmatch=True))
def test_whatever_time_is_written_it_is_utc_or_refused(written: str) -> None:
    try:
        moment = parse_time(written)
    except ValueError:
        return
    assert moment.utcoffset() == timedelta(0)
    assert moment.microsecond % 1000 == 0


# --- drift events ---

DRIFT = DriftEvent(
    firing=True,
    source="/alertmanager/default",
    environment="default",
    model="churn",
    version="7",
    fingerprint="0123456789abcdef",
    starts_at=NOW,
    seen=NOW,
)
drifts = st.builds(
    DriftEvent,
    firing=st.booleans(),
    source=text,
    environment=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True),
    model=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True),
    version=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True),
    fingerprint=st.from_regex(r"[0-9a-f]{16}", fullmatch=True),
    starts_at=st.just(NOW),
    seen=moments,
    ends_at=st.just(NOW),
    severity=st.sampled_from(["info", "warning", "critical"]),
    dataset_uri=st.none() | text,
    score=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    feature=st.none() | text,
    summary=st.just("") | text,
    generator_url=st.just("") | text,
    labels=st.dictionaries(text, text, max_size=3),
    truncated=st.booleans(),
    traceparent=st.none() | st.just("00-" + "a" * 32 + "-" + "b" * 16 + "-01"),
)


@given(drifts, st.booleans())
@settings(deadline=None)
def test_a_drift_event_survives_the_wire(drift: DriftEvent, structured_mode: bool) -> None:
    if drift.firing:
        drift = DriftEvent(**{name: getattr(drift, name) for name in DriftEvent.__slots__} | {"ends_at": None})
    found = from_cloudevent(decode(*encode(to_cloudevent(drift), structured=structured_mode)))
    assert found == drift


def test_the_id_names_source_fingerprint_begin_and_status() -> None:
    known = event_id("/s", "f" * 16, NOW, firing=True)
    assert len(known) == 32
    assert known == event_id("/s", "f" * 16, NOW.astimezone(), firing=True)
    others = {
        event_id("/t", "f" * 16, NOW, firing=True),
        event_id("/s", "e" * 16, NOW, firing=True),
        event_id("/s", "f" * 16, NOW + timedelta(milliseconds=1), firing=True),
        event_id("/s", "f" * 16, NOW, firing=False),
    }
    assert len(others - {known}) == 4


def drift_with(**changes: Any) -> CloudEvent:
    event = to_cloudevent(DRIFT)
    data = {k: v for k, v in (strict_json(event.data) | changes).items() if v is not ...}
    return CloudEvent(type=event.type, source=event.source, id=event.id, time=event.time, data=canonical_json(data))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"model": ...}, "model"),
        ({"model": "a b"}, "model"),
        ({"model": 7}, "model"),
        ({"environment": ""}, "environment"),
        ({"model_version": "ü"}, "model_version"),
        ({"fingerprint": "xyz"}, "fingerprint"),
        ({"severity": "loud"}, "severity"),
        ({"starts_at": ...}, "starts_at"),
        ({"starts_at": "x"}, "starts_at"),
        ({"ends_at": "2020-01-01T00:00:00Z"}, "ends_at"),
        ({"score": "1"}, "score"),
        ({"score": True}, "score"),
        ({"score": 10**400}, "score"),
        ({"score": -(10**400)}, "score"),
        ({"labels": ["a"]}, "labels"),
        ({"labels": {"a": 1}}, "labels"),
        ({"summary": 7}, "summary"),
        ({"feature": 7}, "feature"),
        ({"generator_url": {}}, "generator_url"),
        ({"dataset_uri": 7}, "dataset_uri"),
    ],
)
def test_a_faulty_drift_event_is_refused_by_name(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(Malformed) as caught:
        from_cloudevent(drift_with(**changes))
    assert list(caught.value.faults) == [fault]


@pytest.mark.parametrize("data", [b"", b"[]", b"{"])
def test_data_that_is_no_object_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        from_cloudevent(CloudEvent(type="dev.aegis.drift.detected.v1", source="/s", id="1", time=NOW, data=data))


def test_the_largest_score_is_a_number() -> None:
    assert from_cloudevent(drift_with(score=10**308)).score == 1e308


def test_another_type_is_no_drift_event() -> None:
    with pytest.raises(Malformed):
        from_cloudevent(CloudEvent(type="x", source="/s", id="1"))


def test_a_drift_event_needs_a_time_an_end_if_resolved_and_the_subject_of_its_data() -> None:
    event = to_cloudevent(DRIFT)
    kept: dict[str, Any] = {"source": event.source, "id": event.id, "data": event.data}
    with pytest.raises(Malformed) as caught:
        from_cloudevent(CloudEvent(type="dev.aegis.drift.resolved.v1", subject="other/churn/7", **kept))
    assert set(caught.value.faults) == {"time", "ends_at", "subject"}


@given(st.dictionaries(st.sampled_from(list(strict_json(to_cloudevent(DRIFT).data))), json_values, max_size=5))
def test_whatever_data_a_drift_event_has_it_is_read_or_malformed(changes: dict[str, Any]) -> None:
    try:
        assert isinstance(from_cloudevent(drift_with(**changes)), DriftEvent)
    except Malformed as exc:
        assert exc.faults  # noqa: PT017  # either outcome is right
