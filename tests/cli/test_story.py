"""What people read: text that came from an alert cannot steer a terminal, and every link of the chain stands there."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis_cli import story
from aegis_cli.stack import State
from retrain_trigger.model import Condition, Evidence, Policy, Record, Retrain, Row, Status

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
HOSTILE = "\x1b[2J\x00\u202egpj.exe\u2066\x9b31m\r\n\u200b"


@pytest.fixture
def machine(tmp_path: Path) -> State:
    return State(tmp_path)


def record(**status: object) -> Record:
    return Record(
        name="digits.default", uid="uid", version="1", environment="default", model="digits", policy=Policy(),
        status=Status(**status),  # type: ignore[arg-type]  # the test's own fields
    )  # fmt: skip


def retrain(**fields: object) -> Retrain:
    known: dict[str, object] = {
        "sequence": 1, "workflow": "aegis-digits-1", "claim": "c", "phase": "Finished", "first_claimed_at": NOW,
        "claimed_at": NOW, "uid": "wf-uid", "outcome": "Promoted", "explanation": "better by 9 points",
        "run_id": "run-1", "registered_version": "2", "event_id": "event-1", "fingerprint": "00000000000000aa",
        "reason": "Drift", "dataset_uri": "s3://bucket/new/",
    }  # fmt: skip
    return Retrain(**(known | fields))  # type: ignore[arg-type]  # the test's own fields


def test_escape_bidi_and_nul_are_spelled_out() -> None:
    said = story.shown(HOSTILE)
    assert said.isprintable()
    assert "\\x1b[2J\\x00\\u202egpj.exe\\u2066" in said


@given(st.text())
def test_whatever_is_shown_is_printable_and_plain_text_stays(text: str) -> None:
    said = story.shown(text)
    assert said.isprintable()
    assert not text.isprintable() or said == text


def test_a_table_lines_its_columns_up() -> None:
    lines = story.table([("A", "LONGER"), ("long one", "x")]).splitlines()
    assert lines == ["A         LONGER", "long one  x"]
    assert story.table([("\x1b[2J", "b")]) == "\\x1b[2J  b"


def test_without_models_the_next_step_is_told() -> None:
    assert "aegis send" in story.models([])


def test_the_list_says_why_a_model_is_not_retrained() -> None:
    held = Condition(type="Retraining", status="False", reason="Cooldown", message="", last_transition_time=NOW)
    human = Condition(type="NeedsHuman", status="True", reason="AttemptsSpent", message="", last_transition_time=NOW)
    drifting = Condition(type="Drifting", status="True", reason="Firing", message="", last_transition_time=NOW)
    said = story.models([record(conditions=(drifting, held), attempts=1), record(conditions=(held, human))])
    first, second = said.splitlines()[1:]
    assert first.split() == ["digits", "default", "True", "False", "Cooldown", "1/3", "-"]
    assert "needs a person: AttemptsSpent" in second


def test_why_tells_the_whole_story_with_every_link(machine: State) -> None:
    nodes = {
        "train": {"type": "Pod", "templateName": "train", "phase": "Succeeded", "finishedAt": "2026-03-01T12:01:00Z"},
        "gate": {"type": "Pod", "templateName": "gate", "phase": "Succeeded", "finishedAt": "2026-03-01T12:02:00Z"},
    }
    machine.objects().create("Workflow", "aegis-digits-1", {"metadata": {}, "status": {"nodes": nodes}})
    (machine.root / "runs" / "aegis-digits-1").mkdir(parents=True)
    machine.addresses.write_text('{"mlflow": "http://127.0.0.1:12002"}')
    card = machine.root / "mlflow" / "artifacts" / "1" / str(retrain().run_id) / "artifacts" / "model_card.html"
    card.parent.mkdir(parents=True)
    card.touch()
    alert = Evidence(fingerprint="00000000000000aa", starts_at=NOW, seen=NOW, version="7", feature="age", ends_at=NOW)
    said = story.why(
        record(
            retrain=retrain(),
            evidence=(alert,),
            attempts=1,
            next_eligible_at=NOW + timedelta(hours=6),
            conditions=(Condition(type="Drifting", status="True", reason="Firing", message="1 alert",
                                  last_transition_time=NOW),),
            history=(
                Row(kind="Submitted", reason="Drift", message="version 7", first=NOW, last=NOW),
                Row(kind="Hold", reason="InFlight", message="", first=NOW, last=NOW + timedelta(hours=1), count=3),
            ),
        ),
        machine,
    )  # fmt: skip
    for part in (
        "Drifting: Firing: 1 alert (since 2026-03-01 12:00:00)",
        "Next retrain not before 2026-03-01 18:00:00, unless a person asks",
        "Attempts used: 1 of 3",
        "2026-03-01 12:00:00  retrain submitted: Drift",
        "version 7",
        "held: InFlight (3 times, last 2026-03-01 13:00:00)",
        "00000000000000aa  version 7  warning  age  began 2026-03-01 12:00:00",
        "resolved 2026-03-01 12:00:00",
        "outcome:           Promoted",
        f"report:            {card}",
        "because:           better by 9 points",
        "model version:     digits version 2",
        "MLflow run:        http://127.0.0.1:12002/#/runs/run-1",
        "Workflow:          aegis-digits-1 (uid wf-uid)",
        "steps:             train Succeeded, gate Succeeded",
        "decision:          Drift",
        "drift event:       event-1",
        "alert fingerprint: 00000000000000aa",
        "data:              s3://bucket/new/",
        f"logs:              {machine.root / 'runs' / 'aegis-digits-1'}",
    ):
        assert part in said
    assert said.index("retrain submitted") < said.index("held: InFlight")


def test_why_of_a_model_without_a_past_is_short(machine: State) -> None:
    said = story.why(record(), machine)
    assert "nothing yet" in said
    assert "The last retrain" not in said


def test_without_a_running_mlflow_the_run_is_told_by_its_id(machine: State) -> None:
    assert "MLflow run:        run-1" in story.why(record(retrain=retrain()), machine)


def test_hostile_text_is_escaped_wherever_it_stands(machine: State) -> None:
    alert = Evidence(fingerprint=HOSTILE, starts_at=NOW, seen=NOW, version=HOSTILE, feature=HOSTILE, severity=HOSTILE)
    bad = record(
        retrain=retrain(outcome=HOSTILE, explanation=HOSTILE, reason=HOSTILE, event_id=HOSTILE, fingerprint=HOSTILE,
                        dataset_uri=HOSTILE, run_id=HOSTILE, registered_version=HOSTILE, uid=HOSTILE),
        evidence=(alert,),
        conditions=tuple(Condition(type=kind, status="True", reason=HOSTILE, message=HOSTILE, last_transition_time=NOW)
                         for kind in ("Drifting", "NeedsHuman")),
        history=(Row(kind="Hold", reason=HOSTILE, message=HOSTILE, first=NOW, last=NOW),),
    )  # fmt: skip
    for addresses in ("", json.dumps({"mlflow": HOSTILE})):
        machine.addresses.write_text(addresses)
        lines = story.why(replace(bad, model=HOSTILE, environment=HOSTILE), machine).split("\n")
        assert all(line.isprintable() for line in lines)
    assert all(line.isprintable() for line in story.models([bad]).split("\n"))


def test_for_scripts_everything_known_is_json(machine: State) -> None:
    machine.objects().create("Workflow", "aegis-digits-1", {"metadata": {"name": "aegis-digits-1"}})
    found = json.loads(json.dumps(story.as_json(record(retrain=retrain()), machine)))
    assert found["status"]["retrain"]["runId"] == "run-1"
    assert found["workflow"]["metadata"]["name"] == "aegis-digits-1"
    assert json.loads(json.dumps(story.as_json(record(), machine)))["workflow"] is None
