"""What the functions count and log: complete from the first scrape, and enough to follow one retrain."""

from __future__ import annotations

import logging
from datetime import timedelta
from pathlib import Path

import pytest

from aegis.errors import Conflict, Temporary
from alert_receiver.sink import Refused
from retrain_trigger.policy import Outcome
from retrain_trigger.trigger import Trigger
from tests.observability.exported import families, receiver_text, series, trigger_text
from tests.receiver import world as receiving
from tests.trigger.world import NOW, World, ask, drift, post


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "ledger")


def value(text: str, name: str, **labels: str) -> float:
    """The one sample of a metric with these labels."""
    inside = ",".join(f'{k}="{v}"' for k, v in sorted(labels.items()))
    (found,) = [line for line in text.splitlines() if line.startswith(f"{name}{{{inside}}} ")]
    return float(found.rpartition(" ")[2])


def scraped(function: object) -> str:
    return ask(function, "GET", "/metrics").body.decode()  # type: ignore[arg-type]  # the world's Function


@pytest.mark.parametrize("function", ["receiver", "trigger"])
def test_every_metric_is_explained_and_ours(function: str, tmp_path: Path) -> None:
    text = receiver_text() if function == "receiver" else trigger_text(tmp_path)
    for family in families(text):
        assert family.name.startswith(f"aegis_{function}_")
        assert family.text.endswith("."), family
        assert not family.name.endswith("_created")


def test_what_may_happen_is_shown_before_it_does() -> None:
    """Prometheus sees only a rise, so the first dead letter must not be what begins its series."""
    before = series(receiving.World().post(method="GET", path="/metrics").body.decode())
    assert {labels["result"] for labels in before["aegis_receiver_alerts_total"]} == {
        "forwarded", "resolved", "ignored", "rejected",
    }  # fmt: skip
    assert {labels["result"] for labels in before["aegis_receiver_sink_events_total"]} == {
        "accepted", "refused", "failed",
    }  # fmt: skip


def test_the_outcomes_of_retrains_are_shown_before_any_ended(world: World) -> None:
    before = series(scraped(world.function()))
    assert {labels["outcome"] for labels in before["aegis_trigger_retrains_total"]} == set(Outcome)
    assert {labels["result"] for labels in before["aegis_trigger_workflows_total"]} == {"created", "found", "refused"}
    assert {labels["document"] for labels in before["aegis_trigger_conflicts_total"]} == {"ledger", "budget"}
    assert "other" in {labels["type"] for labels in before["aegis_trigger_dead_letters_total"]}


@pytest.mark.parametrize(
    ("raised", "result"),
    [(None, "accepted"), (Refused("no", {"sink": "answered 400"}), "refused"), (Temporary("down"), "failed")],
)
def test_the_receiver_counts_and_times_what_the_sink_did(raised: Exception | None, result: str) -> None:
    world = receiving.World()

    def answer(event: object) -> None:
        if raised is not None and getattr(event, "type", "").startswith("dev.aegis.drift"):
            raise raised

    world.sink.answer = answer
    world.post(receiving.payload(receiving.alert()))
    assert world.metric("aegis_receiver_sink_events_total", result=result) == 1
    dead_letters = 1 if result == "refused" else 0
    assert world.metric("aegis_receiver_sink_seconds_count") == 1 + dead_letters


def test_an_event_that_the_deadline_cut_off_counts_as_failed() -> None:
    world = receiving.World(deadline_s=0.05)
    world.sink.delay_s = 60
    assert world.post(receiving.payload(receiving.alert())).status == 503
    assert world.metric("aegis_receiver_sink_events_total", result="failed") == 1


def test_a_rejected_alert_is_logged_with_the_id_of_its_dead_letter(caplog: pytest.LogCaptureFixture) -> None:
    world = receiving.World()
    with caplog.at_level(logging.WARNING, "aegis"):
        world.post(receiving.payload(receiving.alert(labels=receiving.labels(model_name=None))))
    (line,) = caplog.records
    assert vars(line)["event_id"] == world.sink.events[0].id


# --- the trigger -------------------------------------------------------------------------------------------------


def test_a_retrain_can_be_followed_in_the_log_from_alert_to_end(world: World, caplog: pytest.LogCaptureFixture) -> None:
    function = world.function()
    with caplog.at_level(logging.INFO, "aegis"):
        post(function, drift())
        (workflow,) = world.workflow_names()
        world.now += timedelta(minutes=5)
        world.end(workflow, "Rejected", explanation="0.81 < 0.84")
        ask(function, "POST", "/reconcile")
        ask(function, "POST", "/reconcile")
    lines = [(line.message, vars(line)) for line in caplog.records]
    assert [message for message, _ in lines] == ["the Workflow was created", "Submit", "the retrain ended"]
    for _, line in lines:
        assert (line["environment"], line["model"], line["workflow"]) == ("default", "churn", workflow)
        assert line["event_id"] == drift().id
    assert lines[2][1]["outcome"] == "Rejected"
    assert lines[2][1]["detail"] == "0.81 < 0.84"
    text = scraped(function)
    assert value(text, "aegis_trigger_retrains_total", outcome="Rejected") == 1
    assert value(text, "aegis_trigger_workflows_total", result="created") == 1
    assert "aegis_trigger_reconcile_seconds_count 2.0" in text
    assert "aegis_trigger_budget 20.0" in text


def test_a_workflow_that_vanished_is_counted_and_logged_as_lost(world: World, caplog: pytest.LogCaptureFixture) -> None:
    function = world.function()
    post(function, drift())
    (workflow,) = world.workflow_names()
    world.forget("Workflow", workflow)
    with caplog.at_level(logging.INFO, "aegis"):
        ask(function, "POST", "/reconcile")
    (line,) = [vars(line) for line in caplog.records if line.message == "the retrain ended"]
    assert (line["outcome"], line["workflow"]) == ("Lost", workflow)
    assert value(scraped(function), "aegis_trigger_retrains_total", outcome="Lost") == 1


def test_an_end_that_another_replica_noted_first_is_counted_there(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = world.function()
    post(function, drift())
    world.end(world.workflow_names()[0])

    def lost(*_: object, **__: object) -> None:
        raise Conflict("somebody was quicker")

    monkeypatch.setattr(type(world.ports.ledger), "write", lost)
    ask(function, "POST", "/reconcile")
    text = scraped(function)
    assert value(text, "aegis_trigger_retrains_total", outcome="Promoted") == 0
    assert value(text, "aegis_trigger_reconciled_total", result="again") == 1


@pytest.mark.parametrize(
    ("error", "result"), [(Temporary("forbidden"), "refused"), (None, "created")], ids=["refused", "created"]
)
def test_workflows_are_counted_by_what_came_of_them(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception | None,
    result: str,
) -> None:
    if error is not None:

        def refuse(*_: object) -> str:
            raise error

        monkeypatch.setattr(type(world.ports.workflows), "create", refuse)
    function = world.function()
    with caplog.at_level(logging.INFO, "aegis"):
        post(function, drift())
    assert value(scraped(function), "aegis_trigger_workflows_total", result=result) == 1
    message = "the Workflow was not created" if error else "the Workflow was created"
    (line,) = [vars(line) for line in caplog.records if line.message == message]
    assert (line["environment"], line["model"], line["event_id"]) == ("default", "churn", drift().id)


@pytest.mark.parametrize(("document", "port"), [("ledger", "ledger"), ("budget", "budgets")])
def test_lost_compare_and_sets_are_counted(
    world: World, monkeypatch: pytest.MonkeyPatch, document: str, port: str
) -> None:
    kind = type(getattr(world.ports, port))
    write, losses = kind.write, iter((True, True, False))

    def sometimes(self: object, *told: object, **more: object) -> object:
        if next(losses, False):
            raise Conflict("somebody was quicker")
        return write(self, *told, **more)

    monkeypatch.setattr(kind, "write", sometimes)
    function = world.function()
    assert post(function, drift()).status == 200
    assert value(scraped(function), "aegis_trigger_conflicts_total", document=document) == 2


def test_a_trigger_that_nobody_scrapes_counts_nothing(world: World) -> None:
    trigger: Trigger = world.trigger()
    trigger.event(drift(seen=NOW))
    assert world.workflow_names()
