"""Logs as JSON lines and metrics in Prometheus' text format. Decides nothing."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

disable_created_metrics()  # type: ignore[no-untyped-call]  # when each series began: half of all lines, never asked for
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line, ASCII only: control and bidi characters of foreign text arrive escaped."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def setup_logging(level: str) -> None:
    """Send the log of all `aegis` loggers to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("aegis")
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


class Metrics:
    """The metrics of one function, on a registry of its own."""

    CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, function: str) -> None:
        self._registry = CollectorRegistry()
        self._function = function
        self._requests = self.counter("requests", "Requests answered.", "path", "status")
        self._seconds = self.histogram("request_seconds", "Time to answer.", "path")

    def counter(self, name: str, help_text: str, *labels: str, known: Iterable[str | tuple[str, ...]] = ()) -> Counter:
        """`known`: values of the labels that are shown from the start. Prometheus sees a rise only between two scrapes,
        so a series that began with its first event would hide just that one."""
        made = Counter(f"aegis_{self._function}_{name}", help_text, labels, registry=self._registry)
        for values in known:
            made.labels(*((values,) if isinstance(values, str) else values))
        return made

    def gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        return Gauge(f"aegis_{self._function}_{name}", help_text, labels, registry=self._registry)

    def histogram(self, name: str, help_text: str, *labels: str) -> Histogram:
        return Histogram(f"aegis_{self._function}_{name}", help_text, labels, registry=self._registry)

    def request(self, path: str, status: int, seconds: float) -> None:
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def render(self) -> bytes:
        return generate_latest(self._registry)
