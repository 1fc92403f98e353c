"""The ManagedModel document: the owner's policy (`spec`) and the ledger (`status`) of one model. Pure.

The same JSON stands in Kubernetes and in the one-machine SQLite table.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from typing import Annotated, Any, TypeVar, cast

from aegis.errors import Permanent, Temporary
from aegis.events import SEVERITIES, parse_time, rfc3339
from aegis.names import ALIAS, NAME
from aegis.settings import duration, spell_duration

API_VERSION = "aegis.dev/v1alpha1"
FORMAT_VERSION = 1
RETRAIN_LABEL = "aegis.dev/retrain"
"""The token of a person's request; one token, one run."""
REQUESTED_BY = "aegis.dev/retrain-by"
REQUESTED_WHY = "aegis.dev/retrain-why"

MAX_EVIDENCE = 16
MAX_HISTORY = 20
MAX_SUPERSEDED = 8
MAX_TOKENS = 8

_DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_TOKEN = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", re.ASCII)

T = TypeVar("T")
Severity = Annotated[str, SEVERITIES]
"""One of these words; a document with another is refused when it is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What an owner may decide about a model (`spec`); identity aside, everything has a default."""

    suspend: bool = False
    """Hold every retrain, also a requested one."""
    dataset_uri: str | None = None
    """Where the data is; beats what an alert says. Unset: the alert's own location is used."""
    evaluation_uri: str | None = None
    """Where the gate's evaluation data is. Only from here, never from an alert: who sends alerts must not choose
    the exam. Unset: a split of the dataset, pinned by digest, which is weaker."""
    cooldown: timedelta = timedelta(hours=6)
    """From the end of a retrain. A retrain, its roll-out and the metric's window fit; a day's second drift is not
    left until tomorrow."""
    max_attempts: int = 3
    """Retrains without success before a person is asked: data that failed thrice rarely helps the fourth time."""
    quiet_period: timedelta = timedelta(hours=48)
    """Without a firing alert for this long, attempts restart. Longer than any sensible repeat_interval of
    Alertmanager, or silence between two repeats would count as quiet."""
    evidence_ttl: timedelta = timedelta(hours=8)
    """How long an alert counts as firing after it was last seen: two of Alertmanager's default repeats of 4 h."""
    approval: bool = False
    """Whether a person approves an accepted model before it is signed."""
    trainer: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the training step."""
    gate: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the gate."""
    alias: str | None = None
    """The MLflow alias that follows the champion, of letters, digits, `_` and `-`. Unset: `champion`, or
    `champion-<environment>`, with a hash behind it where dots had to go."""
    workflow_template: str = "aegis-retrain"
    """The WorkflowTemplate that a retrain runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known of one alert, by fingerprint. A merge of everything seen, in whatever order it came."""

    fingerprint: str
    starts_at: datetime
    seen: datetime | None = None
    ends_at: datetime | None = None
    resolve_seen: datetime | None = None
    version: str = "unknown"
    severity: Severity = "warning"
    dataset_uri: str | None = None
    score: float | None = None
    feature: str | None = None
    event_id: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrain:
    """The last retrain: Claimed, then Submitted, then Finished."""

    sequence: int
    workflow: str
    claim: str
    phase: str
    first_claimed_at: datetime
    claimed_at: datetime
    severity: Severity = "warning"
    dataset_uri: str | None = None
    versions: tuple[str, ...] = ()
    event_id: str = ""
    fingerprint: str = ""
    source: str = ""
    version: str = "unknown"
    reason: str = ""
    requested_by: str | None = None
    uid: str | None = None
    submitted_at: datetime | None = None
    state: str | None = None
    deadline: datetime | None = None
    ended_at: datetime | None = None
    outcome: str | None = None
    outcome_reason: str | None = None
    explanation: str | None = None
    inputs: str | None = None
    run_id: str | None = None
    registered_version: str | None = None
    settled: bool = False

    @property
    def in_flight(self) -> bool:
        return self.phase != "Finished"


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A Kubernetes condition; `status` is "True" or "False"."""

    type: str
    status: str
    reason: str
    message: str
    last_transition_time: datetime

    @property
    def holds(self) -> bool:
        return self.status == "True"


ROWS = {
    "Submitted": "retrain submitted",
    "Hold": "held",
    "Finished": "retrain ended",
    "Rejected": "alert refused",
    "Request": "request",
}
"""Each kind of row in a person's words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the story. Repeats of the same hold are one row with a count."""

    kind: str
    reason: str
    message: str
    first: datetime
    last: datetime
    count: int = 1
    workflow: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The ledger of one model."""

    format_version: int = FORMAT_VERSION
    evidence: tuple[Evidence, ...] = ()
    attempts: int = 0
    failures: int = 0
    sequence: int = 0
    retrain: Retrain | None = None
    settled_at: datetime | None = None
    next_eligible_at: datetime | None = None
    superseded_versions: tuple[str, ...] = ()
    pointer: str | None = None
    last_seen: datetime | None = None
    waits: Mapping[str, datetime] = field(default_factory=dict)
    tokens: tuple[str, ...] = ()
    history: tuple[Row, ...] = ()
    conditions: tuple[Condition, ...] = ()

    def condition(self, kind: str) -> Condition | None:
        return next((c for c in self.conditions if c.type == kind), None)


@dataclass(frozen=True, slots=True)
class Request:
    """A person's request for a retrain."""

    token: str
    by: str = "unknown"
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One ManagedModel as read; `version` is what the next write must name."""

    name: str
    uid: str
    version: str
    environment: str
    model: str
    policy: Policy
    status: Status
    request: Request | None = None
    generation: int | None = None
    """Of the policy; the one-machine table counts none."""


# --- names -------------------------------------------------------------------------------------------------------


def object_name(environment: str, model: str) -> str:
    """`<model>.<environment>` when both are DNS labels, else a slug and 8 hex of a hash."""
    if _DNS_LABEL.fullmatch(model) and _DNS_LABEL.fullmatch(environment):
        return f"{model}.{environment}"
    digest = hashlib.sha256(f"{environment}/{model}".encode()).hexdigest()[:8]
    return f"{slug(f'{model}-{environment}', 50)}-{digest}"


def workflow_name(model: str, uid: str, sequence: int) -> str:
    """A deterministic name of at most 63 characters: creating it twice is one Workflow."""
    return f"aegis-{slug(model, 30)}-{hashlib.sha256(uid.encode()).hexdigest()[:8]}-{sequence}"


def slug(text: str, length: int) -> str:
    """Lower-case letters, digits and single dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:length].strip("-") or "model"


# --- documents ---------------------------------------------------------------------------------------------------


def new_document(environment: str, model: str, uid: str, now: datetime) -> dict[str, Any]:
    """A ManagedModel without a policy of its own and with an empty ledger."""
    return {
        "apiVersion": API_VERSION,
        "kind": "ManagedModel",
        "metadata": {"name": object_name(environment, model), "uid": uid, "creationTimestamp": rfc3339(now)},
        "spec": {"environment": environment, "model": model},
        "status": to_doc(Status()),
    }


def ledger_document(record: Record, status: Status, *, pending: bool) -> dict[str, Any]:
    """`status` as it stands in Kubernetes: with what its lists select by, and the policy that was decided upon."""
    doc: dict[str, Any] = {**to_doc(status), "pending": pending}
    if record.generation is not None:
        doc["observedGeneration"] = record.generation
        for condition in doc.get("conditions", ()):
            condition["observedGeneration"] = record.generation
    return doc


def from_document(doc: Mapping[str, Any], version: str) -> Record:
    """Read a ManagedModel. Raises Temporary for a ledger from a newer Aegis, Permanent for a bad spec or a damaged
    ledger; it names every fault."""
    parts = {part: doc.get(part) or {} for part in ("metadata", "spec", "status")}
    faults = {part: "must be a mapping" for part, value in parts.items() if not isinstance(value, Mapping)}
    if faults:
        raise Permanent("a ManagedModel is not valid", faults)
    metadata, spec, raw_status = parts["metadata"], dict(parts["spec"]), parts["status"]
    name, uid = str(metadata.get("name")), metadata.get("uid")
    written = raw_status.get("formatVersion")
    if isinstance(written, int) and written > FORMAT_VERSION:
        raise Temporary(f"the ledger of {name} was written by a newer Aegis; upgrade this one")
    environment, model = spec.pop("environment", ""), spec.pop("model", "")
    faults = {
        f"spec.{field}": "must match " + NAME.pattern
        for field, value in (("environment", environment), ("model", model))
        if not isinstance(value, str) or NAME.fullmatch(value) is None
    }
    if not faults and name != object_name(environment, model):
        faults["metadata.name"] = f"must be {object_name(environment, model)}"
    if not isinstance(uid, str):
        faults["metadata.uid"] = "must be text"
    policy, status, request = Policy(), Status(), None
    try:
        policy = policy_from(spec)
    except Permanent as exc:
        faults |= exc.faults
    try:
        status = parsed(Status, raw_status, "status")
    except Permanent as exc:
        faults |= exc.faults
    try:
        request = _request(metadata)
    except _DAMAGED:
        faults["metadata"] = "labels and annotations must map names to text"
    if faults:
        raise Permanent(f"ManagedModel {name} is not valid", faults)
    return Record(
        name=name,
        uid=str(uid),
        version=version,
        environment=environment,
        model=model,
        policy=policy,
        status=status,
        request=request,
        generation=generation if isinstance(generation := metadata.get("generation"), int) else None,
    )


def policy_from(spec: Mapping[str, Any]) -> Policy:
    """Read a `spec` without identity. Raises Permanent that names every fault."""
    faults: dict[str, str] = {}
    known = {camel(f.name): f for f in dataclasses.fields(Policy)}
    hints = typing.get_type_hints(Policy)
    taken: dict[str, Any] = {}
    for name, value in spec.items():
        where = f"spec.{name}"
        if name not in known:
            faults[where] = "is not a field"
            continue
        if value is None:
            continue
        wanted = hints[known[name].name]
        if wanted is timedelta:
            try:
                taken[known[name].name] = duration(value if isinstance(value, str) else "")
            except ValueError as exc:
                faults[where] = str(exc)
            continue
        plain = str if wanted == str | None else Mapping if typing.get_origin(wanted) else wanted
        if not isinstance(value, plain) or (plain is int and isinstance(value, bool)):
            faults[where] = f"must be {_SPELLED[plain]}"
        elif isinstance(value, str) and not travels(value):
            faults[where] = "must be printable ASCII without {{ and }}"
        else:
            taken[known[name].name] = value
    policy = Policy(**taken)
    if policy.alias and not ALIAS.fullmatch(policy.alias):
        faults["spec.alias"] = "must match " + ALIAS.pattern
    for name, low, high in (
        ("cooldown", timedelta(minutes=1), timedelta(days=30)),
        ("quiet_period", timedelta(minutes=10), timedelta(days=90)),
        ("evidence_ttl", timedelta(minutes=10), timedelta(days=7)),
        ("max_attempts", 1, 100),
    ):
        value = getattr(policy, name)
        if not low <= value <= high:
            spelled = [spell_duration(v) if isinstance(v, timedelta) else str(v) for v in (low, high)]
            faults.setdefault(f"spec.{camel(name)}", f"must be between {spelled[0]} and {spelled[1]}")
    if faults:
        raise Permanent("the policy is not valid", faults)
    return policy


_SPELLED: dict[Any, str] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text", Mapping: "a mapping", list: "a list",
}  # fmt: skip


def travels(text: str) -> bool:
    """Whether a text may be a Workflow's parameter: Argo substitutes templates inside values, in whatever step they
    arrive, and fails the Workflow at control characters."""
    return "{{" not in text and "}}" not in text and text.isascii() and text.isprintable()


def _request(metadata: Mapping[str, Any]) -> Request | None:
    token = (metadata.get("labels") or {}).get(RETRAIN_LABEL, "")
    if not _TOKEN.fullmatch(token):
        return None
    notes = metadata.get("annotations") or {}
    return Request(token, notes.get(REQUESTED_BY, "unknown")[:100], notes.get(REQUESTED_WHY, "")[:500])


def to_doc(value: Any) -> Any:
    """Spell a value of this module as JSON: camelCase names, RFC 3339 times, nothing for None and empty."""
    if dataclasses.is_dataclass(value):
        items = ((camel(name), getattr(value, name)) for name in _names(value.__class__))
        return {name: to_doc(item) for name, item in items if item not in (None, (), {})}
    if isinstance(value, datetime):
        return rfc3339(value)
    if isinstance(value, tuple):
        return [to_doc(item) for item in value]
    if isinstance(value, Mapping):
        return {name: to_doc(item) for name, item in value.items()}
    return value


def from_doc(cls: type[T], doc: Mapping[str, Any]) -> T:
    """Read what `to_doc` wrote; unknown fields are left out. Raises one of `_DAMAGED` for anything else."""
    return cls(**{name: read(doc[key]) for name, key, read in _readers(cast(Any, cls)) if doc.get(key) is not None})


def parsed(cls: type[T], doc: Mapping[str, Any], where: str) -> T:
    """As `from_doc`. Raises Permanent that names every damaged field, below `where`."""
    try:
        return from_doc(cls, doc)
    except _DAMAGED as exc:
        raise Permanent("the document is damaged", _damage(cls, doc, where) or {where: _said(exc)}) from exc


_DAMAGED = (ValueError, TypeError, KeyError, AttributeError)


def _damage(cls: type[Any], doc: Mapping[str, Any], where: str) -> dict[str, str]:
    found = {}
    for _, key, read in _readers(cast(Any, cls)):
        try:
            if doc.get(key) is not None:
                read(doc[key])
        except _DAMAGED as exc:
            found[f"{where}.{key}"] = _said(exc)
    return found


def _said(exc: Exception) -> str:
    return f"is damaged: {exc}"[:200]


@cache
def _names(cls: Any) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(cls))


@cache
def _readers(cls: Any) -> tuple[tuple[str, str, Any], ...]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return tuple((name, camel(name), _reader(hints[name])) for name in _names(cls))


def _reader(kind: Any) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return _reader(next(arg for arg in inner if arg is not type(None)))
    if origin is Annotated:
        return _one_of(inner[1])
    if kind is datetime:
        return parse_time
    if origin is tuple:
        return _sequence(_reader(inner[0]))
    if origin is not None:  # Mapping[str, X]
        return _mapping(_reader(inner[1]))
    if dataclasses.is_dataclass(kind):
        return lambda item: from_doc(kind, item)  # type: ignore[arg-type]  # a class, as is_dataclass just saw
    return _same if kind is Any else _exactly(kind)


def _same(value: Any) -> Any:
    return value


def _exactly(kind: type) -> Any:
    kinds = (int, float) if kind is float else (kind,)  # the API server writes 1.0 as 1

    def read(value: Any) -> Any:
        if type(value) not in kinds:  # not isinstance: true is no number
            raise ValueError(f"must be {_SPELLED[kind]}")
        return value

    return read


def _one_of(words: tuple[str, ...]) -> Any:
    def read(value: Any) -> Any:
        if value not in words:
            raise ValueError("must be one of " + ", ".join(words))
        return value

    return read


def _sequence(inner: Any) -> Any:
    def read(items: Any) -> Any:
        if not isinstance(items, list):
            raise TypeError(f"must be {_SPELLED[list]}")
        return tuple([inner(item) for item in items])

    return read


def _mapping(inner: Any) -> Any:
    def read(items: Any) -> Any:
        if not isinstance(items, Mapping):
            raise TypeError(f"must be {_SPELLED[Mapping]}")
        return {name: inner(item) for name, item in items.items()}

    return read


@cache
def camel(name: str) -> str:
    """The name of a field in documents: `evidence_ttl` is `evidenceTTL`."""
    head, *rest = name.split("_")
    return head + "".join("TTL" if part == "ttl" else part.capitalize() for part in rest)
