"""The seal: what it holds together, and that nothing else opens it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from aegis.events import CloudEvent, canonical_json, decode, encode, parse_time, seal, sealed
from tests.events.test_cloudevents import NOW, cloud_events, text

KEY, OLD = b"k" * 32, b"o" * 32
EVENT = CloudEvent(type="t", source="/s", id="1", subject="a/b/c", time=NOW, data=b'{"a":1}')


def with_seal(event: CloudEvent, value: str) -> CloudEvent:
    return replace(event, extensions={**event.extensions, "seal": value})


def test_the_seal_is_the_documented_hmac() -> None:
    # Written down once, so that a change of the format is noticed: old and new processes run side by side.
    assert seal(EVENT, KEY) == "79ea3e40f14caa521fcf9a2b0e9a61f22643518ab431401b74887edf9875f426"


def test_the_seal_of_an_event_without_a_time_is_fixed_too() -> None:
    assert seal(replace(EVENT, time=None), KEY) == "3635cc5899a6e3ad120d452722f11040bcd274b4e1ba177d1da9d26fa05bebcf"


@given(cloud_events, st.booleans())
@settings(deadline=None)
def test_a_sealed_event_stays_sealed_in_either_mode(event: CloudEvent, structured: bool) -> None:
    made = with_seal(event, seal(event, KEY))
    assert sealed(decode(*encode(made, structured=structured)), [KEY])


def test_a_broker_that_rewrites_the_time_or_adds_an_extension_breaks_no_seal() -> None:
    made = with_seal(EVENT, seal(EVENT, KEY))
    headers, body = encode(made)
    headers["ce-time"] = "2026-01-01T13:00:00.123000000+01:00"
    headers["ce-knativearrivaltime"] = "2026-01-01T12:00:01Z"
    assert parse_time(headers["ce-time"]) == NOW
    assert sealed(decode(headers, body), [KEY])


def test_two_keys_are_valid_during_a_rotation() -> None:
    made = with_seal(EVENT, seal(EVENT, OLD))
    assert sealed(made, [KEY, OLD])
    assert not sealed(made, [KEY])
    assert not sealed(made, [])


@pytest.mark.parametrize(
    "change",
    [
        {"type": "u"},
        {"source": "/t"},
        {"id": "2"},
        {"subject": "a/b/d"},
        {"time": NOW + timedelta(milliseconds=1)},
        {"time": None},
        {"data": b'{"a":2}'},
        {"data": b""},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_sealed_part_is_held(change: Mapping[str, Any]) -> None:
    assert not sealed(with_seal(replace(EVENT, **change), seal(EVENT, KEY)), [KEY])


@pytest.mark.parametrize("value", ["", "0", "SEAL", "ü", seal(EVENT, KEY).upper(), seal(EVENT, KEY)[:-1]])
def test_a_wrong_seal_opens_nothing(value: str) -> None:
    assert not sealed(with_seal(EVENT, value), [KEY])
    assert not sealed(EVENT, [KEY])


@given(cloud_events, cloud_events)
@settings(deadline=None)
def test_two_events_that_differ_have_two_seals(one: CloudEvent, other: CloudEvent) -> None:
    assume(replace(one, extensions={}) != replace(other, extensions={}))
    assert seal(one, KEY) != seal(other, KEY)


@given(text, text, text)
def test_text_cannot_move_from_one_part_to_the_next(a: str, b: str, c: str) -> None:
    one = CloudEvent(type=a + b, source=c, id="1")
    other = CloudEvent(type=a, source=b + c, id="1")
    assert seal(one, KEY) != seal(other, KEY)


@given(cloud_events, st.text(max_size=70), st.binary(min_size=1, max_size=40))
@settings(deadline=None)
def test_whatever_seal_arrives_it_is_judged_without_an_error(event: CloudEvent, value: str, key: bytes) -> None:
    assume(value != seal(event, key))
    assert not sealed(with_seal(event, value), [key])


def test_structured_data_is_sealed_in_its_canonical_spelling() -> None:
    event = replace(EVENT, data=canonical_json({"b": 1, "a": "ü"}))
    headers, body = encode(with_seal(event, seal(event, KEY)), structured=True)
    loose = json.dumps(json.loads(body), indent=2).encode()  # a broker may spell the JSON anew
    assert sealed(decode(headers, loose), [KEY])
