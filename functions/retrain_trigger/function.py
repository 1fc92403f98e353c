"""retrain-trigger as a host-neutral function: who may order a retrain, what each answer means, when to reconcile."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from aegis import datasets, events
from aegis.errors import USAGE, Permanent, Temporary
from aegis.http import Credential, Function, HttpError, Request, Response, SecretFile, authenticate, error
from aegis.settings import load
from aegis.telemetry import Metrics, setup_logging

from .announce import Announcer
from .champion import champion_serial
from .kubernetes import Client, KubernetesBudgets, KubernetesLedger, KubernetesWorkflows, own_namespace
from .local import LocalBudgets, LocalLedger, LocalWorkflows
from .policy import SPELLED, Kind, Outcome
from .ports import Budgets, Ledger, Serials, Workflows, no_serials
from .sqlite import Objects
from .trigger import Answer, Limits, Sources, Trigger

log = logging.getLogger("aegis.trigger")

RECONCILE_SLICE_S = 10.0
"""A wake-up works at most this long; the next one goes on."""
DECISIONS = (
    *((Kind.SUBMIT, reason) for reason in ("Drift", "Requested")),
    *((Kind.HOLD, reason) for reason in SPELLED),
    *((Kind.REJECT, reason) for reason in ("Invalid", "UnknownModel")),
    (Kind.IGNORE, "Stale"),
)
RESULTS = ("submit", "hold", "again", "gone", "invalid", "failed", "left")
DEAD = (events.DETECTED, events.RESOLVED, events.REJECTED, events.FINISHED, "other")
COUNTED = {
    "conflict": ("conflicts", "Compare-and-sets that another writer won.", "document", ("ledger", "budget")),
    "workflow": ("workflows", "Workflows to be created.", "result", ("created", "found", "refused")),
    "retrain": ("retrains", "Retrains that ended, by outcome.", "outcome", tuple(Outcome)),
}
"""What the Trigger counts: metric, help, label and its values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of retrain-trigger, each from the variable `AEGIS_<NAME>`."""

    ledger: Path | None = None
    """The SQLite file that holds ledger, budget and Workflows on one machine. Without one Kubernetes holds them."""
    dataset_prefixes: tuple[str, ...] = ()
    """Where data may come from, separated by commas, such as `s3://bucket/datasets/`. Empty allows none: an alert
    must not be able to name any place."""
    budget: int = 20
    """Retrains an hour, over all models. A storm of alerts then costs no more than a busy hour."""
    create_unknown: bool = False
    """Whether a model that nobody registered gets a ledger. Off: a typing error in a label must not train."""
    max_models: int = 1000
    """Cap on created ledgers, so that a label with random values cannot fill the store."""
    run_deadline: timedelta = timedelta(hours=4)
    """How long a retrain may run (queue and approval not counted) before it is Stuck."""
    namespace: str = "aegis-workflows"
    """The namespace of the Workflows. Its own, because trainers run there: they come near no function's secret."""
    ledger_namespace: str = ""
    """The namespace of ManagedModels and budget. Unset: the pod's own, or `aegis` outside a cluster."""
    seal_keys: tuple[Path, ...] = ()
    """Files with the keys that seal drift events; two during a rotation."""
    bearer_tokens: tuple[Path, ...] = ()
    """Files with tokens that may POST drift events directly."""
    models_uri: str = ""
    """Where the signed pointers lie. With it a roll-out by a person (`aegis adopt`) ends WaitingForRollout. Reading
    them takes the packages of the `sign` extra."""
    trusted_keys: Path | None = None
    """The keys that a pointer may be signed with: a PEM file, or a folder of them."""
    trust_loopback: bool = False
    """Whether a caller on loopback needs neither seal nor token. Only for one machine."""
    body_limit: int = 256 * 1024
    """Bytes of a request. A drift event is under 64 KiB; a broker's headers and structured mode add little."""
    log_level: str = "info"
    """debug, info, warning or error."""

    def __post_init__(self) -> None:
        faults = {}
        for name in ("budget", "max_models", "body_limit"):
            if getattr(self, name) < 1:
                faults["AEGIS_" + name.upper()] = "must be at least 1"
        if self.run_deadline <= timedelta(0):
            faults["AEGIS_RUN_DEADLINE"] = "must be longer than nothing"
        wrong = [f"{prefix}: {fault}" for prefix in self.dataset_prefixes if (fault := datasets.prefix_fault(prefix))]
        if wrong:
            faults["AEGIS_DATASET_PREFIXES"] = "; ".join(wrong)
        if self.log_level.lower() not in ("debug", "info", "warning", "error"):
            faults["AEGIS_LOG_LEVEL"] = "must be debug, info, warning or error"
        if not (self.seal_keys or self.bearer_tokens or self.trust_loopback):
            faults["AEGIS_SEAL_KEYS"] = "missing: without seal keys or bearer tokens nobody may order a retrain"
        if faults:
            raise Permanent("bad settings", faults, exit_code=USAGE)

    def limits(self) -> Limits:
        return Limits(
            prefixes=self.dataset_prefixes,
            budget=self.budget,
            create_unknown=self.create_unknown,
            max_models=self.max_models,
            deadline=self.run_deadline,
            namespace=self.namespace,
        )


def real_sources() -> Sources:
    """The machine's clock and randomness."""
    rng = random.SystemRandom()
    return Sources(
        now=lambda: datetime.now(UTC),
        token=lambda: secrets.token_hex(16),
        pause=lambda attempt: time.sleep(rng.uniform(0, min(0.01 * 2**attempt, 0.5))),
    )


def ports(settings: Settings) -> tuple[Ledger, Budgets, Workflows]:
    """The three ports over SQLite or over Kubernetes. Opens nothing yet: the host may still fork."""
    if settings.ledger is not None:
        objects = Objects(settings.ledger)
        return LocalLedger(objects, _uid), LocalBudgets(objects), LocalWorkflows(objects, _uid)
    client, namespace = Client(), settings.ledger_namespace or own_namespace()
    return (
        KubernetesLedger(client, namespace, Announcer(client, namespace)),
        KubernetesBudgets(client, namespace),
        KubernetesWorkflows(client, settings.namespace),
    )


def _uid() -> str:
    return str(uuid.uuid4())


def real_trigger(settings: Settings, pointer: Serials = no_serials) -> Trigger:
    """The trigger over the adapters that the settings name."""
    return Trigger(*ports(settings), settings.limits(), real_sources(), pointer)


def ledger_state(settings: Settings) -> Callable[[], str]:
    """How the ledger is, in words for people."""
    ledger, _, _ = ports(settings)
    where = settings.ledger or f"ManagedModels of namespace {settings.ledger_namespace or own_namespace()}"

    def state() -> str:
        try:
            return f"{where}: {ledger.count()} models"
        except (Temporary, Permanent) as exc:
            return f"not usable: {exc}"

    return state


class RetrainTrigger:
    """The routes of the function over a Trigger. `state` says how the ledger is, for people; it may block."""

    def __init__(self, settings: Settings, trigger: Trigger, sources: Sources, state: Callable[[], str]) -> None:
        self._settings = settings
        self._state = state
        self._trigger = trigger
        self._sources = sources
        self._seal_keys = [SecretFile(path) for path in settings.seal_keys]
        self._tokens = [Credential(str(path), SecretFile(path)) for path in settings.bearer_tokens]
        self._reconciling = asyncio.Lock()
        self._wanted = False
        metrics = Metrics("trigger")
        self._decisions = metrics.counter(
            "decisions", "Decisions about drift events.", "decision", "reason", known=DECISIONS
        )
        self._reconciled = metrics.counter("reconciled", "Models reconciled, by result.", "result", known=RESULTS)
        self._reconcile_seconds = metrics.histogram("reconcile_seconds", "Time of one round of reconcile.")
        self._last_reconcile = metrics.gauge("last_reconcile_timestamp_seconds", "When reconcile last finished.")
        self._dead = metrics.counter("dead_letters", "Events that ended in the dead-letter path.", "type", known=DEAD)
        self._unsealed = metrics.counter("unauthenticated", "Drift events without a valid seal or token.")
        metrics.gauge("budget", "Submissions an hour that the operator allows, over all models.").set(settings.budget)
        counted = {
            what: metrics.counter(name, text, label, known=known)
            for what, (name, text, label, known) in COUNTED.items()
        }
        trigger.count = lambda what, which: counted[what].labels(which).inc()
        self.function = Function(
            {
                "/": (["POST"], self._root),
                "/reconcile": (["POST"], self._wake),
                "/dead-letters": (["POST"], self._dead_letters),
            },
            metrics,
            problems=self._problems,
            status=self._status,
            max_in_flight=200,
            deadline_s=30.0,
        )

    async def _root(self, request: Request) -> Response:
        event = await self._event(request)
        match event.type:
            case events.DETECTED | events.RESOLVED:
                return await self._drift(request, event)
            case events.FINISHED | "dev.knative.sources.ping":
                return await self._wake(request)
            case events.REJECTED:
                return self._dead_letter(event)
        raise HttpError(400, "this event type is not for retrain-trigger", {"type": event.type[:100]})

    async def _event(self, request: Request) -> events.CloudEvent:
        body = await request.read(self._settings.body_limit, within_s=10)
        try:
            return events.decode(request.headers, body)
        except events.Malformed as exc:
            raise HttpError(400, exc.message, exc.faults) from exc

    async def _drift(self, request: Request, event: events.CloudEvent) -> Response:
        if not self._may_order(request, event):
            self._unsealed.inc()
            challenge = {"www-authenticate": "Bearer"}
            return error(401, "the event carries no valid seal and the request no valid token", headers=challenge)
        try:
            drift = events.from_cloudevent(event)
        except events.Malformed as exc:
            raise HttpError(400, exc.message, exc.faults) from exc
        answer = await asyncio.to_thread(self._trigger.event, drift)
        decision = answer.decision
        self._decisions.labels(decision.kind, decision.reason).inc()
        log.info(
            decision.kind.value,
            extra={
                "event_id": event.id,
                "environment": answer.environment,
                "model": answer.model,
                "reason": decision.reason,
                "detail": decision.message,
                "workflow": answer.workflow,
            },
        )
        if decision.kind is Kind.REJECT:
            return error(422, decision.message, decision.faults)
        wants = "return=representation" in request.headers.get("prefer", "")
        if decision.kind is Kind.SUBMIT or wants:
            return _reply(event, answer, self._sources.now())
        return Response(204)

    def _may_order(self, request: Request, event: events.CloudEvent) -> bool:
        if self._settings.trust_loopback and request.loopback:
            return True
        if self._seal_keys and events.sealed(event, [key.read() for key in self._seal_keys]):
            return True
        return authenticate(request.headers.get("authorization"), self._tokens) is not None

    async def _wake(self, request: Request) -> Response:  # noqa: ARG002  # a wake-up says nothing but "look"
        """Reconcile, one at a time. A wake-up that comes meanwhile makes the running one look again."""
        self._wanted = True
        if self._reconciling.locked():
            return Response(204)
        async with self._reconciling:
            ends = time.monotonic() + RECONCILE_SLICE_S
            while self._wanted and time.monotonic() < ends:
                self._wanted = False
                with self._reconcile_seconds.time():
                    counts = await asyncio.to_thread(self._trigger.reconcile, until=lambda: time.monotonic() >= ends)
                for result, count in counts.items():
                    self._reconciled.labels(result).inc(count)
            self._last_reconcile.set(self._sources.now().timestamp())
        return Response(204)

    async def _dead_letters(self, request: Request) -> Response:
        return self._dead_letter(await self._event(request))

    def _dead_letter(self, event: events.CloudEvent) -> Response:
        self._dead.labels(event.type if event.type in DEAD else "other").inc()
        extra: dict[str, Any] = {k: v for k, v in event.extensions.items() if k.startswith("knativeerror")}
        data = event.data[:4096].decode("utf-8", "replace")
        log.warning("dead letter", extra={"event_id": event.id, "type": event.type, "data": data, **extra})
        return Response(204)

    def _problems(self) -> list[str]:
        files = [*self._seal_keys, *(token.secret for token in self._tokens)]
        return [problem for file in files if (problem := file.problem())]

    async def _status(self) -> Mapping[str, str]:
        return {"ledger": await asyncio.to_thread(self._state)}


def _reply(event: events.CloudEvent, answer: Answer, now: datetime) -> Response:
    decision = answer.decision
    data = {
        "environment": answer.environment,
        "model": answer.model,
        "decision": decision.kind.value,
        "reason": decision.reason,
        "message": decision.message,
        "workflow": answer.workflow,
        "event_id": event.id,
    }
    reply = events.CloudEvent(
        type=events.SUBMITTED if decision.kind is Kind.SUBMIT else events.DECIDED,
        source="/aegis/retrain-trigger",
        id=f"{event.id}-{events.to_ms(now)}",
        subject=event.subject,
        time=now,
        data=events.canonical_json(data),
    )
    headers, body = events.encode(reply)
    return Response(200, body, headers)


def from_env(env: Mapping[str, str]) -> Function:
    """Build the function from settings. Raises Permanent that names every fault."""
    settings = load(Settings, env)
    setup_logging(settings.log_level)
    serial = champion_serial(settings.models_uri, settings.trusted_keys, env)
    trigger = real_trigger(settings, serial)
    return RetrainTrigger(settings, trigger, real_sources(), ledger_state(settings)).function
