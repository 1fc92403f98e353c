"""The shipped files, and every series that a query may name."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from retrain_trigger.model import API_VERSION, Condition, Record, Status, ledger_document, policy_from
from tests.observability.exported import OBSERVABILITY, Series, receiver_text, series, state_metrics, trigger_text
from tests.trigger.contract import full_status
from tests.trigger.world import NOW

RULES: dict[str, Any] = yaml.safe_load((OBSERVABILITY / "prometheus-rules.yaml").read_text())["spec"]
DASHBOARD: dict[str, Any] = json.loads((OBSERVABILITY / "dashboard.json").read_text())
KUBE: frozenset[str] = frozenset()
"""Metrics of Kubernetes itself that a query may name; none is needed so far."""


def full_document(status: Status | None = None) -> dict[str, Any]:
    """A ManagedModel with all that the API server and the trigger write."""
    spec = {"suspend": False, "approval": True, "workflowTemplate": "aegis-retrain"}
    record = Record(
        name="churn.default", uid="u", version="1", environment="default", model="churn", policy=policy_from(spec),
        status=Status(), generation=2,
    )  # fmt: skip
    return {
        "apiVersion": API_VERSION,
        "kind": "ManagedModel",
        "metadata": {"name": record.name, "namespace": "aegis", "uid": "u"},
        "spec": {"environment": "default", "model": "churn", **spec},
        "status": ledger_document(record, status or conditioned(), pending=True),
    }


def conditioned() -> Status:
    """The full ledger, with all four conditions."""
    made = [
        Condition(type=kind, status=holds, reason=reason, message="m", last_transition_time=NOW)
        for kind, holds, reason in (
            ("Drifting", "True", "AlertsFiring"),
            ("Retraining", "False", "BudgetSpent"),
            ("NeedsHuman", "True", "BudgetSpent"),
            ("Stuck", "False", "No"),
        )
    ]
    assert full_status().retrain is not None
    return replace(full_status(), conditions=tuple(made))


def all_series(folder: Path) -> Series:
    """What the functions export, and what kube-state-metrics makes of a full ManagedModel."""
    found = series(receiver_text()) | series(trigger_text(folder))
    for sample in state_metrics(full_document()):
        found.setdefault(sample.name, []).append(dict(sample.labels))
    return found


def expressions() -> dict[str, str]:
    """Every expression of rules and dashboard, by where it stands; Grafana's variables filled in."""
    found = {rule["alert"]: rule["expr"] for group in RULES["groups"] for rule in group["rules"]}
    for panel in panels():
        for target in panel["targets"]:
            filled = target["expr"].replace("$__rate_interval", "5m").replace("$environment", ".*")
            found[f"{panel['title']} {target['refId']}"] = filled
    return found


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


SELECTOR = re.compile(r"\b(aegis_\w+|kube_\w+|up)\b(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"((?:[^"\\]|\\.)*)"')


def selectors(expression: str) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """The metrics that an expression names, each with its matchers as label, operator, value."""
    return [(name, MATCHER.findall(inside or "")) for name, inside in SELECTOR.findall(expression)]
