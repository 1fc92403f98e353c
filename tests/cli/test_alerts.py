"""A test alert looks like one that Alertmanager posted: the same keys, each of the same type."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from aegis_cli import alerts
from alert_receiver import alertmanager

RECORDED = Path(__file__).parents[1] / "captures" / "s01-single-firing-am0.25.0.json"
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
LABELS = {"alertname": "ModelDrift", "model_name": "digits", "severity": "warning"}


def recorded() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RECORDED.read_text())["deliveries"][0]["request"]["body"]
    return found


def kinds(value: Any) -> Any:
    """Keys and types, all the way down; the names of labels and annotations are the alert's own."""
    if isinstance(value, dict):
        own = all(isinstance(item, str) for item in value.values()) and "status" not in value and "version" not in value
        return "texts by name" if own else {name: kinds(item) for name, item in value.items()}
    if isinstance(value, list):
        return [kinds(item) for item in value[:1]]
    return type(value).__name__


def test_it_has_the_keys_and_types_of_a_recorded_delivery() -> None:
    made = alerts.payload(LABELS, {"summary": "drift"}, NOW)
    assert kinds(made) == kinds(recorded())
    assert made["version"] == recorded()["version"]
    assert made["alerts"][0]["endsAt"] == recorded()["alerts"][0]["endsAt"]


def test_its_fingerprint_is_the_one_that_alertmanager_computes() -> None:
    real = recorded()["alerts"][0]
    made = alerts.payload(real["labels"], real["annotations"], NOW)
    assert made["alerts"][0]["fingerprint"] == real["fingerprint"]


@pytest.mark.parametrize("ends_at", [None, NOW + timedelta(hours=1)])
def test_the_receiver_reads_it(ends_at: datetime | None) -> None:
    made = alerts.payload(LABELS, {}, NOW, ends_at=ends_at)
    assert made["status"] == made["alerts"][0]["status"] == ("firing" if ends_at is None else "resolved")
    found = alertmanager.read(json.dumps(made).encode(), now=NOW + timedelta(hours=2))
    assert [isinstance(alert, alertmanager.Alert) for alert in found.alerts] == [True]
