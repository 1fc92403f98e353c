"""Alertmanager's webhook payload, version "4", as values. Pure: no clock, no environment, no network.

The envelope is read strictly, because what is wrong with it is wrong for every alert in it. A fault of one alert
rejects that alert alone: refusing the whole batch would keep its good alerts out, again each group_interval.
`common*` and `group*` are never used: each alert has its own status and labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from aegis.errors import Permanent
from aegis.events import Faults, parse_time, strict_json

MAX_AHEAD = timedelta(hours=24)
"""An alert that begins later than this from now has a broken clock behind it, and would count as fresh for days."""
CACHEABLE = 1024
"""Bytes of labels whose fingerprint is remembered (4 MiB in all). A group comes again and again with the same alerts,
and a byte at a time is the slowest thing done to an alert."""
_ZERO_TIME = "0001-01-01T00:00:00Z"
_FNV_OFFSET, _FNV_PRIME, _U64 = 0xCBF29CE484222325, 0x100000001B3, 0xFFFFFFFFFFFFFFFF
_TEXTS = ("receiver", "status", "externalURL", "groupKey")
_MAPS = ("groupLabels", "commonLabels", "commonAnnotations")


class BadEnvelope(Permanent):
    """The payload as a whole is not Alertmanager's: HTTP 400."""


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert. Times are UTC with milliseconds; `ends_at` is set only when it is resolved.

    `recomputed` says why the fingerprint is not the sender's: `absent` or `wrong`.
    """

    firing: bool
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    starts_at: datetime
    ends_at: datetime | None
    generator_url: str
    fingerprint: str
    recomputed: str | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """An alert that cannot be used, with every fault by field, and what could be read of it."""

    faults: Mapping[str, str]
    raw: Any
    labels: Mapping[str, str]
    fingerprint: str

    @property
    def status(self) -> str:
        return str(self.raw.get("status", ""))[:64] if isinstance(self.raw, dict) else ""


@dataclass(frozen=True, slots=True)
class Envelope:
    """One delivery. `truncated` counts the alerts that the sender's `max_alerts` cut off and never delivers."""

    alerts: tuple[Alert | Rejected, ...]
    truncated: int = 0


def read(body: bytes, *, now: datetime) -> Envelope:
    """Read a payload, alerts ordered by startsAt. Raises BadEnvelope, naming every fault."""
    try:
        payload = strict_json(body)
    except ValueError as exc:
        raise BadEnvelope(f"the payload {exc}") from exc
    if not isinstance(payload, dict):
        raise BadEnvelope("the payload must be a JSON object")
    faults: Faults = {}
    version, alerts, truncated = payload.get("version"), payload.get("alerts"), payload.get("truncatedAlerts")
    if version is None:
        faults["version"] = 'missing; must be "4"'
    elif version != "4":
        faults["version"] = f'must be the text "4", not {str(version)[:20]!r} ({type(version).__name__})'
    if alerts is None:
        faults["alerts"] = "missing"
    elif not isinstance(alerts, list):
        faults["alerts"] = "must be an array"
    if truncated is not None and (type(truncated) is not int or not 0 <= truncated < 2**63):
        faults["truncatedAlerts"] = "must be a whole number of at most 63 bits"
    faults |= {name: "must be text" for name in _TEXTS if not isinstance(payload.get(name) or "", str)}
    faults |= {name: "must be an object" for name in _MAPS if not isinstance(payload.get(name) or {}, dict)}
    if faults or not isinstance(alerts, list):
        raise BadEnvelope("not an Alertmanager webhook payload", faults)
    found = [_alert(raw, now) for raw in alerts]
    if len(found) > 1:
        found.sort(key=_order)
    return Envelope(tuple(found), truncated or 0)


def fingerprint(labels: Mapping[str, str]) -> str:
    """Alertmanager's own: FNV-1a-64 over the sorted labels as `name 0xff value 0xff`; 16 hex digits."""
    text = b"".join([name.encode() + b"\xff" + labels[name].encode() + b"\xff" for name in sorted(labels)])
    return _remembered(text) if len(text) <= CACHEABLE else _fnv(text)


def _fnv(text: bytes) -> str:
    value = _FNV_OFFSET
    for byte in text:
        value = ((value ^ byte) * _FNV_PRIME) & _U64
    return f"{value:016x}"


_remembered = lru_cache(maxsize=4096)(_fnv)


def _order(alert: Alert | Rejected) -> tuple[bool, float, bool]:
    """The same alert may come firing and resolved in one batch: what began first goes first, firing before its end."""
    if isinstance(alert, Rejected):
        return True, 0.0, False
    return False, alert.starts_at.timestamp(), not alert.firing


def _alert(raw: Any, now: datetime) -> Alert | Rejected:
    if not isinstance(raw, dict):
        return Rejected({"alert": "must be an object"}, raw, {}, "")
    faults: Faults = {}
    labels = _texts(raw, "labels", faults)
    annotations = _texts(raw, "annotations", faults)
    status = raw.get("status")
    if status not in ("firing", "resolved"):
        faults["status"] = "must be firing or resolved"
    starts_at, ends_at = _moment(raw, "startsAt", faults), _moment(raw, "endsAt", faults)
    if starts_at is None:
        faults.setdefault("startsAt", "missing")
    elif starts_at - now > MAX_AHEAD:
        faults["startsAt"] = "more than 24 h ahead"
    elif ends_at is not None and ends_at < starts_at:
        faults["endsAt"] = "before startsAt"
    url = raw.get("generatorURL") or ""
    if not isinstance(url, str):
        faults["generatorURL"] = "must be text"
    given, own = raw.get("fingerprint"), fingerprint(labels)
    if given is not None and not isinstance(given, str):
        faults["fingerprint"] = "must be text"
    if faults or starts_at is None:
        return Rejected(faults, raw, labels, own)
    if status == "firing":
        ends_at = None
    elif ends_at is None:  # made by hand: it ended, and now is when we know of it
        ends_at = max(now, starts_at)
    recomputed = None if given == own else "wrong" if given else "absent"
    return Alert(status == "firing", labels, annotations, starts_at, ends_at, url, own, recomputed)


def _texts(raw: Mapping[str, Any], field: str, faults: Faults) -> dict[str, str]:
    """The text map without its empty values, which Alertmanager drops too. Nothing is coerced."""
    found = raw.get(field)
    if found is None:
        return {}
    if not isinstance(found, dict):
        faults[field] = "must be an object"
        return {}
    texts = {name: value for name, value in found.items() if value.__class__ is str and value}
    if len(texts) != len(found):
        wrong = [name for name, value in found.items() if not isinstance(value, str)]
        faults |= {f"{field}.{name[:64]}": "must be text" for name in wrong}
    return texts


def _moment(raw: Mapping[str, Any], field: str, faults: Faults) -> datetime | None:
    """A time; None where it is absent. Year 1 is Go's way to leave a time out."""
    text = raw.get(field)
    if text is None or text == "" or text == _ZERO_TIME:
        return None
    if not isinstance(text, str):
        faults[field] = "must be text"
        return None
    try:
        moment = parse_time(text)
    except ValueError as exc:
        if not text.startswith("0001-01-01T"):  # with an offset it may lie before the first year
            faults[field] = str(exc)
        return None
    return moment if moment.year > 1 else None
