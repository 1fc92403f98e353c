"""The one file that configures `aegis up`: alert mapping, limits, owners' policies, ports. Every fault at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aegis import datasets
from aegis.datasets import prefix_fault
from aegis.errors import USAGE, Permanent
from aegis.events import NAME
from aegis.settings import duration, read_yaml
from alert_receiver import mapping
from retrain_trigger.model import policy_from
from train_model.attempt import read_settings

PORTS = {"receiver": 12000, "trigger": 12001, "mlflow": 12002}
STAGING = "s3://my-staging-bucket/"
"""The example bucket of the documentation, so that its curl command works as it stands."""
DEFAULT_MODEL = {"labels": ["model_name", "model", "model.name", "model_id"], "default": "default"}
"""About half of the drift alerts in public rules name no model; on one machine they mean the one at hand."""
_TRIGGER = {"datasetPrefixes": list, "budget": int, "createUnknown": bool, "maxModels": int, "runDeadline": str}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A checked configuration; each field is one key of the file."""

    receiver: Mapping[str, Any] = field(default_factory=lambda: {"model": DEFAULT_MODEL})
    """The alert mapping (docs/mapping.md)."""
    trigger: Mapping[str, Any] = field(default_factory=dict)
    """`datasetPrefixes`, `budget`, `createUnknown`, `maxModels`, `runDeadline`."""
    models: tuple[Mapping[str, Any], ...] = ()
    """Owners' policies: `environment` and `model`, and the `spec` fields of docs/policy.md."""
    ports: Mapping[str, int] = field(default_factory=lambda: dict(PORTS))
    """`receiver`, `trigger` and `mlflow`, on loopback."""
    reconcile_interval: str = "30s"
    """How often waiting work is looked at, besides at the end of each Workflow."""
    allow_pickle: bool = False
    """Whether a retrain's model may hold files that run code when loaded (pickle and its relatives). A trainer of your
    own may need it; whoever can write such a file then runs code wherever the model is loaded."""

    def prefixes(self, state: Path) -> list[str]:
        """Where data may come from."""
        given = self.trigger.get("datasetPrefixes")
        return list(given) if given is not None else _default_prefixes(state)


def _default_prefixes(state: Path) -> list[str]:
    return [STAGING, f"file://{state / 'datasets'}/"]


def load(path: Path, state: Path) -> Config:
    """Read a file. Raises Permanent (64) that names every fault by its dotted path."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise Permanent(f"{path} cannot be read: {exc}", exit_code=USAGE) from exc
    return check(read_yaml(text), state)


def check(document: Mapping[str, Any], state: Path) -> Config:
    """Check a parsed file. `state` is the folder that it will be used with."""
    faults: dict[str, str] = {}
    known = {"receiver", "trigger", "models", "ports", "reconcileInterval", "allowPickle"}
    faults |= {key: f"is none of {', '.join(sorted(known))}" for key in document if key not in known}
    receiver = _mapping(document, "receiver", faults)
    receiver.setdefault("model", DEFAULT_MODEL)
    try:
        mapping.section(receiver)
    except Permanent as exc:
        faults |= exc.faults
    trigger = _mapping(document, "trigger", faults)
    faults |= _trigger_faults(trigger)
    models = document.get("models") or []
    if not isinstance(models, list):
        faults["models"] = "must be a list"
        models = []
    named: set[tuple[str, str]] = set()
    for place, model in enumerate(models):
        if not isinstance(model, dict):
            faults[f"models[{place}]"] = "must be a mapping"
            continue
        found = _model_faults(model)
        if "trigger.datasetPrefixes" not in faults:
            given = trigger.get("datasetPrefixes")
            found = _location_faults(model, _default_prefixes(state) if given is None else given) | found
        faults |= {f"models[{place}].{name}": what for name, what in found.items()}
        identity = str(model.get("environment", "default")), str(model.get("model"))
        if identity in named:
            faults[f"models[{place}]"] = f"{'/'.join(identity)} stands here twice"
        named.add(identity)
    ports = PORTS | _mapping(document, "ports", faults)
    for name, port in ports.items():
        if name not in PORTS:
            faults[f"ports.{name}"] = f"is none of {', '.join(PORTS)}"
        elif type(port) is not int or not 1 <= port <= 65535:
            faults[f"ports.{name}"] = "must be a port number"
    if not faults and len(set(ports.values())) != len(ports):
        faults["ports"] = "must differ from each other"
    interval = document.get("reconcileInterval", "30s")
    if (fault := _duration_fault(interval)) is not None:
        faults["reconcileInterval"] = fault
    allow_pickle = document.get("allowPickle", False)
    if not isinstance(allow_pickle, bool):
        faults["allowPickle"] = "must be true or false"
    if faults:
        raise Permanent("bad configuration", faults, exit_code=USAGE)
    return Config(
        receiver=receiver,
        trigger=trigger,
        models=tuple(models),
        ports=ports,
        reconcile_interval=interval,
        allow_pickle=allow_pickle,
    )


def _mapping(document: Mapping[str, Any], name: str, faults: dict[str, str]) -> dict[str, Any]:
    value = document.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        faults[name] = "must be a mapping"
        return {}
    return dict(value)


def _trigger_faults(trigger: Mapping[str, Any]) -> dict[str, str]:
    faults = {}
    for key, value in trigger.items():
        kind = _TRIGGER.get(key)
        if kind is None:
            faults[f"trigger.{key}"] = f"is none of {', '.join(_TRIGGER)}"
        elif kind is list:
            if not isinstance(value, list) or not all(map(_is_prefix, value)):
                faults[f"trigger.{key}"] = "must be a list of locations such as s3://bucket/datasets/"
        elif kind is int and (type(value) is not int or value < 1):
            faults[f"trigger.{key}"] = "must be a whole number from 1"
        elif kind is bool and not isinstance(value, bool):
            faults[f"trigger.{key}"] = "must be true or false"
        elif kind is str and (fault := _duration_fault(value)) is not None:
            faults[f"trigger.{key}"] = fault
    return faults


def _is_prefix(value: object) -> bool:
    return isinstance(value, str) and "," not in value and prefix_fault(value) is None  # a comma ends it in a variable


def _model_faults(model: Mapping[str, Any]) -> dict[str, str]:
    faults = {
        name: "must match " + NAME.pattern
        for name in ("environment", "model")
        if not isinstance(value := model.get(name, "default" if name == "environment" else None), str)
        or NAME.fullmatch(value) is None
    }
    try:
        policy_from({key: value for key, value in model.items() if key not in ("environment", "model")})
    except Permanent as exc:
        faults |= {name.removeprefix("spec."): what for name, what in exc.faults.items()}
    settings: dict[str, str] = {}
    read_settings(model, "", settings)
    return settings | faults


def _location_faults(model: Mapping[str, Any], prefixes: Sequence[str]) -> dict[str, str]:
    given = {name: model.get(name) for name in ("datasetUri", "evaluationUri")}
    found = {name: datasets.fault(uri, prefixes) for name, uri in given.items() if isinstance(uri, str)}
    return {name: fault for name, fault in found.items() if fault is not None}


def _duration_fault(value: object) -> str | None:
    try:
        return None if duration(value if isinstance(value, str) else "").total_seconds() > 0 else "must be more than 0"
    except ValueError as exc:
        return str(exc)
