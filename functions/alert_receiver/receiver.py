"""The receiver: webhook deliveries in, drift events out; 2xx only after the sink has every event."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from time import perf_counter
from typing import Any

from aegis import events
from aegis.errors import Permanent, Temporary
from aegis.events import CloudEvent
from aegis.http import Credential, Function, HttpError, Request, Response, SecretFile, as_json, authenticate, error
from aegis.telemetry import Metrics, setup_logging
from alert_receiver import alertmanager, mapping
from alert_receiver.alertmanager import Alert, Rejected
from alert_receiver.mapping import Config, Ignored
from alert_receiver.settings import Environment, from_env
from alert_receiver.sink import HttpSink, Refused, Sink

log = logging.getLogger("aegis.receiver")

BODY_WITHIN_S = 5.0
"""For the body to arrive: half of Alertmanager's attempt, and a sender that stalls holds a place no longer."""
GIVE_UP_AFTER = 16
"""Failed events after which a delivery stops: one bad event holds up no other, and a dead sink is not asked 1,000
times."""
MAX_FAULTS = 32
Result = tuple[str, str]
IGNORED = ("alertname", "matchers", "severity")
REJECTED = (
    "alert", "annotations", "dataset_uri", "endsAt", "environment", "fingerprint", "generatorURL", "labels", "model",
    "sink", "startsAt", "status",
)  # fmt: skip
"""The field that the first fault of an alert is about."""
ALERTS: tuple[Result, ...] = (
    ("forwarded", ""),
    ("resolved", ""),
    *(("ignored", reason) for reason in IGNORED),
    *(("rejected", reason) for reason in REJECTED),
)
SENT = ("accepted", "refused", "failed")


@dataclass(slots=True)
class Delivery:
    """What became of one delivery's alerts so far, and what the sink would not take."""

    results: Counter[Result] = field(default_factory=Counter)
    recomputed: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """An event on its way. `rejected` is the fault that it reports if it is a dead letter."""

    event: CloudEvent
    result: Result
    alert: Alert | Rejected


class Receiver:
    """What the paths do. `clock` and `entropy` (hex of so many bytes) are passed in for tests."""

    def __init__(
        self,
        config: Config,
        sink: Sink,
        metrics: Metrics,
        *,
        seal_key: SecretFile | None,
        body_limit: int,
        concurrency: int,
        behind_proxy: bool = False,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        entropy: Callable[[int], str] = secrets.token_hex,
    ) -> None:
        self.sink = sink
        self._config = config
        self._seal_key = seal_key
        self._body_limit = body_limit
        self._concurrency = concurrency
        self._behind_proxy = behind_proxy
        self._clock = clock
        self._entropy = entropy
        self._callers = {caller.name: caller for caller in config.credentials}
        self._credentials = [
            Credential(caller.name, SecretFile(caller.file), caller.user, caller.environments)
            for caller in config.credentials
        ]
        self._alerts = metrics.counter("alerts", "Alerts by what became of them.", "result", "reason", known=ALERTS)
        self._recomputed = metrics.counter(
            "fingerprints_recomputed", "Fingerprints not the sender's.", "why", known=("wrong", "absent")
        )
        self._truncated = metrics.counter("alerts_truncated", "Alerts that the sender's max_alerts cut off.")
        sent = metrics.counter("sink_events", "Events sent to the sink.", "result", known=SENT)
        self._sent = {result: sent.labels(result) for result in SENT}  # looked up once, not for each event
        self._sink_seconds = metrics.histogram("sink_seconds", "Time until the sink had one event, or did not.")

    def problems(self) -> list[str]:
        """What makes the receiver not ready: secrets that cannot be read, or nobody who may call."""
        files = [credential.secret for credential in self._credentials]
        found = [file.problem() for file in [*files, *([self._seal_key] if self._seal_key else [])]]
        if self._behind_proxy and not self._credentials:
            found.append("receiver.credentials: missing; behind a proxy no caller is known to be on this machine")
        return [problem for problem in found if problem]

    async def status(self) -> Mapping[str, str]:
        return {"sink": self.sink.state()}

    async def webhook(self, request: Request) -> Response:
        """Take one delivery: Alertmanager's JSON, or a CloudEvent whose data is that."""
        environments = self._admit(request)
        is_event = self._check_media(request)
        body = await request.read(self._body_limit, within_s=BODY_WITHIN_S)
        traceparent = request.headers.get("traceparent", "")
        try:
            if is_event:
                event = events.decode(request.headers, body)
                body, traceparent = event.data, event.extensions.get("traceparent", traceparent)
            now = self._clock()
            envelope = alertmanager.read(body, now=now)
        except (events.Malformed, alertmanager.BadEnvelope) as exc:
            return error(400, exc.message, exc.faults)
        if envelope.truncated:
            self._truncated.inc(envelope.truncated)
        if events.TRACEPARENT.fullmatch(traceparent) is None:
            traceparent = f"00-{self._entropy(16)}-{self._entropy(8)}-01"
        delivery = Delivery()
        chains = self._events(envelope, environments, delivery, now, traceparent)
        await self._deliver(chains, delivery)
        self._count(delivery)
        if delivery.failures:
            raise Temporary(f"{len(delivery.failures)} events not delivered: {delivery.failures[0]}")
        if is_event:
            return Response(200)  # a Broker takes any other body than a CloudEvent for a failure
        totals: Counter[str] = Counter()
        for (result, _), count in delivery.results.items():
            totals[result] += count
        return as_json(200, totals)

    # --- who and what ---

    def _admit(self, request: Request) -> frozenset[str]:
        """The environments that this caller may speak for on this path. Raises HttpError 401 or 403."""
        allowed = self._config.paths[request.path]
        if not self._credentials:
            if self._behind_proxy or not request.loopback:
                raise HttpError(403, "no credentials are configured, so only callers on this machine may call")
            return allowed
        found = authenticate(request.headers.get("authorization"), self._credentials)
        if found is None:
            kinds = sorted({"Basic" if credential.user else "Bearer" for credential in self._credentials})
            challenge = ", ".join(f'{kind} realm="aegis"' for kind in kinds)
            raise HttpError(401, "credentials are missing or wrong", None, **{"www-authenticate": challenge})
        paths = self._callers[found.name].paths
        if "*" not in paths and request.path not in paths:
            raise HttpError(403, f"{found.name} may not call this path")
        if "*" in found.environments:
            return allowed
        both = found.environments if "*" in allowed else found.environments & allowed
        if not both:
            raise HttpError(403, f"{found.name} may speak for no environment on this path")
        return both

    def _check_media(self, request: Request) -> bool:
        """Whether the request is a CloudEvent. Raises HttpError 415."""
        headers = request.headers
        media = headers.get("content-type", "").partition(";")[0].strip().lower()
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise HttpError(415, "compressed bodies are not accepted")
        if "ce-specversion" in headers or media.startswith("application/cloudevents"):
            return True
        if request.path == "/":
            raise HttpError(415, "only CloudEvents are taken here; Alertmanager posts to /alertmanager")
        if media != "application/json":
            raise HttpError(415, "the content type must be application/json")
        return False

    # --- alerts to events ---

    def _events(
        self,
        envelope: alertmanager.Envelope,
        environments: frozenset[str],
        delivery: Delivery,
        now: datetime,
        traceparent: str,
    ) -> list[list[Outgoing]]:
        """The events to send. One alert's own events stand in one list, in order; the lists may go side by side."""
        key = self._seal_key.read() if self._seal_key else None
        chains: dict[str, list[Outgoing]] = {}
        for index, alert in enumerate(envelope.alerts):
            mapped = mapping.apply(alert, self._config, environments, now=now, traceparent=traceparent)
            if isinstance(alert, Alert) and alert.recomputed:
                delivery.recomputed[alert.recomputed] += 1
            if isinstance(mapped, Ignored):
                delivery.results["ignored", mapped.reason] += 1
            elif isinstance(mapped, Rejected):
                chains[f"rejected {index}"] = [self._dead_letter(mapped, now, traceparent, key)]
            else:
                result = ("forwarded", "") if mapped.firing else ("resolved", "")
                event = Outgoing(events.to_cloudevent(mapped, key), result, alert)
                chains.setdefault(mapped.fingerprint, []).append(event)
        return list(chains.values())

    def _dead_letter(self, alert: Rejected, now: datetime, traceparent: str, key: bytes | None) -> Outgoing:
        faults = {name[:128]: what[:256] for name, what in list(alert.faults.items())[:MAX_FAULTS]}
        data: dict[str, Any] = {
            "faults": faults,
            "fingerprint": alert.fingerprint,
            "status": alert.status,
            "labels": dict(mapping.bounded(alert.labels)),
        }
        source = "/alertmanager/" + self._config.source
        event = CloudEvent(
            type=events.REJECTED,
            source=source,
            # What was said of the alert names it: a redelivery has the same id.
            id=sha256(source.encode() + repr(alert.raw).encode() + events.canonical_json(data)).hexdigest()[:32],
            subject=alert.fingerprint,
            time=now,
            data=events.canonical_json(data),
            extensions={"traceparent": traceparent},
        )
        if key is not None:
            event = replace(event, extensions={**event.extensions, "seal": events.seal(event, key)})
        labels = dict(mapping.bounded(alert.labels, 4096))
        log.warning("alert rejected", extra={**data, "event_id": event.id, "labels": labels})
        return Outgoing(event, ("rejected", next(iter(faults)).partition(".")[0]), alert)

    # --- events to the sink ---

    async def _deliver(self, chains: list[list[Outgoing]], delivery: Delivery) -> None:
        waiting = iter(chains)
        if len(chains) == 1:
            await self._work(waiting, delivery)
        elif chains:
            workers = min(self._concurrency, len(chains))
            await asyncio.gather(*[self._work(waiting, delivery) for _ in range(workers)])

    async def _work(self, waiting: Iterator[list[Outgoing]], delivery: Delivery) -> None:
        for chain in waiting:
            if len(delivery.failures) >= GIVE_UP_AFTER:
                return
            for outgoing in chain:
                try:
                    result = await self._send(outgoing)
                except Temporary as exc:
                    delivery.failures.append(str(exc))
                    break  # what follows on it must not overtake it
                delivery.results[result] += 1

    async def _send(self, outgoing: Outgoing) -> Result:
        try:
            await self._post(outgoing.event)
        except Refused as exc:
            if outgoing.result[0] == "rejected":  # there is no dead letter of a dead letter
                log.error("the sink refused a dead letter", extra={"error": str(exc), "event_id": outgoing.event.id})
                return outgoing.result
            alert = outgoing.alert
            status = "firing" if outgoing.event.type == events.DETECTED else "resolved"
            refused = Rejected(exc.faults, {"status": status}, alert.labels, alert.fingerprint)
            traceparent = outgoing.event.extensions.get("traceparent", "")
            key = self._seal_key.read() if self._seal_key else None
            return await self._send(self._dead_letter(refused, self._clock(), traceparent, key))
        return outgoing.result

    async def _post(self, event: CloudEvent) -> None:
        result, began = "failed", perf_counter()  # failed also when the delivery's time is over
        try:
            await self.sink.send(event)
            result = "accepted"
        except Refused:
            result = "refused"
            raise
        finally:
            self._sink_seconds.observe(perf_counter() - began)
            self._sent[result].inc()

    def _count(self, delivery: Delivery) -> None:
        for result, count in delivery.results.items():
            self._alerts.labels(*result).inc(count)
        for why, count in delivery.recomputed.items():
            self._recomputed.labels(why).inc(count)


def build(env: Mapping[str, str] = os.environ) -> Function:
    """Make the function. Bad settings do not raise: the function says in its readiness what is wrong."""
    metrics = Metrics("receiver")
    try:
        return _build(from_env(env), metrics)
    except Permanent as exc:
        problems = [f"{name}: {what}" for name, what in exc.faults.items()] or [str(exc)]
    log.error("not ready", extra={"problems": problems})

    async def unready(_: Request) -> Response:
        return error(503, "the receiver's settings are not valid; see /health/readiness")

    async def status() -> Mapping[str, str]:
        return {}

    return Function(
        {path: (["POST"], unready) for path in Config().paths},
        metrics,
        problems=lambda: problems,
        status=status,
        max_in_flight=1,
        deadline_s=1,
    )


def _build(environment: Environment, metrics: Metrics) -> Function:
    settings, binding = environment.settings, environment.binding
    setup_logging(settings.log_level)
    config = Config()
    if settings.config is not None:
        try:
            config = mapping.load(settings.config.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as exc:
            raise Permanent("bad settings", {"AEGIS_CONFIG": f"cannot be read: {type(exc).__name__}"}) from exc
    sink = HttpSink(
        binding.sink,
        concurrency=settings.sink_concurrency,
        timeout_s=settings.sink_timeout.total_seconds(),
        extensions=environment.extensions,
        token=SecretFile(settings.sink_token_file) if settings.sink_token_file else None,
        ca_certs=binding.ca_certs,
    )
    receiver = Receiver(
        config,
        sink,
        metrics,
        seal_key=SecretFile(settings.seal_key_file) if settings.seal_key_file else None,
        body_limit=settings.body_limit,
        concurrency=settings.sink_concurrency,
        behind_proxy=environment.behind_proxy,
    )
    return function(receiver, config, metrics, settings.max_in_flight, settings.deadline.total_seconds())


def function(
    receiver: Receiver, config: Config, metrics: Metrics, max_in_flight: int = 64, deadline_s: float = 8.0
) -> Function:
    """Put a receiver behind the paths of its configuration."""
    return Function(
        {path: (["POST"], receiver.webhook) for path in config.paths},
        metrics,
        problems=receiver.problems,
        status=receiver.status,
        max_in_flight=max_in_flight,
        deadline_s=deadline_s,
    )
