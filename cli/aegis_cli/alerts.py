"""Alerts as Alertmanager posts them, made for a test or a demo. Pure but for what it is handed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from aegis.events import rfc3339
from alert_receiver.alertmanager import fingerprint

NEVER = "0001-01-01T00:00:00Z"
"""How Alertmanager spells the end of an alert that fires."""


def payload(
    labels: Mapping[str, str],
    annotations: Mapping[str, str],
    starts_at: datetime,
    *,
    ends_at: datetime | None = None,
) -> dict[str, Any]:
    """One alert in a webhook body of version 4, with every field that Alertmanager 0.25 sends."""
    status = "firing" if ends_at is None else "resolved"
    return {
        "receiver": "aegis",
        "status": status,
        "alerts": [
            {
                "status": status,
                "labels": dict(labels),
                "annotations": dict(annotations),
                "startsAt": rfc3339(starts_at),
                "endsAt": NEVER if ends_at is None else rfc3339(ends_at),
                "generatorURL": "",
                "fingerprint": fingerprint(labels),
            }
        ],
        "groupLabels": {"alertname": labels["alertname"]},
        "commonLabels": dict(labels),
        "commonAnnotations": dict(annotations),
        "externalURL": "http://127.0.0.1:9093",
        "version": "4",
        "groupKey": f'{{}}:{{alertname="{labels["alertname"]}"}}',
        "truncatedAlerts": 0,
    }
