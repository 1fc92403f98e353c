"""What the tests send."""

from __future__ import annotations

import json
import socket
from datetime import UTC, datetime, timedelta
from typing import Any

from aegis import events
from tests.conformance.conftest import KEY
from tests.trigger.host import Host
from tests.trigger.world import drift

JSON = {"content-type": "application/json"}


def alerts(model: str) -> bytes:
    """Alertmanager's delivery of one alert about a model."""
    began = (datetime.now(UTC) - timedelta(minutes=1)).isoformat()
    labels = {"alertname": "ModelDrift", "model_name": model, "severity": "warning"}
    alert = {"status": "firing", "labels": labels, "annotations": {}, "startsAt": began}
    return json.dumps({"version": "4", "status": "firing", "receiver": "aegis", "alerts": [alert]}).encode()


def as_event(data: bytes) -> events.CloudEvent:
    """Alertmanager's delivery as the data of a CloudEvent."""
    return events.CloudEvent(
        type="io.example.alerts", source="/tests", id="1", data=events.canonical_json(json.loads(data))
    )


def sealed_drift(
    model: str, *, key: bytes | None = KEY, structured: bool = False, **more: Any
) -> tuple[dict[str, str], bytes]:
    """Headers and body of a drift event of this moment."""
    event = events.to_cloudevent(drift(model, seen=datetime.now(UTC), **more), key)
    return events.encode(event, structured=structured)


def usual(host: Host, model: str) -> tuple[str, dict[str, str], bytes]:
    """The request that a function is there for: path, headers, body. It is answered with 200."""
    if host.function == "alert_receiver":
        return "/alertmanager", JSON, alerts(model)
    return ("/", *sealed_drift(model))


def in_flight(host: Host, model: str) -> tuple[socket.socket, bytes]:
    """A request of which the function reads the body already, and that body."""
    path, headers, body = usual(host, model)
    lines = [f"{name}: {value}" for name, value in {**headers, "content-length": str(len(body))}.items()]
    connection = socket.create_connection(("127.0.0.1", host.port), timeout=15)
    head = [f"POST {path} HTTP/1.1", "host: localhost", "expect: 100-continue", *lines, "", ""]
    connection.sendall("\r\n".join(head).encode())
    assert connection.recv(65_536).startswith(b"HTTP/1.1 100")
    return connection, body
