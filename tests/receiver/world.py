"""A receiver in this process with a sink that remembers, and payloads as Alertmanager makes them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aegis.events import CloudEvent, strict_json
from aegis.http import Function, Request, Response, SecretFile
from aegis.telemetry import Metrics
from alert_receiver import receiver
from alert_receiver.mapping import Config

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
JSON = {"content-type": "application/json"}


def alert(**changes: Any) -> dict[str, Any]:
    """One alert; a change to None leaves the field out."""
    made: dict[str, Any] = {
        "status": "firing",
        "labels": {"alertname": "ModelDrift", "model_name": "churn", "model_version": "7", "severity": "warning"},
        "annotations": {"summary": "drift"},
        "startsAt": "2026-01-01T11:00:00.123456789Z",
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "http://prometheus.example/graph",
    }
    return {name: value for name, value in (made | changes).items() if value is not None}


def labels(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = alert()["labels"] | changes
    return {name: value for name, value in found.items() if value is not None}


def payload(*alerts: Any, **changes: Any) -> bytes:
    made = {"version": "4", "status": "firing", "receiver": "aegis", "alerts": list(alerts)} | changes
    return json.dumps({name: value for name, value in made.items() if value is not ...}).encode()


@dataclass
class MemorySink:
    """Keeps events; `answer` may raise for one, or wait."""

    events: list[CloudEvent] = field(default_factory=list)
    answer: Callable[[CloudEvent], None] = lambda _: None
    delay_s: float = 0.0
    most_at_once: int = 0
    _now: int = 0

    async def send(self, event: CloudEvent) -> None:
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            await asyncio.sleep(self.delay_s)
            self.answer(event)
        finally:
            self._now -= 1
        self.events.append(event)

    def state(self) -> str:
        return f"{len(self.events)} events"

    async def close(self) -> None:
        pass

    def data(self) -> list[Any]:
        return [strict_json(event.data) for event in self.events]

    def types(self) -> list[str]:
        return [event.type.removeprefix("dev.aegis.").removesuffix(".v1") for event in self.events]


class World:
    def __init__(
        self,
        config: Config | None = None,
        *,
        seal_key: Path | None = None,
        body_limit: int = 4 * 1024 * 1024,
        behind_proxy: bool = False,
        deadline_s: float = 8.0,
        max_in_flight: int = 64,
    ) -> None:
        self.sink = MemorySink()
        self.metrics = Metrics("receiver")
        self.config = config or Config()
        made = receiver.Receiver(
            self.config,
            self.sink,
            self.metrics,
            seal_key=SecretFile(seal_key) if seal_key else None,
            body_limit=body_limit,
            concurrency=16,
            behind_proxy=behind_proxy,
            clock=lambda: NOW,
            entropy=lambda size: "ab" * size,
        )
        self.function: Function = receiver.function(made, self.config, self.metrics, max_in_flight, deadline_s)

    async def call(
        self,
        body: bytes = b"",
        *,
        method: str = "POST",
        path: str = "/alertmanager",
        headers: Mapping[str, str] = JSON,
        peer: str = "127.0.0.1",
    ) -> Response:
        return await self.function.handle(Request(method, path, headers, _chunks(body), peer))

    def post(self, body: bytes = b"", **options: Any) -> Response:
        return asyncio.run(self.call(body, **options))

    def metric(self, name: str, **wanted: str) -> float:
        """The sum of a counter's samples that carry these labels."""
        return sum(
            sample.value
            for family in self.metrics._registry.collect()
            for sample in family.samples
            if sample.name == name and all(sample.labels.get(k) == v for k, v in wanted.items())
        )


async def _chunks(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 65536):
        yield body[start : start + 65536]


def parsed(response: Response) -> Any:
    return json.loads(response.body)
