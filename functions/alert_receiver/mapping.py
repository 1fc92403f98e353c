"""Which alerts are ours, and what each says about which model. Pure: no clock, no environment, no network.

`load` reads the `receiver:` section of the configuration (docs/mapping.md); `apply` turns one alert into a drift
event, or says why not.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from aegis import settings
from aegis.errors import USAGE, Permanent
from aegis.events import NAME, SEVERITIES, UNKNOWN_VERSION, DriftEvent, Faults, canonical_json
from alert_receiver.alertmanager import Alert, Rejected

EVERY = frozenset({"*"})
COMMON_SEVERITIES: Mapping[str, str] = {
    **dict.fromkeys(("info", "information", "informational", "none", "notice", "low", "debug", "p4", "p5"), "info"),
    **dict.fromkeys(("warning", "warn", "medium", "moderate", "minor", "ticket", "p3"), "warning"),
    **dict.fromkeys(("critical", "crit", "error", "high", "major", "severe", "page"), "critical"),
    **dict.fromkeys(("emergency", "fatal", "p0", "p1", "p2"), "critical"),
}
MAX_PATTERN, MAX_REPEATS, MAX_OPTIONS, MAX_MATCHED = 256, 3, 4, 256
"""Python's matcher backtracks. Within these bounds the worst pattern takes some 30 ms on the worst value."""
MAX_SUMMARY, MAX_FEATURE, MAX_URL, MAX_URI, MAX_LABELS = 1024, 256, 2048, 1024, 24 * 1024
"""Characters, and for labels bytes of JSON: together an event stays well under 64 KiB however it is escaped."""
_MATCHER = re.compile(
    r'\s*(?:"((?:[^"\\]|\\.)+)"|([^\s"=!~{},]+))\s*(=~|!~|!=|=)\s*(?:"((?:[^"\\]|\\.)*)"|([^"{}]*?))\s*', re.DOTALL
)
_ESCAPES = {"\\": "\\", '"': '"', "n": "\n"}
_URI = re.compile(r"[a-z][a-z0-9+.-]{0,31}://[^\s\x00-\x20\x7f-\x9f]+", re.ASCII)
_PATH = re.compile(r"/(alertmanager(/[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)?)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Matcher:
    """One label matcher in Alertmanager's spelling. A label that is not there counts as empty."""

    label: str
    operator: str
    value: str
    regex: re.Pattern[str] | None = None

    def accepts(self, labels: Mapping[str, str]) -> bool:
        found = labels.get(self.label, "")
        if self.regex is None:
            same = found == self.value
        else:
            same = len(found) <= MAX_MATCHED and self.regex.fullmatch(found) is not None
        return same == (self.operator in ("=", "=~"))


@dataclass(frozen=True, slots=True)
class Field:
    """Where a value is looked for, in the order written: (is it an annotation, name), and what it is otherwise."""

    places: tuple[tuple[bool, str], ...]
    default: str | None = None

    def find(self, alert: Alert, fits: Callable[[str], object] = bool) -> str | None:
        """The first value that fits, or the default."""
        for annotation, name in self.places:
            value = (alert.annotations if annotation else alert.labels).get(name)
            if value and fits(value):
                return value
        return self.default


def _labels(*names: str) -> tuple[tuple[bool, str], ...]:
    return tuple((False, name) for name in names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A credential: bearer, or basic when `user` is set; where it may call and what it may speak for."""

    name: str
    file: Path
    user: str | None = None
    environments: frozenset[str] = EVERY
    paths: frozenset[str] = EVERY


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The `receiver:` section. Each field is one key of it."""

    source: str = "default"
    """Names where alerts come from; part of each event's id. Give two clusters two names."""
    alertnames: frozenset[str] = frozenset({"ModelDrift"})
    """Exact names, because `DriftDetected` and the like often mean drift of infrastructure."""
    matchers: tuple[Matcher, ...] = ()
    """All of them must accept an alert's labels."""
    min_severity: str = "info"
    """Less severe alerts are ignored. By default every alert counts: naming an alert ModelDrift is choice enough."""
    severities: Mapping[str, str] = field(default_factory=lambda: COMMON_SEVERITIES)
    """Names in use, in lower case, and what each means; these are added to the common ones."""
    severity: Field = Field(_labels("severity"), "warning")
    """Where the severity stands. What cannot be translated counts as the default."""
    model: Field = Field(_labels("model_name", "model", "model.name", "model_id"))
    """No default: an alert that names no model is rejected rather than guessed at."""
    model_version: Field = Field(_labels("model_version", "model.version"), UNKNOWN_VERSION)
    """Never `version`, which is often the service's own."""
    environment: Field = Field(_labels("environment", "env", "deployment.environment.name"), "default")
    """Never `namespace`, which the scrape adds."""
    dataset_uri: Field = Field(tuple((a, name) for a in (True, False) for name in ("dataset_uri", "dataset")))
    """A value that is no URI counts as absent: Evidently puts names there."""
    score: Field = Field(((True, "drift_score"),))
    """Shown to people; nothing is decided by it, because for some detectors low is drift."""
    feature: Field = Field(_labels("feature_name", "feature", "subcategory"))
    """Shown to people; never part of a model's identity."""
    paths: Mapping[str, frozenset[str]] = field(default_factory=lambda: {"/alertmanager": EVERY, "/": EVERY})
    """The paths that exist, and the environments that each may speak for. `/` takes CloudEvents only."""
    credentials: tuple[Caller, ...] = ()
    """Who may call. None: only callers on loopback."""


@dataclass(frozen=True, slots=True)
class Ignored:
    """Not ours. `reason` is one of alertname, matchers, severity."""

    reason: str


Mapped = DriftEvent | Ignored | Rejected


def apply(
    alert: Alert | Rejected, config: Config, environments: Collection[str], *, now: datetime, traceparent: str
) -> Mapped:
    """Map one alert, spoken by a caller that may speak for `environments` (`*`: all). `now` is when it was seen."""
    if alert.labels.get("alertname") not in config.alertnames and not _nameless(alert):
        return Ignored("alertname")
    if isinstance(alert, Rejected):
        return alert
    if not all(matcher.accepts(alert.labels) for matcher in config.matchers):
        return Ignored("matchers")
    severity = _severity(alert, config)
    if SEVERITIES.index(severity) < SEVERITIES.index(config.min_severity):
        return Ignored("severity")
    faults: Faults = {}
    model, environment = config.model.find(alert), config.environment.find(alert)
    for name, value in (("model", model), ("environment", environment)):
        if value is None:
            faults[name] = "missing: no label of the mapping names it, and there is no default"
        elif NAME.fullmatch(value) is None:
            faults[name] = f"{value[:80]!a} must match {NAME.pattern}"
    if not faults and "*" not in environments and environment not in environments:
        faults["environment"] = f"the caller may not speak for {environment}"
    dataset = config.dataset_uri.find(alert, _URI.fullmatch)
    if dataset is not None and len(dataset) > MAX_URI:
        faults["dataset_uri"] = f"longer than {MAX_URI} characters"
    if faults or model is None or environment is None:
        return Rejected(faults, {"status": "firing" if alert.firing else "resolved"}, alert.labels, alert.fingerprint)
    version = config.model_version.find(alert) or UNKNOWN_VERSION
    summary = alert.annotations.get("summary") or alert.annotations.get("description") or ""
    feature, url = config.feature.find(alert), alert.generator_url
    labels = bounded(alert.labels)
    return DriftEvent(
        firing=alert.firing,
        source="/alertmanager/" + config.source,
        environment=environment,
        model=model,
        version=version if NAME.fullmatch(version) else UNKNOWN_VERSION,
        fingerprint=alert.fingerprint,
        starts_at=alert.starts_at,
        ends_at=alert.ends_at,
        seen=now,
        severity=severity,
        dataset_uri=dataset,
        score=_score(config.score.find(alert)),
        feature=feature and feature[:MAX_FEATURE],
        summary=summary[:MAX_SUMMARY],
        generator_url=url if len(url) <= MAX_URL else "",  # half a link leads nowhere
        labels=labels,
        truncated=labels is not alert.labels
        or len(summary) > MAX_SUMMARY
        or len(url) > MAX_URL
        or len(feature or "") > MAX_FEATURE,
        traceparent=traceparent,
    )


def _nameless(alert: Alert | Rejected) -> bool:
    """Whether the fault hides the very name: then nobody can say that the alert is not ours."""
    return isinstance(alert, Rejected) and any(f in alert.faults for f in ("alert", "labels", "labels.alertname"))


def _severity(alert: Alert, config: Config) -> str:
    found = config.severities.get((config.severity.find(alert) or "").strip().lower())
    return found or config.severities.get((config.severity.default or "").lower(), "warning")


def _score(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def bounded(texts: Mapping[str, str], limit: int = MAX_LABELS) -> Mapping[str, str]:
    """The map itself if it is small; else as many of its shortest pairs as fit into `limit` bytes of JSON."""
    if sum(map(len, texts)) + sum(map(len, texts.values())) <= limit // 12:  # each character takes six bytes at most
        return texts
    kept: dict[str, str] = {}
    for name, value in sorted(texts.items(), key=lambda pair: (len(pair[0]) + len(pair[1]), pair)):
        limit -= len(canonical_json([name, value])) + 2
        if limit < 0:
            return kept
        kept[name] = value
    return texts


# --- the configuration -------------------------------------------------------------------------------------------


def load(text: str) -> Config:
    """Read a configuration file's `receiver:` section. Raises Permanent that names every fault by dotted path."""
    document = settings.read_yaml(text)
    if "receiver" not in document:
        raise Permanent("bad configuration", {"receiver": "missing"}, exit_code=USAGE)
    return section(document["receiver"])


def section(value: object, where: str = "receiver") -> Config:
    """Read an already parsed `receiver:` section (None: all defaults). Raises Permanent as `load` does."""
    faults: Faults = {}
    reader = _Reader(faults)
    found = reader.mapping(value, where, tuple(_KEYS)) if value is not None else {}
    taken = {key: _KEYS[key](reader, part, f"{where}.{key}") for key, part in found.items() if key in _KEYS}
    if not faults:
        paths = taken.get("paths", Config().paths)
        for caller in taken.get("credentials", ()):
            for path in sorted(caller.paths - EVERY - set(paths)):
                faults[f"{where}.credentials.{caller.name}.paths"] = f"{path} is none of {where}.paths"
    if faults:
        raise Permanent("bad configuration", faults, exit_code=USAGE)
    return Config(**taken)


class _Reader:
    """Takes a parsed document apart and notes what is wrong. After a fault the values returned mean nothing."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults

    def mapping(self, value: object, where: str, keys: Sequence[str] = ()) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            self.faults[where] = "must be a mapping"
            return {}
        for key in value:
            if keys and key not in keys:
                self.faults[f"{where}.{key}"] = "unknown; there are " + ", ".join(keys)
        return value

    def text(self, value: object, where: str) -> str:
        if not isinstance(value, str) or not value:
            self.faults[where] = "must be text (quote numbers, yes and no)"
            return ""
        return value

    def name(self, value: object, where: str) -> str:
        text = self.text(value, where)
        if text and NAME.fullmatch(text) is None:
            self.faults[where] = f"must match {NAME.pattern}"
        return text

    def texts(self, value: object, where: str) -> list[str]:
        if not isinstance(value, list) or not value:
            self.faults[where] = "must be a list that is not empty"
            return []
        return [self.text(part, f"{where}[{index}]") for index, part in enumerate(value)]

    def alertnames(self, value: object, where: str) -> frozenset[str]:
        return frozenset(self.texts(value, where))

    def environments(self, value: object, where: str) -> frozenset[str]:
        found = self.texts(value, where)
        for index, text in enumerate(found):
            if text and text != "*" and NAME.fullmatch(text) is None:
                self.faults[f"{where}[{index}]"] = f"must be * or match {NAME.pattern}"
        return frozenset(found)

    def severity(self, value: object, where: str) -> str:
        if value not in SEVERITIES:
            self.faults[where] = "must be one of " + ", ".join(SEVERITIES)
        return str(value)

    def severities(self, value: object, where: str) -> Mapping[str, str]:
        found = self.mapping(value, where)
        own = {str(name).lower(): self.severity(meaning, f"{where}.{name}") for name, meaning in found.items()}
        return {**COMMON_SEVERITIES, **own}

    def matchers(self, value: object, where: str) -> tuple[Matcher, ...]:
        found = []
        for index, text in enumerate(self.texts(value, where)):
            try:
                found.append(parse_matcher(text))
            except ValueError as exc:
                self.faults.setdefault(f"{where}[{index}]", str(exc))
        return tuple(found)

    def field(self, value: object, where: str) -> Field:
        """Where a value stands that some alerts lack; nothing can stand in for it."""
        return self._field(value, where, ("labels", "annotations"))

    def _field(self, value: object, where: str, keys: Sequence[str] = ("labels", "annotations", "default")) -> Field:
        found = self.mapping(value, where, keys)
        usual: Field = getattr(Config(), where.rpartition(".")[2])
        places = [
            (kind == "annotations", name)
            for kind, names in found.items()
            if kind in ("labels", "annotations")
            for name in self.texts(names, f"{where}.{kind}")
        ]
        default = found.get("default", usual.default)
        if default is not None:
            default = self.text(default, f"{where}.default")
        return Field(tuple(places) or usual.places, default)

    def named(self, value: object, where: str) -> Field:
        """A field that ends up in an event's identity: its default must be usable."""
        found = self._field(value, where)
        if found.default:
            self.name(found.default, f"{where}.default")
        return found

    def translated(self, value: object, where: str) -> Field:
        found = self._field(value, where)
        if found.default is not None:
            self.severity(found.default, f"{where}.default")
        return found

    def paths(self, value: object, where: str) -> Mapping[str, frozenset[str]]:
        found = self.mapping(value, where)
        if not found:
            self.faults.setdefault(where, "must name at least one path")
        for path in found:
            if _PATH.fullmatch(path) is None:
                self.faults[f"{where}.{path}"] = "must be /, /alertmanager or /alertmanager/<name>"
        return {
            path: self.environments(
                self.mapping(part, f"{where}.{path}", ("environments",)).get("environments", ["*"]),
                f"{where}.{path}.environments",
            )
            for path, part in found.items()
        }

    def credentials(self, value: object, where: str) -> tuple[Caller, ...]:
        if not isinstance(value, list):
            self.faults[where] = "must be a list"
            return ()
        callers = [self.caller(part, f"{where}[{index}]") for index, part in enumerate(value)]
        if len({caller.name for caller in callers}) < len(callers):
            self.faults[where] = "each needs a name of its own"
        return tuple(callers)

    def caller(self, value: object, where: str) -> Caller:
        keys = ("name", "bearer_file", "user", "password_file", "environments", "paths")
        found = self.mapping(value, where, keys)
        basic = "user" in found or "password_file" in found
        if basic == ("bearer_file" in found):
            self.faults[where] = "needs either bearer_file, or user and password_file"
        user = self.text(found.get("user"), f"{where}.user") if basic else None
        if ":" in (user or ""):
            self.faults[f"{where}.user"] = "a user's name has no colon in basic authentication"
        file = "password_file" if basic else "bearer_file"
        return Caller(
            name=self.name(found.get("name"), f"{where}.name"),
            file=Path(self.text(found.get(file), f"{where}.{file}")),
            user=user,
            environments=self.environments(found.get("environments", ["*"]), f"{where}.environments"),
            paths=frozenset(self.texts(found.get("paths", ["*"]), f"{where}.paths")),
        )


_KEYS: Mapping[str, Callable[[_Reader, object, str], Any]] = {
    "source": _Reader.name,
    "alertnames": _Reader.alertnames,
    "matchers": _Reader.matchers,
    "min_severity": _Reader.severity,
    "severities": _Reader.severities,
    "severity": _Reader.translated,
    "model": _Reader.named,
    "model_version": _Reader.named,
    "environment": _Reader.named,
    "dataset_uri": _Reader.field,
    "score": _Reader.field,
    "feature": _Reader.field,
    "paths": _Reader.paths,
    "credentials": _Reader.credentials,
}


def parse_matcher(text: str) -> Matcher:
    """Read `name="value"`, with = != =~ !~ and Alertmanager's quoting. Raises ValueError."""
    found = _MATCHER.fullmatch(text)
    if found is None:
        raise ValueError('must be a matcher such as team="ml" or severity=~"warning|critical"')
    quoted_name, plain_name, operator, quoted, plain = found.groups()
    label = plain_name if quoted_name is None else _unescape(quoted_name)
    value = plain if quoted is None else _unescape(quoted)
    return Matcher(label, operator, value, _regex(value) if "~" in operator else None)


def _unescape(text: str) -> str:
    def one(found: re.Match[str]) -> str:
        if found[1] not in _ESCAPES:
            raise ValueError(f'\\{found[1]} is no escape; there are \\\\ \\" and \\n')
        return _ESCAPES[found[1]]

    return re.sub(r"\\(.)", one, text, flags=re.DOTALL)


def _regex(pattern: str) -> re.Pattern[str]:
    """Compile the part of RE2 that means the same in Python and cannot run away."""
    bare = re.sub(r"\[\^?\]?[^\]]*\]", "x", re.sub(r"\\.", "x", pattern, flags=re.DOTALL))
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"a pattern may have {MAX_PATTERN} characters")
    if re.search(r"\\[1-9pPCQzZkgGAXR]|\[\[:|\(\?(?!:)", pattern):
        raise ValueError(r"of (? only (?: is known, and neither \1, \p, \A, \z, \Q nor [[: is")
    if re.search(r"\)[*+{]|[*+}]\+", bare):
        raise ValueError("a group may not be repeated, nor a repetition: write the alternatives out")
    branches = [bare] if "(" in bare else bare.split("|")
    if max(len(re.findall(r"[*+{]", branch)) for branch in branches) > MAX_REPEATS:
        raise ValueError(f"more than {MAX_REPEATS} repetitions could take very long: make it simpler")
    if bare.count("?") > MAX_OPTIONS:
        raise ValueError(f"more than {MAX_OPTIONS} question marks could take very long: make it simpler")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)
            return re.compile(pattern, re.ASCII)
    except (re.error, FutureWarning, OverflowError, RecursionError) as exc:
        raise ValueError(f"not a regular expression: {exc}") from exc
