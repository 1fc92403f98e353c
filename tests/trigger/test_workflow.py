"""The Workflow of a retrain: what may never get into one, and what its end says. `manifest` is the guard on Argo."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis.errors import Permanent
from aegis.events import rfc3339
from retrain_trigger.model import Policy, Record, Retrain, Status, object_name, policy_from, travels, workflow_name
from retrain_trigger.policy import Finish, Outcome
from retrain_trigger.workflow import MAX_OUTPUT, Running, as_retrain, carries, manifest, model_label, read, sequence
from tests.trigger.world import NOW

RETRAIN = Retrain(
    sequence=3, workflow=workflow_name("churn", "uid", 3), claim="c" * 32, phase="Claimed", first_claimed_at=NOW,
    claimed_at=NOW, severity="warning", dataset_uri="s3://data/new", version="7", event_id="e" * 32,
    fingerprint="00000000000000aa", source="/alertmanager/test", reason="version 7 drifts on age",
)  # fmt: skip


def record(model: str = "churn", environment: str = "default", **policy: Any) -> Record:
    return Record(
        name=object_name(environment, model), uid="uid", version="1", environment=environment, model=model,
        policy=Policy(**policy), status=Status(),
    )  # fmt: skip


def parameters(doc: dict[str, Any]) -> dict[str, str]:
    found = doc["spec"]["arguments"]["parameters"]
    assert len({p["name"] for p in found}) == len(found)
    return {p["name"]: p["value"] for p in found}


def unpacked(text: str) -> Any:
    return json.loads(base64.b64decode(text))


# --- what may never get in ---

INJECTIONS = {
    "a variable": "{{workflow.serviceAccountName}}",
    "an expression": "{{=1+41}}",
    "a dump": "{{=toJson(workflow.parameters)}}",
    "unclosed": "s3://data/{{ x",
    "an end alone": "s3://data/x}}",
    "BEL": "s3://data/\x07",
    "DEL": "s3://data/\x7f",
    "NUL": "s3://data/\x00",
    "VT": "s3://data/\x0b",
    "ESC": "s3://data/\x1b[2J",
    "newline": "s3://data/x\nname: y",
    "carriage return": "s3://data/x\r",
    "tab": "s3://data/\tx",
    "a tag character": "s3://data/\U000e0001",
    "bidi": "s3://data/\u202ex",
    "a non-breaking space": "s3://data/\xa0",
    "a letter beyond ASCII": "s3://data/ü",
}
"""The rows of facts/argo.md that Argo substitutes, evaluates or dies of, and their kin."""
CARRIERS = ("model", "environment", "model-version", "dataset-uri", "evaluation-uri", "last-inputs")
"""Parameters whose value is text as it came: from an alert, an owner, or the output of an earlier Workflow."""


def carrying(carrier: str, value: str) -> dict[str, Any]:
    """The manifest of a retrain with this value in that parameter."""
    match carrier:
        case "model" | "environment":
            own = record()
            own = replace(own, model=value) if carrier == "model" else replace(own, environment=value)
            return manifest(own, RETRAIN, "aegis")
        case "evaluation-uri":
            return manifest(record(evaluation_uri=value), RETRAIN, "aegis")
        case _:
            field = {"model-version": "version", "dataset-uri": "dataset_uri", "last-inputs": "inputs"}[carrier]
            changed: dict[str, Any] = {field: value}
            return manifest(record(), replace(RETRAIN, **changed), "aegis")


def test_every_parameter_is_either_text_that_is_checked_or_cannot_carry_any() -> None:
    made = parameters(manifest(record(), RETRAIN, "aegis"))
    assert made.keys() == {*CARRIERS, "event", "settings", "approval"}
    assert made["approval"] in ("true", "false")
    assert unpacked(made["event"])
    assert unpacked(made["settings"])


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("value", INJECTIONS.values(), ids=INJECTIONS)
def test_a_value_that_argo_would_touch_is_refused_by_name(carrier: str, value: str) -> None:
    with pytest.raises(Permanent) as caught:
        carrying(carrier, value)
    assert list(caught.value.faults) == [carrier]


@pytest.mark.parametrize("carrier", ["model", "environment", "model-version"])
@pytest.mark.parametrize("value", ["", "a b", "a/b", "-a", ".a", "a'b", 'a"b', "a" * 64, "a;b", "$(a)", "ü"])
def test_a_name_is_a_name(carrier: str, value: str) -> None:
    with pytest.raises(Permanent) as caught:
        carrying(carrier, value)
    assert carrier in caught.value.faults


@pytest.mark.parametrize("carrier", ["dataset-uri", "evaluation-uri", "last-inputs"])
@pytest.mark.parametrize("value", ["", "s3://data/it's", 's3://data/"x"', "s3://data/$(id)", "s3://data/{x}", "a; b"])
def test_what_argo_passes_on_unchanged_is_left_to_who_reads_it(carrier: str, value: str) -> None:
    assert parameters(carrying(carrier, value))[carrier] == value


@pytest.mark.parametrize("value", INJECTIONS.values(), ids=INJECTIONS)
def test_free_text_travels_as_base64_or_not_at_all(value: str) -> None:
    retrain = replace(RETRAIN, reason=value, source=value)
    owner = record(trainer={"note": value}, gate={"note": value}, alias=value)
    made = manifest(owner, retrain, "aegis")
    assert unpacked(parameters(made)["event"])["reason"] == value
    assert unpacked(parameters(made)["settings"])["trainer"] == {"note": value}
    assert all(travels(text) for text in parameters(made).values())
    assert value not in json.dumps(made["spec"], ensure_ascii=False)


def test_the_steps_learn_how_many_attempts_there_are_and_a_secret_that_tells_nothing_of_the_claim() -> None:
    made = (manifest(record(max_attempts=5), replace(RETRAIN, claim=claim), "aegis") for claim in ("one", "two"))
    first, second = (unpacked(parameters(each)["settings"]) for each in made)
    assert first["maxAttempts"] == second["maxAttempts"] == 5
    assert first["secret"] != second["secret"]
    assert all(len(each["secret"]) == 64 and "one" not in each["secret"] for each in (first, second))


@given(st.text(max_size=12) | st.text("{} \x07=ab", max_size=8))
@settings(max_examples=300, deadline=None)
def test_an_owners_text_is_refused_where_it_is_read_exactly_when_no_workflow_could_carry_it(text: str) -> None:
    # Otherwise a claim would be made, fail for an hour, and be made again.
    try:
        policy_from({"evaluationUri": text})
    except Permanent as exc:
        assert list(exc.faults) == ["spec.evaluationUri"]  # noqa: PT017  # either outcome is right
        with pytest.raises(Permanent):
            carrying("evaluation-uri", text)
    else:
        assert parameters(carrying("evaluation-uri", text))["evaluation-uri"] == text


# --- the rest of the manifest ---


@pytest.mark.parametrize(
    ("cooldown", "ttl"),
    [
        (timedelta(minutes=1), timedelta(hours=24)),
        (timedelta(hours=24), timedelta(hours=24)),
        (timedelta(days=30), timedelta(days=30)),
    ],
)
def test_a_workflow_outlives_the_cooldown_and_a_day(cooldown: timedelta, ttl: timedelta) -> None:
    made = manifest(record(cooldown=cooldown), RETRAIN, "aegis")
    assert made["spec"]["ttlStrategy"] == {"secondsAfterCompletion": ttl.total_seconds()}


def test_the_more_severe_go_first() -> None:
    made = [manifest(record(), replace(RETRAIN, severity=s), "aegis") for s in ("info", "warning", "critical")]
    assert [doc["spec"]["priority"] for doc in made] == [0, 1, 2]


@pytest.mark.parametrize("model", ["m", "m" * 63, "M." * 31 + "m", "0-", "ÄÖ" * 3])
def test_names_and_labels_are_of_the_length_that_kubernetes_takes(model: str) -> None:
    name = workflow_name(model, "uid", 10**9)
    assert len(name) <= 63
    long = record("m" * 63, "e" * 63)
    made = manifest(long, replace(RETRAIN, workflow=name), "aegis")
    assert made["metadata"]["name"] == name
    assert all(len(value) <= 63 for value in made["metadata"]["labels"].values())


def test_a_workflow_says_whose_it_is_and_sets_nothing_that_argo_would_refuse() -> None:
    made = manifest(record(workflow_template="mine"), RETRAIN, "jobs", traceparent="00-x")
    assert (made["metadata"]["namespace"], made["metadata"]["name"]) == ("jobs", RETRAIN.workflow)
    assert made["spec"]["workflowTemplateRef"] == {"name": "mine"}
    assert made["spec"].keys() == {"workflowTemplateRef", "arguments", "priority", "ttlStrategy"}
    assert made["metadata"]["annotations"]["aegis.dev/traceparent"] == "00-x"
    assert carries(made, RETRAIN.claim)
    assert not carries(made, "another")
    assert sequence(made) == 3
    assert model_label("churn.default") in made["metadata"]["labels"].values()


def test_a_ledger_that_forgot_takes_the_workflow_over_as_it_stands() -> None:
    made = manifest(record(), RETRAIN, "aegis")
    made["metadata"] |= {"uid": "u-1", "creationTimestamp": rfc3339(NOW)}
    taken = as_retrain(made, NOW + timedelta(hours=1))
    assert (taken.phase, taken.uid, taken.sequence, taken.claim) == ("Submitted", "u-1", 3, RETRAIN.claim)
    assert (taken.first_claimed_at, taken.event_id, taken.fingerprint) == (NOW, RETRAIN.event_id, RETRAIN.fingerprint)


@pytest.mark.parametrize("label", ["", "x", "-1", "\uff11\uff12", "9" * 10, None])
def test_a_label_that_is_no_sequence_number_counts_as_none(label: str | None) -> None:
    labels = {} if label is None else {"aegis.dev/sequence": label}
    assert sequence({"metadata": {"labels": labels}}) == 0
    assert sequence({"metadata": {"labels": None}}) == 0


# --- what an end says ---


def over(
    *nodes: dict[str, Any], phase: str = "Failed", message: str = "", spec: dict[str, Any] | None = None, **outputs: str
) -> Finish:
    """What is read of a Workflow that ended so."""
    status = {
        "phase": phase,
        "message": message,
        "finishedAt": rfc3339(NOW),
        "nodes": {f"n{number}": node for number, node in enumerate(nodes)},
        "outputs": {"parameters": [{"name": n.replace("_", "-"), "value": v} for n, v in outputs.items()]},
    }
    found = read({"metadata": {}, "spec": spec or {}, "status": status}, NOW + timedelta(hours=1))
    assert isinstance(found, Finish)
    assert found.ended_at == NOW
    return found


def failed(code: int | None = None, message: str = "", **more: Any) -> dict[str, Any]:
    """A container that failed, with its exit code where Argo has one for a main container."""
    outputs = {} if code is None else {"outputs": {"exitCode": str(code)}}
    return {"type": "Pod", "phase": "Failed", "templateName": "train", "message": message, **outputs, **more}


@pytest.mark.parametrize("outcome", ["Promoted", "Rejected", "BadData", "TrainerFailed"])
def test_a_workflow_that_succeeded_ended_as_it_says(outcome: str) -> None:
    found = over(phase="Succeeded", outcome=outcome, explanation="0.81 < 0.84", run_id="r", registered_version="4",
                 pointer="12", inputs="a" * 64)  # fmt: skip
    assert (found.outcome, found.reason, found.explanation) == (outcome, None, "0.81 < 0.84")
    assert (found.run_id, found.registered_version, found.pointer, found.inputs) == ("r", "4", "12", "a" * 64)


def test_an_outcome_may_have_a_reason() -> None:
    found = over(phase="Succeeded", outcome="Rejected:NotEnoughData")
    assert (found.outcome, found.reason) == ("Rejected", "NotEnoughData")


@pytest.mark.parametrize("said", ["", "promoted", "Victory", ":Promoted"])
def test_a_workflow_that_succeeded_without_an_outcome_of_ours_has_failed(said: str) -> None:
    assert over(phase="Succeeded", outcome=said).outcome is Outcome.FAILED


@pytest.mark.parametrize("phase", ["Failed", "Error"])
def test_a_workflow_that_failed_after_the_gate_was_not_promoted_whatever_it_said(phase: str) -> None:
    for said in ("Promoted", "Rejected"):
        assert over(failed(75), phase=phase, outcome=said).outcome is Outcome.FAILED


@pytest.mark.parametrize(
    ("code", "outcome", "reason"),
    [
        (64, "TrainerFailed", None),
        (65, "BadData", None),
        (70, "TrainerFailed", None),
        (75, "Failed", "exit code 75"),
        (76, "Failed", "exit code 76"),
        (77, "Failed", "exit code 77"),
        (137, "Failed", "exit code 137"),
        (143, "Failed", "exit code 143"),
        (1, "Failed", "exit code 1"),
        (None, "Failed", "Failed"),
    ],
)
@pytest.mark.parametrize("init", [False, True], ids=["main", "init container"])
def test_an_exit_code_decides(code: int | None, outcome: str, reason: str | None, init: bool) -> None:
    message = f"fetch: Error (exit code {code}): it went wrong" if code is not None else "pod deleted"
    found = over(failed(None if init else code, message))
    assert (found.outcome, found.reason, found.explanation) == (outcome, reason, message)


def test_the_reason_of_bad_data_stands_in_the_output_of_a_main_container() -> None:
    found = over(failed(65, "main: Error"), outcome="BadData:NoLabels", explanation="the rows have no labels")
    assert (found.outcome, found.reason, found.explanation) == ("BadData", "NoLabels", "the rows have no labels")


def test_the_reason_of_bad_data_stands_in_the_message_of_an_init_container() -> None:
    message = "fetch: Error (exit code 65): ...\nBadData:NoLabels the rows have no labels"
    found = over(failed(None, message), outcome="Promoted", explanation="of another step")
    assert (found.outcome, found.reason, found.explanation) == ("BadData", "NoLabels", message)


@pytest.mark.parametrize("message", ["xBadData:NoLabels", "BadData:" + "x" * 41, "BadData: NoLabels", "BadData"])
def test_text_that_only_looks_like_a_reason_is_none(message: str) -> None:
    assert over(failed(65, message)).reason in (None, "x" * 40)


@pytest.mark.parametrize("code", ["", "65x", "\uff16\uff15", "-1", "1e3"])
def test_an_exit_code_that_is_no_number_is_none(code: str) -> None:
    node = {**failed(), "outputs": {"exitCode": code}}
    assert over(node).outcome is Outcome.FAILED


def test_what_is_known_of_a_container_without_an_exit_code_is_told() -> None:
    deleted = failed(None, "pod deleted", finishedAt="2026-03-01T11:30:00Z")
    steps = {"type": "Steps", "phase": "Failed", "message": "child 'x' failed", "finishedAt": "2026-03-01T11:31:00Z"}
    assert over(deleted, steps, message="child 'x' failed").explanation == "pod deleted"
    refused = failed(65, "no rows", finishedAt="2026-03-01T11:00:00Z")
    assert over(refused, deleted).outcome is Outcome.BAD_DATA


def test_the_last_container_that_failed_tells_most() -> None:
    retried = failed(75, finishedAt="2026-03-01T11:00:00Z")
    last = failed(70, finishedAt="2026-03-01T11:30:00Z")
    assert over(last, retried).outcome is Outcome.TRAINER_FAILED
    assert over(retried, last).outcome is Outcome.TRAINER_FAILED


@pytest.mark.parametrize("template", ["finished", "notify"])
def test_the_step_that_only_notifies_decides_nothing(template: str) -> None:
    notify = failed(70, templateName=template, finishedAt="2026-03-01T12:00:00Z")
    trained = failed(65, finishedAt="2026-03-01T11:00:00Z")
    assert over(trained, notify).outcome is Outcome.BAD_DATA
    assert over(notify).outcome is Outcome.FAILED


def test_a_step_that_was_tried_again_with_success_decides_nothing() -> None:
    assert over(failed(75), phase="Succeeded", outcome="Promoted").outcome is Outcome.PROMOTED


def suspended(message: str) -> dict[str, Any]:
    return {"type": "Suspend", "phase": "Failed", "templateName": "approve", "message": message}


def test_a_person_who_says_no_cancels() -> None:
    found = over(suspended("rejected by ann: too risky"), outcome="Promoted", explanation="better")
    assert (found.outcome, found.reason, found.explanation) == ("Cancelled", None, "rejected by ann: too risky")
    assert over(suspended("")).explanation == "stopped by a person"


@pytest.mark.parametrize("strategy", ["Stop", "Terminate"])
@pytest.mark.parametrize("nodes", [[], [failed(143)], [suspended("Stopped with strategy 'Stop'")]])
def test_a_shutdown_cancels(strategy: str, nodes: list[dict[str, Any]]) -> None:
    assert over(*nodes, spec={"shutdown": strategy}).outcome is Outcome.CANCELLED


def test_an_approval_that_nobody_gave_was_cancelled_by_nobody() -> None:
    waited = suspended("Step exceeded its deadline")
    found = over(waited, outcome="Rejected", explanation="better", inputs="a" * 64)
    assert (found.outcome, found.reason) == ("Failed", "ApprovalTimedOut")
    assert found.explanation is not None
    assert "nobody approved" in found.explanation
    assert over(waited, spec={"shutdown": "Stop"}).outcome is Outcome.CANCELLED, "a person was quicker"


def test_a_container_past_the_workflows_deadline_waited_for_no_approval() -> None:
    assert over(failed(None, "Step exceeded its deadline")).reason == "Failed"


@pytest.mark.parametrize("field", ["explanation", "pointer", "run_id", "registered_version"])
def test_what_steps_wrote_is_bounded(field: str) -> None:
    outputs: dict[str, Any] = {field: "x" * (MAX_OUTPUT + 1)}
    found = over(phase="Succeeded", outcome="Rejected", **outputs)
    assert len(getattr(found, field)) == MAX_OUTPUT


def test_messages_are_bounded() -> None:
    assert len(over(failed(70, "x" * 9999)).explanation or "") == MAX_OUTPUT
    assert len(over(suspended("x" * 9999)).explanation or "") == MAX_OUTPUT
    assert len(over(message="x" * 9999).explanation or "") == MAX_OUTPUT
    assert len(over(phase="Succeeded", outcome="Rejected:" + "x" * 9999).reason or "") < MAX_OUTPUT


@pytest.mark.parametrize("inputs", ["a" * 63, "a" * 65, "A" * 64, "g" * 64, "{{x}}", "a" * 64 + "\n"])
def test_inputs_that_are_no_digest_are_not_kept(inputs: str) -> None:
    assert over(phase="Succeeded", outcome="Rejected", inputs=inputs).inputs is None


def test_outputs_that_a_failed_controller_left_half_written_do_no_harm() -> None:
    doc = {"metadata": {}, "status": {"phase": "Error", "message": "no such template",
                                      "outputs": {"parameters": [{"name": "outcome"}]}}}  # fmt: skip
    found = read(doc, NOW)
    assert found == Finish(outcome=Outcome.FAILED, ended_at=NOW, reason="Error", explanation="no such template")


@pytest.mark.parametrize(
    ("status", "state"),
    [
        (None, "Queued"),
        ({}, "Queued"),
        ({"phase": ""}, "Queued"),
        ({"phase": "Pending"}, "Queued"),
        ({"phase": "Running"}, "Running"),
        ({"phase": "Running", "nodes": {"a": {"type": "Suspend", "phase": "Running"}}}, "AwaitingApproval"),
        ({"phase": "Running", "nodes": {"a": {"type": "Suspend", "phase": "Succeeded"}}}, "Running"),
        ({"phase": "Running", "nodes": {"a": {"type": "Pod", "phase": "Running"}}}, "Running"),
    ],
)
def test_what_has_not_ended_is_in_one_of_three_states(status: dict[str, Any] | None, state: str) -> None:
    assert read({"metadata": {}, "status": status}, NOW) == Running(state)
