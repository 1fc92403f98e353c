"""What the receiver answers and what its sink gets: each row of the answer table."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aegis import events
from aegis.errors import Permanent, Temporary
from aegis.events import CloudEvent
from alert_receiver import mapping
from alert_receiver.receiver import build
from alert_receiver.settings import from_env
from alert_receiver.sink import Refused
from tests.receiver.test_alertmanager import alerts, values
from tests.receiver.world import JSON, World, alert, labels, parsed, payload

EXAMPLE = Path(__file__).with_name("example.json").read_bytes()
BAD = alert(labels=labels(model_name="a b"))


def basic(user: str, password: str) -> dict[str, str]:
    return JSON | {"authorization": "Basic " + b64encode(f"{user}:{password}".encode()).decode()}


# --- stored, duplicate, resolved, not ours ---


def test_an_alert_is_forwarded_and_acknowledged() -> None:
    world = World()
    response = world.post(payload(alert()))
    assert (response.status, parsed(response)) == (200, {"forwarded": 1})
    (event,) = world.sink.events
    assert (event.type, event.source, event.subject) == (events.DETECTED, "/alertmanager/default", "default/churn/7")
    assert world.metric("aegis_receiver_alerts_total", result="forwarded") == 1


def test_a_repeat_is_forwarded_again_under_the_same_id() -> None:
    world = World()
    assert [world.post(payload(alert())).status for _ in range(2)] == [200, 200]
    first, second = world.sink.events
    assert first.id == second.id


def test_a_resolved_alert_is_forwarded_even_if_never_seen_firing() -> None:
    world = World()
    response = world.post(payload(alert(status="resolved", endsAt="2026-01-01T11:30:00Z")))
    assert (response.status, parsed(response)) == (200, {"resolved": 1})
    assert world.sink.types() == ["drift.resolved"]


def test_an_alert_of_another_name_is_acknowledged_and_ignored() -> None:
    world = World()
    response = world.post(payload(alert(labels=labels(alertname="HighCPU")), alert(labels=labels(alertname=None))))
    assert (response.status, parsed(response)) == (200, {"ignored": 2})
    assert world.sink.events == []
    assert world.metric("aegis_receiver_alerts_total", result="ignored", reason="alertname") == 2


def test_no_alerts_are_acknowledged() -> None:
    assert World().post(payload()).status == 200


def test_the_example_that_people_post_gives_one_event_with_its_dataset() -> None:
    world = World(mapping.load("receiver: {model: {default: default}}"))
    assert world.post(EXAMPLE).status == 200
    (data,) = world.sink.data()
    assert (data["model"], data["dataset_uri"]) == ("default", "s3://my-staging-bucket/datasets/cifar/v2/")
    assert world.metric("aegis_receiver_fingerprints_recomputed_total", why="absent") == 1


def test_firing_and_resolved_of_one_alert_reach_the_sink_in_order() -> None:
    world = World()
    early = "2026-01-01T09:00:00Z"
    world.sink.delay_s = 0.001
    body = payload(
        alert(),
        alert(status="resolved", startsAt=early, endsAt="2026-01-01T09:30:00Z"),
        alert(startsAt=early),
    )
    assert world.post(body).status == 200
    assert world.sink.types() == ["drift.detected", "drift.resolved", "drift.detected"]
    assert world.sink.most_at_once == 1


def test_alerts_that_the_sender_cut_off_are_counted() -> None:
    world = World()
    world.post(payload(alert(), truncatedAlerts=7))
    assert world.metric("aegis_receiver_alerts_truncated_total") == 7


def test_an_alert_with_a_100_kb_annotation_is_cut_and_flagged() -> None:
    world = World()
    assert world.post(payload(alert(annotations={"summary": "x" * 100_000}))).status == 200
    assert world.sink.data()[0]["truncated"] is True


def test_a_thousand_alerts_with_up_to_500_labels_are_accepted() -> None:
    world = World()
    many = [alert(labels=labels(model_name=f"m{index}")) for index in range(999)]
    wide = alert(labels=labels(**{f"label_{index}": "v" for index in range(500)}))
    response = world.post(payload(*many, wide))
    assert (response.status, len(world.sink.events)) == (200, 1000)
    assert 1 < world.sink.most_at_once <= 16


# --- unmappable ---


@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        pytest.param(alert(labels=labels(shard=7)), "labels.shard", id="numeric label"),
        pytest.param(alert(labels=labels(model_name=None)), "model", id="no model"),
        pytest.param(alert(labels=labels(model_name="a\x00\x1b\u202e")), "model", id="control characters"),
        pytest.param(alert(startsAt="2027-01-01T00:00:00Z"), "startsAt", id="far future"),
        pytest.param(alert(status="?"), "status", id="unknown status"),
        pytest.param(alert(endsAt="2026-01-01T10:00:00Z"), "endsAt", id="ends before it begins"),
        pytest.param(7, "alert", id="no object"),
    ],
)
def test_an_unmappable_alert_becomes_a_dead_letter_and_holds_up_no_other(bad: Any, fault: str) -> None:
    world = World()
    response = world.post(payload(bad, alert()))
    assert (response.status, parsed(response)) == (200, {"forwarded": 1, "rejected": 1})
    assert sorted(world.sink.types()) == ["alert.rejected", "drift.detected"]
    (letter,) = [json.loads(e.data) for e in world.sink.events if e.type == events.REJECTED]
    assert list(letter["faults"]) == [fault]
    assert world.metric("aegis_receiver_alerts_total", result="rejected", reason=fault.partition(".")[0]) == 1


def test_a_dead_letter_keeps_its_id_when_delivered_again_and_two_have_two() -> None:
    world = World()
    other = alert(labels=labels(model_name="c d"))
    for _ in range(2):
        world.post(payload(BAD, other))
    ids = [event.id for event in world.sink.events]
    assert ids[:2] == ids[2:]
    assert len(set(ids)) == 2


def test_a_dead_letter_stays_under_64_kib() -> None:
    world = World()
    wide = {f"label_{index}" + "x" * 200: index for index in range(3000)} | {"long": "\x01" * 100_000}
    assert world.post(payload(alert(labels=labels(**wide)))).status == 200
    assert len(world.sink.events[0].data) < 64 * 1024


def test_an_alert_for_an_environment_that_the_path_may_not_speak_for_is_rejected() -> None:
    world = World(mapping.load("receiver: {paths: {/alertmanager/dev: {environments: [dev]}}}"))
    body = payload(alert(labels=labels(env="dev")), alert(labels=labels(env="prod")))
    assert parsed(world.post(body, path="/alertmanager/dev")) == {"forwarded": 1, "rejected": 1}


# --- the sink ---


def test_a_sink_that_fails_gives_503_and_its_mates_still_arrive() -> None:
    world = World()

    def refuse_m3(event: CloudEvent) -> None:
        if "/m3/" in event.subject:
            raise Temporary("the sink answered 500")

    world.sink.answer = refuse_m3
    body = payload(*[alert(labels=labels(model_name=f"m{index}")) for index in range(5)])
    response = world.post(body)
    assert response.status == 503
    assert "the sink answered 500" in parsed(response)["error"]
    assert len(world.sink.events) == 4


def test_a_dead_sink_is_not_asked_for_every_alert() -> None:
    world = World()
    asked = []

    def dead(event: CloudEvent) -> None:
        asked.append(event)
        raise Temporary("down")

    world.sink.answer = dead
    assert world.post(payload(*[alert(labels=labels(model_name=f"m{i}")) for i in range(500)])).status == 503
    assert len(asked) <= 32


def test_an_end_never_overtakes_its_begin() -> None:
    world = World()

    def refuse_firing(event: CloudEvent) -> None:
        if event.type == events.DETECTED:
            raise Temporary("down")

    world.sink.answer = refuse_firing
    assert world.post(payload(alert(), alert(status="resolved", endsAt="2026-01-01T11:30:00Z"))).status == 503
    assert world.sink.events == []


def test_a_failed_dead_letter_gives_503() -> None:
    world = World()

    def refuse_letters(event: CloudEvent) -> None:
        if event.type == events.REJECTED:
            raise Temporary("down")

    world.sink.answer = refuse_letters
    assert world.post(payload(BAD, alert())).status == 503


def test_an_event_that_the_sink_refuses_for_good_counts_as_rejected_and_holds_up_no_other() -> None:
    world = World()

    def refuse_m1(event: CloudEvent) -> None:
        if "/m1/" in event.subject:
            raise Refused("refused with 413", {"sink": "answered 413"})

    world.sink.answer = refuse_m1
    body = payload(*[alert(labels=labels(model_name=f"m{index}")) for index in range(3)])
    response = world.post(body)
    assert (response.status, parsed(response)) == (200, {"forwarded": 2, "rejected": 1})
    (letter,) = [json.loads(e.data) for e in world.sink.events if e.type == events.REJECTED]
    assert letter["faults"] == {"sink": "answered 413"}
    assert (letter["status"], letter["labels"]["model_name"]) == ("firing", "m1")
    assert world.metric("aegis_receiver_alerts_total", result="rejected", reason="sink") == 1


def test_a_sink_that_refuses_even_dead_letters_blocks_nothing() -> None:
    world = World()

    def refuse(_: CloudEvent) -> None:
        raise Refused("refused with 400", {"sink": "answered 400"})

    world.sink.answer = refuse
    assert parsed(world.post(payload(alert(), BAD))) == {"rejected": 2}


def test_a_sink_that_hangs_gives_503_within_the_deadline() -> None:
    world = World(deadline_s=0.05)
    world.sink.delay_s = 30
    assert world.post(payload(alert())).status == 503


def test_more_deliveries_than_allowed_at_once_give_503_never_429() -> None:
    world = World(max_in_flight=2)
    world.sink.delay_s = 0.05

    async def three() -> list[int]:
        calls = [world.call(payload(alert())) for _ in range(3)]
        return sorted([response.status for response in await asyncio.gather(*calls)])

    assert asyncio.run(three()) == [200, 200, 503]


# --- what is refused ---


def test_a_bad_envelope_gives_400_with_every_fault() -> None:
    response = World().post(payload(alerts=..., version=4))
    assert response.status == 400
    assert set(parsed(response)["faults"]) == {"version", "alerts"}


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", ["/alertmanager", "/"])
def test_another_method_gives_405(method: str, path: str) -> None:
    response = World().post(method=method, path=path)
    assert (response.status, response.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("path", ["/alertmanager/", "/alert", "/alertmanager/x", "//alertmanager", "/Alertmanager"])
def test_a_wrong_path_gives_404(path: str) -> None:
    assert World().post(payload(alert()), path=path).status == 404


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/jsonx"},
        JSON | {"content-encoding": "gzip"},
    ],
)
def test_a_wrong_content_type_gives_415(headers: dict[str, str]) -> None:
    assert World().post(payload(alert()), headers=headers).status == 415


@pytest.mark.parametrize("media", ["application/json", "Application/JSON ; charset=utf-8"])
def test_json_is_taken_however_it_is_spelled(media: str) -> None:
    assert World().post(payload(alert()), headers={"content-type": media}).status == 200


def test_a_body_over_the_limit_gives_413_and_one_at_the_limit_does_not() -> None:
    body = payload(alert())
    assert World(body_limit=len(body)).post(body).status == 200
    assert World(body_limit=len(body) - 1).post(body).status == 413


# --- CloudEvents ---


@pytest.mark.parametrize("path", ["/", "/alertmanager"])
@pytest.mark.parametrize("structured", [True, False], ids=["structured", "binary"])
def test_a_cloudevent_whose_data_is_a_payload_is_taken_and_answered_without_a_body(path: str, structured: bool) -> None:
    trace = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
    event = CloudEvent(type="x", source="/y", id="1", data=payload(alert()), extensions={"traceparent": trace})
    headers, body = events.encode(event, structured=structured)
    world = World()
    response = world.post(body, path=path, headers=headers)
    assert (response.status, response.body) == (200, b"")
    assert world.sink.events[0].extensions["traceparent"] == trace


def test_a_binary_cloudevent_without_content_type_is_json() -> None:
    headers, body = events.encode(CloudEvent(type="x", source="/y", id="1", data=payload(alert())))
    del headers["content-type"]
    assert World().post(body, path="/", headers=headers).status == 200


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"content-type": "application/cloudevents+json"}, b"{}"),
        ({"content-type": "application/cloudevents+json"}, b"["),
        ({"content-type": "application/cloudevents-batch+json"}, b"[]"),
        (JSON | {"ce-specversion": "1.0", "ce-id": "1"}, payload(alert())),
        (JSON | {"ce-specversion": "1.0", "ce-id": "%ff", "ce-type": "x", "ce-source": "/y"}, payload(alert())),
        (JSON | {"ce-specversion": "1.0", "ce-id": "1", "ce-type": "x", "ce-source": "/y"}, b"{}"),
    ],
)
def test_a_malformed_cloudevent_gives_400(headers: dict[str, str], body: bytes) -> None:
    assert World().post(body, path="/", headers=headers).status == 400


def test_plain_json_is_not_taken_at_the_root() -> None:
    assert World().post(payload(alert()), path="/").status == 415


# --- credentials ---


@pytest.fixture
def guarded(tmp_path: Path) -> World:
    (tmp_path / "token").write_text("s3cret\n")
    (tmp_path / "password").write_text("pässword")
    return World(
        mapping.load(f"""
        receiver:
          paths: {{/alertmanager: {{}}, /alertmanager/dev: {{environments: [dev]}}}}
          credentials:
            - {{name: all, bearer_file: {tmp_path}/token}}
            - {{name: prod, user: am, password_file: {tmp_path}/password, environments: [prod]}}
            - {{name: dev, user: dev, password_file: {tmp_path}/password, paths: [/alertmanager/dev]}}
        """)
    )


@pytest.mark.parametrize(
    "headers",
    [
        JSON,
        JSON | {"authorization": "Bearer wrong"},
        JSON | {"authorization": "Bearer "},
        JSON | {"authorization": "Bearer s3cret, Bearer s3cret"},
        JSON | {"authorization": "Token s3cret"},
        JSON | {"authorization": "Basic ???"},
        JSON | {"authorization": "Basic é"},
        basic("am", "wrong"),
        basic("other", "pässword"),
        basic("", "s3cret"),
    ],
)
def test_missing_or_wrong_credentials_give_401_and_say_what_is_known(guarded: World, headers: dict[str, str]) -> None:
    response = guarded.post(payload(alert()), headers=headers)
    assert response.status == 401
    assert response.headers["www-authenticate"] == 'Basic realm="aegis", Bearer realm="aegis"'
    assert guarded.sink.events == []


@pytest.mark.parametrize("headers", [JSON | {"authorization": "bearer  s3cret"}, basic("am", "pässword")])
def test_each_of_several_credentials_is_taken_from_anywhere(guarded: World, headers: dict[str, str]) -> None:
    response = guarded.post(payload(alert(labels=labels(env="prod"))), headers=headers, peer="10.1.2.3")
    assert parsed(response) == {"forwarded": 1}


def test_a_credential_on_a_path_that_is_not_its_own_gives_403(guarded: World) -> None:
    assert guarded.post(payload(alert()), headers=basic("dev", "pässword")).status == 403


def test_a_credential_without_an_environment_on_the_path_gives_403(guarded: World) -> None:
    assert guarded.post(payload(alert()), headers=basic("am", "pässword"), path="/alertmanager/dev").status == 403


def test_an_alert_for_another_environment_than_the_credentials_is_rejected_alone(guarded: World) -> None:
    body = payload(alert(labels=labels(env="prod")), alert(labels=labels(env="dev")))
    assert parsed(guarded.post(body, headers=basic("am", "pässword"))) == {"forwarded": 1, "rejected": 1}


def test_the_path_bounds_a_credential_that_may_speak_for_all(guarded: World) -> None:
    body = payload(alert(labels=labels(env="prod")), alert(labels=labels(env="dev")))
    headers = JSON | {"authorization": "Bearer s3cret"}
    assert parsed(guarded.post(body, headers=headers, path="/alertmanager/dev")) == {"forwarded": 1, "rejected": 1}


@pytest.mark.parametrize("peer", ["10.1.2.3", "", "::ffff:10.0.0.1", "testclient"])
def test_without_credentials_only_this_machine_may_call(peer: str) -> None:
    assert World().post(payload(alert()), peer=peer).status == 403


@pytest.mark.parametrize("header", [{"host": "evil.example"}, {"origin": "http://x"}, {"sec-fetch-site": "none"}])
def test_without_credentials_no_web_page_may_call_through_a_browser(header: dict[str, str]) -> None:
    headers = {"content-type": "application/json", **header}
    assert World().post(payload(alert()), headers=headers).status == 403


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.8.8", "::1"])
def test_without_credentials_this_machine_may_call(peer: str) -> None:
    assert World().post(payload(alert()), peer=peer).status == 200


@pytest.mark.parametrize("header", ["x-forwarded-for", "forwarded", "via", "x-real-ip", "k-proxy-request"])
def test_a_caller_behind_a_proxy_is_not_on_this_machine(header: str) -> None:
    assert World().post(payload(alert()), headers=JSON | {header: "127.0.0.1"}).status == 403


def test_behind_knatives_proxy_nobody_is_on_this_machine_and_readiness_says_so() -> None:
    world = World(behind_proxy=True)
    assert world.post(payload(alert())).status == 403
    response = world.post(method="GET", path="/health/readiness")
    assert response.status == 503
    assert "receiver.credentials" in parsed(response)["problems"][0]


def test_a_credential_file_that_is_gone_gives_503_and_readiness_names_it(tmp_path: Path) -> None:
    world = World(mapping.load(f"receiver: {{credentials: [{{name: a, bearer_file: {tmp_path}/gone}}]}}"))
    assert world.post(payload(alert())).status == 503
    response = world.post(method="GET", path="/health/readiness")
    assert (response.status, f"{tmp_path}/gone" in response.body.decode()) == (503, True)


# --- seal, trace, paths of every function ---


def test_every_event_is_sealed_when_there_is_a_key_dead_letters_too(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"k" * 32)
    world = World(seal_key=key)
    world.post(payload(alert(), BAD))
    assert [events.sealed(event, [b"k" * 32]) for event in world.sink.events] == [True, True]
    assert not events.sealed(world.sink.events[0], [b"x" * 32])


def test_an_empty_seal_key_gives_503_and_nothing_goes_out_unsealed(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.touch()
    world = World(seal_key=key)
    assert world.post(payload(alert())).status == 503
    assert world.sink.events == []


def test_a_trace_is_passed_on_or_made() -> None:
    world = World()
    trace = "00-" + "1" * 32 + "-" + "2" * 16 + "-00"
    world.post(payload(alert()), headers=JSON | {"traceparent": trace})
    world.post(payload(alert()), headers=JSON | {"traceparent": "nonsense\r\n"})
    found = [event.extensions["traceparent"] for event in world.sink.events]
    assert found == [trace, f"00-{'ab' * 16}-{'ab' * 8}-01"]


@pytest.mark.parametrize("path", ["/health/liveness", "/health/readiness", "/status", "/metrics"])
def test_the_paths_of_every_function_answer(path: str) -> None:
    assert World().post(method="GET", path=path).status == 200
    assert World().post(method="POST", path=path).status == 405


def test_the_status_says_how_the_sink_was() -> None:
    assert parsed(World().post(method="GET", path="/status")) == {"sink": "0 events"}


# --- settings ---


def test_every_missing_or_wrong_setting_is_named_in_readiness() -> None:
    env = {"AEGIS_DEADLINE": "1h", "AEGIS_BODY_LIMIT": "big", "K_CE_OVERRIDES": "["}
    function = build(env)

    async def ready() -> tuple[int, str]:
        world = World()
        world.function = function
        first = await world.call(method="GET", path="/health/readiness")
        assert (await world.call(payload(alert()))).status == 503
        assert (await world.call(method="GET", path="/health/liveness")).status == 200
        return first.status, first.body.decode()

    status, text = asyncio.run(ready())
    assert status == 503
    assert "K_SINK: missing" in text
    assert "AEGIS_BODY_LIMIT" in text


@pytest.mark.parametrize(
    ("env", "fault"),
    [
        ({}, "K_SINK"),
        ({"K_SINK": "broker"}, "K_SINK"),
        ({"K_SINK": "ftp://x"}, "K_SINK"),
        ({"K_SINK": "http://broker/"}, "AEGIS_SEAL_KEY_FILE"),
        ({"K_SINK": "http://127.0.0.1.example/"}, "AEGIS_SEAL_KEY_FILE"),
        ({"K_SINK": "http://localhost/", "K_CE_OVERRIDES": "{"}, "K_CE_OVERRIDES"),
        ({"K_SINK": "http://localhost/", "K_CE_OVERRIDES": "[]"}, "K_CE_OVERRIDES"),
        ({"K_SINK": "http://localhost/", "K_CE_OVERRIDES": '{"extensions":{"A":"b"}}'}, "K_CE_OVERRIDES"),
        ({"K_SINK": "http://localhost/", "K_CE_OVERRIDES": '{"extensions":{"seal":"b"}}'}, "K_CE_OVERRIDES"),
        ({"K_SINK": "http://localhost/", "K_CE_OVERRIDES": '{"extensions":{"type":"b"}}'}, "K_CE_OVERRIDES"),
        ({"K_SINK": "http://localhost/", "AEGIS_SINK_CONCURRENCY": "0"}, "AEGIS_SINK_CONCURRENCY"),
        ({"K_SINK": "http://localhost/", "AEGIS_DEADLINE": "10s"}, "AEGIS_DEADLINE"),
        ({"K_SINK": "http://localhost/", "AEGIS_LOG_LEVEL": "loud"}, "AEGIS_LOG_LEVEL"),
    ],
)
def test_a_wrong_setting_is_named(env: dict[str, str], fault: str) -> None:
    with pytest.raises(Permanent) as caught:
        from_env(env)
    assert list(caught.value.faults) == [fault]


@pytest.mark.parametrize("sink", ["http://127.0.0.1:8080/", "http://[::1]:80/", "http://localhost:1/x"])
@pytest.mark.parametrize("overrides", ["", " ", "{}", '{"extensions":null}', '{"extensions":{"a":"b"}}'])
def test_to_a_sink_on_loopback_no_seal_is_needed(sink: str, overrides: str) -> None:
    found = from_env({"K_SINK": sink, "K_CE_OVERRIDES": overrides})
    assert found.extensions in ({}, {"a": "b"})


@pytest.mark.parametrize("text", ["receiver: {sources: x}", "\udcff"])
def test_a_wrong_configuration_is_named_in_readiness(tmp_path: Path, text: str) -> None:
    (tmp_path / "aegis.yaml").write_bytes(text.encode(errors="surrogateescape"))
    world = World()
    world.function = build({"K_SINK": "http://localhost/", "AEGIS_CONFIG": str(tmp_path / "aegis.yaml")})
    (problem,) = parsed(world.post(method="GET", path="/health/readiness"))["problems"]
    assert problem.startswith(("receiver.sources: unknown", "AEGIS_CONFIG: cannot be read"))


# --- whatever comes ---

header_values = st.text(alphabet=st.characters(max_codepoint=255), max_size=40)
header_maps = st.dictionaries(
    st.sampled_from(["content-type", "ce-specversion", "ce-id", "ce-type", "ce-source", "ce-time", "ce-x", "ce-Ü"]),
    header_values | st.sampled_from(["1.0", "application/json", "application/cloudevents+json", "%ff", "2026-01"]),
)


@given(st.lists(alerts | values, max_size=3), header_maps, st.booleans())
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_whatever_arrives_gives_an_answer_of_the_table(raw: list[Any], headers: dict[str, str], envelope: bool) -> None:
    body = payload(*raw) if envelope else json.dumps(raw).encode()
    for given_headers in (headers, JSON | headers):
        assert World().post(body, headers=given_headers).status in (200, 400, 415)


@given(st.binary(max_size=200), header_maps)
@settings(deadline=None)
def test_whatever_bytes_arrive_they_are_refused(body: bytes, headers: dict[str, str]) -> None:
    assert World().post(body, headers=headers).status in (400, 415)
