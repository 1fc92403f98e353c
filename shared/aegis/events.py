"""Drift events and the CloudEvents that carry them. Pure: no clock, no environment, no network.

One wrapper around the CloudEvents SDK, which reads them. SDK 1.12 neither percent-encodes header values nor refuses
empty attributes, puts its own clock where an event has no time, and takes seven times as long to write binary headers:
so they are written here, and tests compare both.
Data is always canonical JSON, so that a seal survives a broker that turns binary mode into structured.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, unquote

try:
    from cloudevents.conversion import from_http
    from cloudevents.exceptions import GenericException
    from cloudevents.http import CloudEvent as SdkEvent
except ImportError:  # SDK 2, which func-python needs, keeps the same code under another name
    from cloudevents.v1.conversion import from_http  # type: ignore[import-not-found,no-redef]
    from cloudevents.v1.exceptions import GenericException  # type: ignore[import-not-found,no-redef]
    from cloudevents.v1.http import CloudEvent as SdkEvent  # type: ignore[import-not-found,no-redef]

from aegis.errors import Permanent
from aegis.names import NAME as NAME
from aegis.strict import MAX_DEPTH as MAX_DEPTH
from aegis.strict import strict_json as strict_json

DETECTED = "dev.aegis.drift.detected.v1"
RESOLVED = "dev.aegis.drift.resolved.v1"
REJECTED = "dev.aegis.alert.rejected.v1"
DECIDED = "dev.aegis.retrain.decided.v1"
SUBMITTED = "dev.aegis.retrain.submitted.v1"
FINISHED = "dev.aegis.retrain.finished.v1"

UNKNOWN_VERSION = "unknown"
SEVERITIES = ("info", "warning", "critical")
"""In rising order. The alert mapping translates what people write into one of these."""
FINGERPRINT = re.compile(r"[0-9a-f]{16}")
CORE = frozenset(
    ["type", "source", "id", "subject", "time", "specversion", "datacontenttype", "dataschema", "data", "data_base64"]
)
"""Attributes that the specification names, and the data; all else are extensions."""
OWN = frozenset(["severity", "traceparent", "seal"])
"""Extensions of a drift event."""
TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d)(?:\.(\d{1,12}))?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
EXTENSION = re.compile(r"[a-z0-9]{1,20}")
_PLAIN_HEADER = re.compile(r"[!#$&-~]*")  # printable ASCII without space, quote and percent
_HEADER_SAFE = "".join(chr(c) for c in range(0x21, 0x7F) if chr(c) not in '"%')
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Faults = dict[str, str]


class Malformed(Permanent):
    """Not a CloudEvent, or not one of ours: HTTP 400."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudEvent:
    """A CloudEvents 1.0 event. `data` is JSON bytes, `time` is UTC."""

    type: str
    source: str
    id: str
    subject: str = ""
    time: datetime | None = None
    data: bytes = b""
    extensions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftEvent:
    """One alert about one model, normalized.

    `seen` is when the receiver saw it: a repeat is fresh evidence, an old redelivery is not. Times are UTC with
    millisecond precision. `ends_at` is set only when the alert is resolved.
    """

    firing: bool
    source: str
    environment: str
    model: str
    version: str
    fingerprint: str
    starts_at: datetime
    seen: datetime
    ends_at: datetime | None = None
    severity: str = "warning"
    dataset_uri: str | None = None
    score: float | None = None
    feature: str | None = None
    summary: str = ""
    generator_url: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    truncated: bool = False
    traceparent: str | None = None

    @property
    def id(self) -> str:
        """The transport key: a redelivery and a repeat have the same one."""
        return event_id(self.source, self.fingerprint, self.starts_at, firing=self.firing)


def event_id(source: str, fingerprint: str, starts_at: datetime, *, firing: bool) -> str:
    """Hash what names one alert's state; 32 hex characters."""
    text = f"{source}\n{fingerprint}\n{to_ms(starts_at)}\n{'firing' if firing else 'resolved'}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def to_ms(moment: datetime) -> int:
    """Milliseconds since 1970 in UTC, rounded down."""
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def rfc3339(moment: datetime) -> str:
    """Spell a UTC time with milliseconds and Z."""
    moment = moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    return moment.isoformat(timespec="milliseconds")[:-6] + "Z"


def parse_time(text: str) -> datetime:
    """Read RFC 3339 into UTC, cut to milliseconds. Raises ValueError, also for years that have no UTC form."""
    found = _RFC3339.fullmatch(text)
    if found is None:
        raise ValueError("not an RFC 3339 time")
    seconds, fraction, zone = found.groups()
    millis = (fraction or "0")[:3].ljust(3, "0")
    try:
        return datetime.fromisoformat(f"{seconds}.{millis}{zone.upper()}".upper()).astimezone(UTC)
    except OverflowError as exc:  # year 1 with an offset
        raise ValueError("out of range") from exc


def canonical_json(value: Any) -> bytes:
    """The one spelling of JSON that Aegis emits and seals: sorted keys, no spaces, UTF-8."""
    return _CANONICAL.encode(value).encode()


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


# --- CloudEvents over HTTP ---------------------------------------------------------------------------------------


def encode(event: CloudEvent, *, structured: bool = False) -> tuple[dict[str, str], bytes]:
    """Return HTTP headers and body. Raises Malformed for an empty attribute."""
    attributes = {"type": event.type, "source": event.source, "id": event.id}
    if not all(attributes.values()):
        raise Malformed("an event needs type, source and id")
    if event.subject:
        attributes["subject"] = event.subject
    if event.time is not None:
        attributes["time"] = rfc3339(event.time)
    if event.data:
        attributes["datacontenttype"] = "application/json"
    attributes.update(event.extensions)
    if structured:
        data = {"data": json.loads(event.data)} if event.data else {}
        return {"content-type": "application/cloudevents+json"}, canonical_json(
            {**attributes, **data, "specversion": "1.0"}
        )
    headers = {"content-type": "application/json"} if attributes.pop("datacontenttype", None) else {}
    headers["ce-specversion"] = "1.0"
    plain = _PLAIN_HEADER.fullmatch("".join(attributes.values())) is not None
    for name, value in attributes.items():
        headers["ce-" + name] = value if plain else quote(value, safe=_HEADER_SAFE)
    return headers, event.data


_STRUCTURED = ("application/cloudevents+json", "application/json", "")
"""Content types of an event that is all body. Not text/plain and its like, which any web page may send anywhere; none
at all, because brokers forward an event so that came without datacontenttype."""


def decode(headers: Mapping[str, str], body: bytes) -> CloudEvent:
    """Read one event in binary or structured mode. `headers` are lower-case. Raises Malformed, naming every fault."""
    media = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media == "application/cloudevents-batch+json":
        raise Malformed("batches are not accepted: send one event a request")
    binary = "ce-specversion" in headers
    if binary:
        try:
            ce = {k: unquote(v, errors="strict") if "%" in v else v for k, v in _ce_headers(headers)}
        except UnicodeDecodeError as exc:
            raise Malformed("a ce-* header is not UTF-8, percent-encoded") from exc
        attributes: Mapping[str, Any] = {k[3:]: v for k, v in ce.items()}
        ce["content-type"] = media or "application/json"
    elif media not in _STRUCTURED:
        raise Malformed("not a CloudEvent: no ce-* headers, and the content type is not application/cloudevents+json")
    else:
        try:
            parsed = strict_json(body)
        except ValueError as exc:
            raise Malformed(f"the body {exc}") from exc
        if not isinstance(parsed, dict):
            raise Malformed("the body is not a CloudEvent: no ce-* headers and no JSON object")
        attributes, ce = parsed, {"content-type": "application/cloudevents+json"}
    faults = _attribute_faults(attributes)
    if binary and body and not _is_json(media):
        faults["datacontenttype"] = "must be JSON"
    if faults:
        raise Malformed("not a CloudEvents 1.0 event", faults)
    try:
        from_http(SdkEvent, ce, body, data_unmarshaller=_as_is)
    except (GenericException, ValueError, TypeError, AttributeError) as exc:
        raise Malformed(f"not a CloudEvents 1.0 event: {type(exc).__name__}") from exc
    time = attributes.get("time")
    data = body if binary else b"" if parsed.get("data") is None else canonical_json(parsed["data"])
    return CloudEvent(
        type=attributes["type"],
        source=attributes["source"],
        id=attributes["id"],
        subject=attributes.get("subject") or "",
        time=parse_time(time) if time else None,
        data=data,
        extensions={k: str(v) for k, v in attributes.items() if k not in CORE},
    )


def _ce_headers(headers: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    return ((k, v) for k, v in headers.items() if k.startswith("ce-"))


def _attribute_faults(attributes: Mapping[str, Any]) -> Faults:
    faults: Faults = {}
    if attributes.get("specversion") != "1.0":
        faults["specversion"] = "must be 1.0"
    for name in ("type", "source", "id"):
        value = attributes.get(name)
        if not isinstance(value, str) or not value:
            faults[name] = "missing"
        elif len(value) > 1024:
            faults[name] = "longer than 1024 characters"
    if not isinstance(attributes.get("subject") or "", str):
        faults["subject"] = "must be text"
    time = attributes.get("time")
    if time:
        try:
            parse_time(time)
        except (ValueError, TypeError):
            faults["time"] = "not an RFC 3339 time"
    if "data_base64" in attributes:
        faults["data_base64"] = "must be JSON data"
    content = attributes.get("datacontenttype")
    if content and not (isinstance(content, str) and _is_json(content.partition(";")[0].strip().lower())):
        faults["datacontenttype"] = "must be JSON"
    for name, value in attributes.items():
        if name not in CORE and not isinstance(value, str | bool | int):
            faults[name[:40]] = "must be text, a whole number or a boolean"
        if name != "data_base64" and EXTENSION.fullmatch(name) is None:
            faults[name[:40]] = "attribute names are lower-case letters and digits"
    return faults


def _is_json(media: str) -> bool:
    return media in ("", "application/json", "text/json") or media.endswith("+json")


def _as_is(data: Any) -> Any:
    return data


# --- the seal ----------------------------------------------------------------------------------------------------


def seal(event: CloudEvent, key: bytes) -> str:
    """HMAC-SHA256 over type, source, id, subject, time in UTC ms and the data bytes; hex.

    The Broker drops Authorization headers and rewrites the text of times; without a seal any pod could order a
    training.
    """
    time = "" if event.time is None else str(to_ms(event.time))
    texts = (event.type, event.source, event.id, event.subject, time)
    parts = [part.encode() for part in texts] + [event.data]
    # Each part is preceded by its length, so that no two events share one text.
    text = b"".join([len(part).to_bytes(4, "big") + part for part in parts])
    return hmac.digest(key, text, "sha256").hex()


def sealed(event: CloudEvent, keys: Sequence[bytes]) -> bool:
    """Whether the event carries a seal made with one of the keys (two are valid during a rotation)."""
    given = event.extensions.get("seal", "").encode()
    # Every key is tried, so that the time tells nothing about which one fitted.
    return any([hmac.compare_digest(seal(event, key).encode(), given) for key in keys])  # noqa: C419  # a generator would stop early


# --- drift events ------------------------------------------------------------------------------------------------


def to_cloudevent(drift: DriftEvent, key: bytes | None = None) -> CloudEvent:
    """Spell a drift event as a CloudEvent, sealed when there is a key."""
    data: dict[str, Any] = {
        "model": drift.model,
        "model_version": drift.version,
        "environment": drift.environment,
        "severity": drift.severity,
        "fingerprint": drift.fingerprint,
        "starts_at": rfc3339(drift.starts_at),
        "ends_at": None if drift.ends_at is None else rfc3339(drift.ends_at),
        "dataset_uri": drift.dataset_uri,
        "score": drift.score,
        "feature": drift.feature,
        "summary": drift.summary,
        "generator_url": drift.generator_url,
        "labels": dict(drift.labels),
        "truncated": drift.truncated,
    }
    extensions = {"severity": drift.severity}
    if drift.traceparent:
        extensions["traceparent"] = drift.traceparent
    event = CloudEvent(
        type=DETECTED if drift.firing else RESOLVED,
        source=drift.source,
        id=drift.id,
        subject=f"{drift.environment}/{drift.model}/{drift.version}",
        time=drift.seen,
        data=canonical_json(data),
        extensions=extensions,
    )
    if key is not None:
        extensions["seal"] = seal(event, key)
    return event


def from_cloudevent(event: CloudEvent) -> DriftEvent:
    """Read a drift event back. Raises Malformed, naming every fault by field."""
    faults: Faults = {}
    if event.type not in (DETECTED, RESOLVED):
        raise Malformed("not a drift event", {"type": event.type[:100]})
    try:
        data = strict_json(event.data)
    except ValueError as exc:
        raise Malformed("not a drift event", {"data": str(exc)}) from exc
    if not isinstance(data, dict):
        raise Malformed("not a drift event", {"data": "must be a JSON object"})
    firing = event.type == DETECTED
    if event.time is None:
        faults["time"] = "missing"

    def text(name: str, default: str | None = "") -> str | None:
        value = data.get(name)
        if value is not None and not isinstance(value, str):
            faults[name] = "must be text"
            return default
        return default if value is None else value

    def moment(name: str) -> datetime | None:
        value = text(name, None)
        try:
            return None if value is None else parse_time(value)
        except ValueError as exc:
            faults[name] = str(exc)
            return None

    names = {name: text(name) or "" for name in ("environment", "model", "model_version")}
    for name, value in names.items():
        if NAME.fullmatch(value) is None:
            faults[name] = "must match " + NAME.pattern
    if event.subject and event.subject != "/".join(names.values()):
        faults["subject"] = "is not <environment>/<model>/<version> of the data"
    fingerprint = text("fingerprint") or ""
    if FINGERPRINT.fullmatch(fingerprint) is None:
        faults["fingerprint"] = "must be 16 hex digits"
    severity = text("severity", "warning") or "warning"
    if severity not in SEVERITIES:
        faults["severity"] = "must be one of " + ", ".join(SEVERITIES)
    starts_at, ends_at = moment("starts_at"), moment("ends_at")
    if starts_at is None:
        faults.setdefault("starts_at", "missing")
    if not firing and ends_at is None:
        faults.setdefault("ends_at", "missing, but the alert is resolved")
    if starts_at and ends_at and ends_at < starts_at:
        faults["ends_at"] = "before starts_at"
    texts = {name: text(name) for name in ("summary", "generator_url")}
    optional = {name: text(name, None) for name in ("dataset_uri", "feature")}
    score = data.get("score")
    if isinstance(score, bool) or not isinstance(score, int | float | None):
        faults["score"] = "must be a number"
    elif isinstance(score, int) and abs(score) > sys.float_info.max:  # a whole number in JSON has no end
        faults["score"] = "out of range"
    labels = data.get("labels") or {}
    if not isinstance(labels, dict) or not all(isinstance(v, str) for v in labels.values()):
        faults["labels"] = "must map names to text"
    if faults or starts_at is None or event.time is None:
        raise Malformed("not a drift event", faults)
    traceparent = event.extensions.get("traceparent", "")
    return DriftEvent(
        firing=firing,
        source=event.source,
        environment=names["environment"],
        model=names["model"],
        version=names["model_version"],
        fingerprint=fingerprint,
        starts_at=starts_at,
        ends_at=None if firing else ends_at,
        seen=event.time,
        severity=severity,
        dataset_uri=optional["dataset_uri"],
        score=None if score is None else float(score),
        feature=optional["feature"],
        summary=texts["summary"] or "",
        generator_url=texts["generator_url"] or "",
        labels=labels,
        truncated=data.get("truncated") is True,
        traceparent=traceparent if TRACEPARENT.fullmatch(traceparent) else None,
    )
