"""What can be queried: the metrics that the two functions really export, and those that kube-state-metrics makes of a
ManagedModel by our configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.receiver import world as receiving
from tests.trigger import world as triggering

ROOT = Path(__file__).parents[2]
OBSERVABILITY = ROOT / "knative" / "observability"
STATE_METRICS: dict[str, Any] = yaml.safe_load((OBSERVABILITY / "kube-state-metrics.yaml").read_text())

Series = dict[str, list[dict[str, str]]]
"""The labels of each series, by the name that a query uses."""


@dataclass(frozen=True)
class Family:
    """One metric as its function declares it."""

    name: str
    kind: str
    text: str
    labels: frozenset[str]


def receiver_text() -> str:
    """/metrics of a receiver that was called once."""
    world = receiving.World()
    world.post(receiving.payload(receiving.alert()))
    return world.post(method="GET", path="/metrics").body.decode()


def trigger_text(folder: Path) -> str:
    """/metrics of a trigger that was called once."""
    function = triggering.World(folder / "ledger").function()
    triggering.post(function, triggering.drift())
    return triggering.ask(function, "GET", "/metrics").body.decode()


def families(text: str) -> list[Family]:
    found = []
    for family in text_string_to_metric_families(text):
        labels = frozenset(name for sample in family.samples for name in sample.labels if name != "le")
        name = family.name + ("_total" if family.type == "counter" else "")
        found.append(Family(name, family.type, family.documentation, labels))
    return found


def series(text: str) -> Series:
    found: Series = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(dict(sample.labels))
    return found


# --- kube-state-metrics ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    name: str
    labels: Mapping[str, str]
    value: float


def state_metrics(document: Mapping[str, Any]) -> list[Sample]:
    """What kube-state-metrics shows of a ManagedModel: the part of its rules that our configuration uses, and an
    AssertionError for any other."""
    (resource,) = STATE_METRICS["spec"]["resources"]
    own = {"groupVersionKind", "metricNamePrefix", "errorLogV", "labelsFromPath", "metrics"}
    assert resource.keys() <= own
    group, version = str(document["apiVersion"]).split("/")
    assert resource["groupVersionKind"] == {"group": group, "version": version, "kind": document["kind"]}
    samples = []
    for metric in resource["metrics"]:
        assert metric.keys() <= {"name", "help", "each", "labelsFromPath"}
        labels = _labels({**resource["labelsFromPath"], **metric.get("labelsFromPath", {})}, document)
        name = f"{resource['metricNamePrefix']}_{metric['name']}"
        samples += [Sample(name, labels | more, value) for more, value in _each(metric["each"], document)]
    return samples


def _each(each: Mapping[str, Any], document: Mapping[str, Any]) -> Iterator[tuple[dict[str, str], float]]:
    kind = each["type"]
    (rule,) = [value for key, value in each.items() if key != "type"]
    found = _get(document, rule["path"])
    match kind:
        case "Info":
            assert rule.keys() == {"path", "labelsFromPath"}
            if labels := _labels(rule["labelsFromPath"], found):
                yield labels, 1.0
        case "StateSet":
            assert rule.keys() == {"path", "labelName", "list"}
            for state in rule["list"] if found is not None else ():
                yield {rule["labelName"]: state}, float(found == state)
        case "Gauge" if "valueFrom" in rule:
            assert rule.keys() == {"path", "valueFrom", "labelsFromPath"}
            assert isinstance(found, list | None), "in a mapping, it would look for the name in every entry"
            for item in found or ():
                yield _labels(rule["labelsFromPath"], item), _number(_get(item, rule["valueFrom"]))
        case "Gauge":
            assert rule.keys() == {"path"}
            if found is not None:
                yield {}, _number(found)
        case _:
            raise AssertionError(f"{kind} is not used")


def _get(value: Any, path: list[str]) -> Any:
    for part in path:
        assert not re.search(r"[\[=]|^-?\d+$", part), "only plain names are used"
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _labels(paths: Mapping[str, list[str]], value: Any) -> dict[str, str]:
    found = {name: _get(value, path) for name, path in paths.items()}
    return {
        name: str(text).lower() if isinstance(text, bool) else str(text)
        for name, text in found.items()
        if text is not None
    }


def _number(value: Any) -> float:
    if isinstance(value, str) and value.lower() in ("true", "false", "unknown"):
        return float(value.lower() == "true")
    if isinstance(value, str):
        return datetime.fromisoformat(value).timestamp() // 1
    assert isinstance(value, int | float), value
    return float(value)
