"""What the receiver is told by its environment. Read once; every fault is named at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from aegis import settings
from aegis.errors import USAGE, Permanent
from aegis.events import CORE, EXTENSION, OWN, Faults


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """What Knative's SinkBinding sets; by hand only `K_SINK` is needed."""

    sink: str
    """Where drift events go, the Broker's URL. No default: a receiver without a sink could only lose alerts."""
    ce_overrides: str = ""
    """Extensions to add to each event, as JSON `{"extensions": {...}}`. SinkBinding sets it even when empty."""
    ca_certs: str = ""
    """Certificates (PEM) to trust for an https sink besides the system's; the Broker's own are often private."""

    def __post_init__(self) -> None:
        faults: Faults = {}
        url = urlsplit(self.sink)
        if url.scheme not in ("http", "https") or not url.hostname:
            faults["K_SINK"] = "must be an http or https URL"
        try:
            self.extensions()
        except ValueError as exc:
            faults["K_CE_OVERRIDES"] = str(exc)
        if faults:
            raise Permanent("bad settings", faults, exit_code=USAGE)

    def extensions(self) -> dict[str, str]:
        """The extensions to add. Raises ValueError."""
        if not self.ce_overrides.strip():
            return {}
        parsed = json.loads(self.ce_overrides)
        found = parsed.get("extensions") if isinstance(parsed, dict) else parsed
        if found is None:
            return {}
        if not isinstance(found, dict):
            raise ValueError("must be a JSON object with extensions")  # noqa: TRY004  # bad text, not a bad argument
        if not all(EXTENSION.fullmatch(name) and isinstance(value, str) for name, value in found.items()):
            raise ValueError("extensions need names of lower-case letters and digits, and text values")
        if taken := sorted(found.keys() & (CORE | OWN)):
            # They are added after the sealing: the event would be another one than the seal says.
            raise ValueError(f"may not replace {', '.join(taken)}")
        return found

    @property
    def loopback(self) -> bool:
        host = urlsplit(self.sink).hostname or ""
        try:
            return host == "localhost" or ip_address(host).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The receiver's own settings, each as `AEGIS_<NAME>`."""

    config: Path | None = None
    """The YAML file with the `receiver:` section (docs/mapping.md). Without one the default mapping holds."""
    seal_key_file: Path | None = None
    """The key that seals events. Needed unless the sink is on loopback: a Broker drops Authorization headers, and
    without a seal any pod could order a training."""
    sink_token_file: Path | None = None
    """A bearer token for the sink, read again when it changes. Most Brokers need none; with OIDC: /oidc/token."""
    sink_concurrency: int = 16
    """Events in flight to the sink at once, of all requests together. 200 events at 3 ms each take 50 ms; more
    would press on a Broker that answers only after its triggers have."""
    sink_timeout: timedelta = timedelta(seconds=5)
    """For one event. An in-memory Broker answers after its triggers have, and those may wait for an API server."""
    deadline: timedelta = timedelta(seconds=8)
    """For one delivery. Alertmanager gives an attempt at least 10 s; an answer after it has left is work twice."""
    body_limit: int = 4 * 1024 * 1024
    """Bytes. 1,000 alerts are 512 KB; more than eight times that is no alert group any more."""
    max_in_flight: int = 64
    """Deliveries at once; one more gets a 503 and comes again half a second later. Bounds the memory held."""
    log_level: str = "info"
    """What is logged: a line for each delivery with a rejected alert, and failures of the sink."""

    def __post_init__(self) -> None:
        faults: Faults = {}
        for name in ("sink_concurrency", "body_limit", "max_in_flight"):
            if getattr(self, name) < 1:
                faults["AEGIS_" + name.upper()] = "must be at least 1"
        for name in ("sink_timeout", "deadline"):
            if not timedelta(0) < getattr(self, name) < timedelta(seconds=10):
                faults["AEGIS_" + name.upper()] = "must lie between 0s and 10s, the time of Alertmanager's attempt"
        if self.log_level.lower() not in ("debug", "info", "warning", "error"):
            faults["AEGIS_LOG_LEVEL"] = "must be debug, info, warning or error"
        if faults:
            raise Permanent("bad settings", faults, exit_code=USAGE)


@dataclass(frozen=True, slots=True)
class Environment:
    """Everything read from the environment."""

    binding: Binding
    settings: Settings
    extensions: Mapping[str, str] = field(default_factory=dict)
    behind_proxy: bool = False
    """Whether Knative's queue-proxy stands in front: every caller then seems to come from loopback."""


def from_env(env: Mapping[str, str]) -> Environment:
    """Read everything. Raises Permanent that names every fault."""
    faults: Faults = {}
    binding = own = None
    try:
        binding = settings.load(Binding, env, prefix="K_")
    except Permanent as exc:
        faults |= exc.faults
    try:
        own = settings.load(Settings, env)
    except Permanent as exc:
        faults |= exc.faults
    if binding and own and own.seal_key_file is None and not binding.loopback:
        faults["AEGIS_SEAL_KEY_FILE"] = "missing; only events to a sink on loopback go without a seal"
    if faults or binding is None or own is None:
        raise Permanent("bad settings", faults, exit_code=USAGE)
    return Environment(binding, own, binding.extensions(), bool(env.get("K_SERVICE")))
