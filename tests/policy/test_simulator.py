"""The simulated world: a thousand model-days without a violation, and each rule seen to be watched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

import pytest

from retrain_trigger import budget as budgets
from retrain_trigger import model as documents
from retrain_trigger import policy as rules
from retrain_trigger.budget import Budget
from retrain_trigger.model import Evidence, Policy, Record, Status

from .simulator import simulate


def test_a_thousand_model_days_break_no_rule(capsys: pytest.CaptureFixture[str]) -> None:
    summary = simulate(1000, seed=1)
    with capsys.disabled():
        print("\n" + summary.text())
    assert summary.violations == []
    assert summary.retrains > 200
    # What the rules are about has to happen, or their keeping would say nothing.
    assert set(summary.humans) >= {
        "WaitingForRollout", "AttemptsSpent", "NoLabels", "BudgetSpent", "Queued", "AwaitingApproval", "RetrainsFail"
    }  # fmt: skip
    assert set(summary.decisions) >= {f"Hold {reason}" for reason in rules.SPELLED} - {
        "Hold LocationNotAllowed", "Hold BudgetContention"  # nobody writes another policy; replicas here take turns
    }  # fmt: skip
    assert summary.outcomes.keys() >= {*rules.Outcome, "BadData:NoLabels", "Failed:ChampionChanged"}
    assert summary.kills > 50
    assert summary.adopted > 10


def notices(what: str) -> None:
    found = simulate(1200, seed=3, days=10, stop_at=1).violations
    assert found, "broken, and nobody noticed"
    assert what in found[0]


Breaking = pytest.MonkeyPatch
HOLD_REASON = rules.hold_reason


def without(*reasons: str) -> Callable[..., str | None]:
    def hold_reason(policy: Policy, status: Status, now: datetime, *, requested: bool = False) -> str | None:
        reason = HOLD_REASON(policy, status, now, requested=requested)
        return None if reason in reasons and rules.fresh(status, policy, now) else reason

    return hold_reason


def test_the_simulator_notices_when_the_cooldown_is_forgotten(monkeypatch: Breaking) -> None:
    monkeypatch.setattr(rules, "hold_reason", without("Cooldown"))
    notices("began inside the cooldown")


def test_the_simulator_notices_when_a_failed_retrain_is_tried_again_at_once(monkeypatch: Breaking) -> None:
    monkeypatch.setattr(rules, "hold_reason", without("Backoff"))
    notices("inside the pause after failure")


def test_the_simulator_notices_when_the_pauses_do_not_grow(monkeypatch: Breaking) -> None:
    finished = rules.finished

    def forgets(record: Record, finish: rules.Finish, now: datetime) -> Status:
        return finished(replace(record, status=replace(record.status, failures=0)), finish, now)

    monkeypatch.setattr(rules, "finished", forgets)
    notices("inside the pause after failure")


def test_the_simulator_notices_when_nobody_waits_for_a_roll_out(monkeypatch: Breaking) -> None:
    monkeypatch.setattr(rules, "hold_reason", without("WaitingForRollout"))
    notices("trains for versions that were replaced")


def test_the_simulator_notices_when_the_champion_is_not_looked_at(monkeypatch: Breaking) -> None:
    monkeypatch.setattr("tests.policy.simulator.Fleet.read_pointer", lambda *_: None)
    notices("somebody changed the champion")


def test_the_simulator_notices_when_a_second_workflow_begins(monkeypatch: Breaking) -> None:
    monkeypatch.setattr(rules, "hold_reason", without("InFlight"))
    notices("began while")


def test_the_simulator_notices_when_old_evidence_trains_again(monkeypatch: Breaking) -> None:
    def fresh(status: Status, policy: Policy, now: datetime) -> list[Evidence]:
        return [alert for alert in status.evidence if rules.fires(alert, policy, now)]

    monkeypatch.setattr(rules, "fresh", fresh)
    notices("evidence from before")


def test_the_simulator_notices_when_the_budget_is_not_kept(monkeypatch: Breaking) -> None:
    def grant(budget: Budget, *_: object, limit: int) -> tuple[bool, Budget]:
        return limit > 0, budget

    monkeypatch.setattr(budgets, "grant", grant)
    notices("submissions in an hour")


def test_the_simulator_notices_when_nobody_is_asked(monkeypatch: Breaking) -> None:
    monkeypatch.setattr(rules, "needs_human", lambda *_: None)
    notices("nobody knows")


def test_the_simulator_notices_when_a_request_is_dropped(monkeypatch: Breaking) -> None:
    monkeypatch.setattr(documents, "_request", lambda _metadata: None)
    notices("was forgotten")


def test_the_simulator_notices_when_the_ledger_grows(monkeypatch: Breaking) -> None:
    monkeypatch.setattr(rules, "MAX_HISTORY", 10**6)
    monkeypatch.setattr(rules, "MAX_EVIDENCE", 10**6)
    monkeypatch.setattr(rules, "MAX_SUPERSEDED", 10**6)
    monkeypatch.setattr("tests.policy.simulator.MAX_BYTES", 14 * 1024)
    notices("bytes")


def test_the_simulator_notices_when_a_running_workflow_is_forgotten(monkeypatch: Breaking) -> None:
    submitted = rules.submitted

    def forgets(record: Record, uid: str, now: datetime) -> Status:
        status = submitted(record, uid, now)
        return replace(status, retrain=replace(status.retrain, phase="Finished")) if status.retrain else status

    monkeypatch.setattr(rules, "submitted", forgets)
    notices("the ledger does not know")
