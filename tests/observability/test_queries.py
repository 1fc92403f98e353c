"""Alerts and dashboard name only what is exported, with labels and values that exist, and each alert fires."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from retrain_trigger.model import Status
from retrain_trigger.policy import Outcome
from tests.conftest import needs
from tests.observability import world
from tests.observability.exported import OBSERVABILITY, ROOT, Series, state_metrics
from tests.trigger.world import NOW

ALERTS = [rule for group in world.RULES["groups"] for rule in group["rules"]]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Series:
    return world.all_series(tmp_path_factory.mktemp("trigger"))


def promtool(*arguments: str | Path, cwd: Path | None = None) -> str:
    """Run promtool; the test fails with what it said if it is not content."""
    done = subprocess.run(
        [needs("promtool", "prometheus"), *arguments], cwd=cwd, check=False, timeout=120, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- names -------------------------------------------------------------------------------------------------------

STATUSES = {"503"}
"""Of answers: a label with values that no series shows before the first such answer."""


@pytest.mark.parametrize("where", world.expressions())
def test_a_query_names_only_what_is_exported(where: str, known: Series) -> None:
    found = world.selectors(world.expressions()[where])
    assert found
    for name, matchers in found:
        if name in world.KUBE:
            continue
        assert name in known, f"{name} is exported by nobody"
        for label, operator, value in matchers:
            values = {labels[label] for labels in known[name] if label in labels}
            assert values, f"{name} has no label {label}"
            if label == "outcome" and name.startswith("aegis_managedmodel"):
                values = set(Outcome)
            if label == "status":
                values |= STATUSES
            for one in value.split("|") if "~" in operator else [value]:
                assert one in values | {".*"}, f"{name} has no {label} {one}"


@pytest.mark.parametrize("where", world.expressions())
def test_a_query_groups_by_labels_that_exist(where: str, known: Series) -> None:
    expression = world.expressions()[where]
    names = {name for name, _ in world.selectors(expression)}
    labels = {label for name in names for series in known.get(name, ()) for label in series}
    for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
        assert set(group.split(", ")) <= labels, group


def test_what_kube_state_metrics_shows_of_a_full_model() -> None:
    shown = {
        (s.name.removeprefix("aegis_managedmodel_"), *_own(s.labels)): s.value
        for s in state_metrics(world.full_document())
    }
    moment = NOW.timestamp()
    assert shown == {
        ("info", "approval=true", "suspend=false", "workflow_template=aegis-retrain"): 1,
        ("condition", "reason=AlertsFiring", "type=Drifting"): 1,
        ("condition", "reason=BudgetSpent", "type=Retraining"): 0,
        ("condition", "reason=BudgetSpent", "type=NeedsHuman"): 1,
        ("condition", "reason=No", "type=Stuck"): 0,
        ("attempts",): 2,
        ("failures",): 1,
        ("next_eligible_timestamp_seconds",): moment,
        ("last_seen_timestamp_seconds",): moment,
        ("retrain_phase", "phase=Claimed", "workflow=aegis-churn-12345678-3"): 0,
        ("retrain_phase", "phase=Submitted", "workflow=aegis-churn-12345678-3"): 0,
        ("retrain_phase", "phase=Finished", "workflow=aegis-churn-12345678-3"): 1,
        ("retrain_ended_timestamp_seconds", "outcome=Rejected", "workflow=aegis-churn-12345678-3"): moment,
    }


def test_every_metric_of_kube_state_metrics_says_which_model() -> None:
    identity = {"namespace": "aegis", "managed_model": "churn.default", "environment": "default", "model": "churn"}
    for sample in state_metrics(world.full_document()):
        assert identity.items() <= sample.labels.items()


def test_a_model_without_a_story_has_no_times_and_no_conditions() -> None:
    names = {sample.name.removeprefix("aegis_managedmodel_") for sample in state_metrics(world.full_document(Status()))}
    assert names == {"info", "attempts", "failures"}


def _own(labels: Any) -> list[str]:
    identity = ("namespace", "managed_model", "environment", "model")
    return sorted(f"{name}={value}" for name, value in labels.items() if name not in identity)


# --- promtool ----------------------------------------------------------------------------------------------------

MODEL = 'namespace="aegis", managed_model="churn.default", environment="default", model="churn"'


def condition(kind: str, reason: str) -> str:
    return f'aegis_managedmodel_condition{{{MODEL}, type="{kind}", reason="{reason}"}}'


def ended(outcome: str) -> str:
    return f'aegis_managedmodel_retrain_ended_timestamp_seconds{{{MODEL}, workflow="w-1", outcome="{outcome}"}}'


RISES = "0x10 1+1x50"
SCRAPED = {
    "aegis_receiver_alerts_truncated_total{}": "0x1600",
    "aegis_trigger_last_reconcile_timestamp_seconds{}": "0+60x1600",
}
"""A healthy pair of functions: reconcile runs every minute."""
CASES: dict[str, tuple[dict[str, str], str]] = {
    "AegisNeedsHuman": ({condition("NeedsHuman", "AttemptsSpent"): "1x60"}, "30m"),
    "AegisRetrainFailed": ({ended("Failed"): "600x60"}, "30m"),
    "AegisRetrainLost": ({ended("Lost"): "600x60"}, "30m"),
    "AegisRetrainStuck": ({condition("Stuck", "PastDeadline"): "1x60"}, "30m"),
    "AegisHeldLong": (
        {condition("Drifting", "AlertsFiring"): "1x1600", condition("Retraining", "Suspended"): "0x1600"},
        "1d1h",
    ),
    "AegisBudgetSpent": ({condition("Retraining", "BudgetSpent"): "0x200"}, "2h30m"),
    "AegisReceiverAbsent": ({"aegis_receiver_alerts_truncated_total{}": "0x5 stale"}, "30m"),
    "AegisReceiverFailing": (
        {'aegis_receiver_requests_total{path="/alertmanager", status="503"}': RISES},
        "30m",
    ),
    "AegisSinkFailing": ({'aegis_receiver_sink_events_total{result="failed"}': RISES}, "30m"),
    "AegisAlertsRejected": ({'aegis_receiver_alerts_total{result="rejected", reason="model"}': "0x10 1x50"}, "30m"),
    "AegisReconcileMissing": ({"aegis_trigger_last_reconcile_timestamp_seconds{}": "0+60x5 300x60"}, "30m"),
    "AegisReconcileBehind": ({'aegis_trigger_reconciled_total{result="left"}': RISES}, "55m"),
    "AegisModelInvalid": ({'aegis_trigger_reconciled_total{result="invalid"}': RISES}, "40m"),
    "AegisWorkflowsRefused": ({'aegis_trigger_workflows_total{result="refused"}': RISES}, "30m"),
    "AegisTriggerFailing": ({'aegis_trigger_requests_total{path="/", status="503"}': RISES}, "30m"),
    "AegisEventsRejected": (
        {'aegis_trigger_decisions_total{decision="Reject", reason="UnknownModel"}': "0x10 1x50"},
        "30m",
    ),
    "AegisDeadLetters": (
        {'aegis_trigger_dead_letters_total{type="dev.aegis.drift.detected.v1"}': "0x10 1x50"},
        "30m",
    ),
    "AegisUnauthenticated": ({"aegis_trigger_unauthenticated_total{}": "0x10 1x50"}, "30m"),
}
"""By alert: series that make it fire, with their values minute by minute, and when it has fired, as promtool says."""
HEALTHY = {
    condition("NeedsHuman", "No"): "0x1600",
    condition("Drifting", "AlertsFiring"): "1x1600",
    condition("Retraining", "Running"): "1x1600",
    condition("Stuck", "No"): "0x1600",
    ended("Promoted"): "600x1600",
    'aegis_receiver_alerts_total{result="forwarded", reason=""}': "0+1x1600",
    'aegis_receiver_alerts_total{result="rejected", reason="model"}': "0x1600",
    'aegis_receiver_sink_events_total{result="accepted"}': "0+1x1600",
    'aegis_receiver_sink_events_total{result="failed"}': "0x1600",
    'aegis_receiver_requests_total{path="/alertmanager", status="200"}': "0+1x1600",
    'aegis_trigger_requests_total{path="/", status="204"}': "0+1x1600",
    'aegis_trigger_decisions_total{decision="Hold", reason="InFlight"}': "0+1x1600",
    'aegis_trigger_reconciled_total{result="hold"}': "0+1x1600",
    'aegis_trigger_workflows_total{result="created"}': "0x100 1x1500",
    'aegis_trigger_dead_letters_total{type="dev.aegis.alert.rejected.v1"}': "0+1x1600",
    'aegis_trigger_reconciled_total{result="left"}': "0x1600",
    'aegis_trigger_reconciled_total{result="invalid"}': "0x1600",
    'aegis_trigger_workflows_total{result="refused"}': "0x1600",
    'aegis_trigger_decisions_total{decision="Reject", reason="UnknownModel"}': "0x1600",
    'aegis_trigger_dead_letters_total{type="dev.aegis.drift.detected.v1"}': "0x1600",
    "aegis_trigger_unauthenticated_total{}": "0x1600",
}
"""A model that is retrained for as long as it drifts, and alerts that come and go."""


Case = tuple[dict[str, str], str, str]
"""Series, an alert, and when to look at it."""


def fired(folder: Path, *cases: Case) -> list[tuple[str, str]]:
    """Which alerts promtool finds firing, and when, each with the series of its case. One run: it evaluates all rules
    minute by minute."""
    (folder / "rules.yaml").write_text(yaml.safe_dump(world.RULES))
    together: dict[tuple[tuple[str, str], ...], list[dict[str, Any]]] = {}
    for series, alert, at in cases:
        # To expect none makes promtool name those that there are.
        asked = {"eval_time": at, "alertname": alert, "exp_alerts": []}
        together.setdefault(tuple(series.items()), []).append(asked)
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series],
            "alert_rule_test": asked_of_it,
        }
        for series, asked_of_it in together.items()
    ]
    document = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}
    (folder / "test.yaml").write_text(yaml.safe_dump(document))
    done = subprocess.run(
        [needs("promtool", "prometheus"), "test", "rules", "test.yaml"],
        cwd=folder, check=False, timeout=300, capture_output=True, text=True,
    )  # fmt: skip
    said = done.stdout + done.stderr
    found = re.findall(r"alertname: (\w+), time: (\w+),\s+exp:\[\],\s+got:\[\s*\S", said)
    assert len(found) == said.count("got:"), said
    assert (done.returncode == 0) == (not found) == ("SUCCESS" in said), said
    return found


@pytest.fixture(scope="module")
def fired_in_its_case(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    return fired(
        tmp_path_factory.mktemp("cases"),
        *((SCRAPED | series, alert, at) for alert, (series, at) in CASES.items()),
    )


def test_the_rules_are_valid(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(world.RULES))
    assert f"{len(ALERTS)} rules found" in promtool("check", "rules", tmp_path / "rules.yaml")


def test_every_alert_has_a_case() -> None:
    assert CASES.keys() == {rule["alert"] for rule in ALERTS}


@pytest.mark.parametrize("alert", CASES)
def test_an_alert_fires_when_its_time_has_come(alert: str, fired_in_its_case: list[tuple[str, str]]) -> None:
    assert (alert, CASES[alert][1]) in fired_in_its_case


def test_nothing_fires_where_all_is_well(tmp_path: Path) -> None:
    names = [rule["alert"] for rule in ALERTS]
    cases = [(SCRAPED | HEALTHY, alert, at) for at in ("5m", "40m") for alert in names]
    assert fired(tmp_path, *cases, (SCRAPED | HEALTHY, "AegisHeldLong", "1d1h")) == []


def test_a_failed_retrain_is_told_for_a_day(tmp_path: Path) -> None:
    series = {ended("Failed"): "600x1600"}
    cases = [(series, "AegisRetrainFailed", at) for at in ("1d", "1d1h")]
    assert fired(tmp_path, *cases) == [("AegisRetrainFailed", "1d")]


def test_a_model_that_shows_a_person_what_to_do_is_not_told_of_twice(tmp_path: Path) -> None:
    series = CASES["AegisHeldLong"][0] | {condition("NeedsHuman", "WaitingForRollout"): "1x1600"}
    assert fired(tmp_path, (series, "AegisHeldLong", "1d1h")) == []


def test_a_rejected_alert_is_told_by_the_receiver_alone(tmp_path: Path) -> None:
    series = {'aegis_trigger_dead_letters_total{type="dev.aegis.alert.rejected.v1"}': "0x10 1x50"}
    assert fired(tmp_path, (series, "AegisDeadLetters", "30m")) == []


def test_a_trigger_that_is_gone_reconciles_nothing(tmp_path: Path) -> None:
    gone = {"aegis_trigger_last_reconcile_timestamp_seconds{}": "0+60x5 stale"}
    assert fired(tmp_path, (gone, "AegisReconcileMissing", "30m"))


@pytest.mark.parametrize("told", [{}, HEALTHY, *(case for case, _ in CASES.values())])
def test_the_tests_use_series_as_they_are_exported(told: dict[str, str], known: Series) -> None:
    for name in SCRAPED | told:
        ((metric, matchers),) = world.selectors(name)
        labels = {label for label, _, _ in matchers}
        assert any(labels == shown.keys() for shown in known[metric]), name


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_how_bad_it_is_and_what_happened(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"].keys() == {"summary", "description"}
    by = {label for group in re.findall(r"\bby \(([^)]*)\)", rule["expr"]) for label in group.split(", ")}
    used = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
    assert used <= by, "a label that the alert does not carry would be told as nothing"


# --- dashboard ---------------------------------------------------------------------------------------------------


def test_every_query_of_the_dashboard_parses(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": expression}
        for number, expression in enumerate(world.expressions().values())
    ]
    path = tmp_path / "panels.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", path)


@pytest.mark.parametrize("panel", world.panels(), ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"] in ("short", "s", "reqps")
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for target in panel["targets"]:
        assert target["expr"]
        shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        by = {label for group in re.findall(r"\bby \(([^)]*)\)", target["expr"]) for label in group.split(", ")}
        assert shown <= by, "a legend of a label that is summed away is empty"


def test_panels_have_titles_of_their_own_and_do_not_overlap() -> None:
    titles = [panel["title"] for panel in world.DASHBOARD["panels"]]
    assert len(set(titles)) == len(titles)
    taken: set[tuple[int, int]] = set()
    for panel in world.DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


# --- kustomize ---------------------------------------------------------------------------------------------------


def rendered(folder: Path) -> list[dict[str, Any]]:
    done = subprocess.run(
        [needs("kubectl"), "kustomize", folder], check=True, timeout=60, capture_output=True, text=True
    )
    return list(yaml.safe_load_all(done.stdout))


def test_the_folder_renders_with_dashboard_and_configuration_as_they_are() -> None:
    objects = {(doc["kind"], doc["metadata"]["name"]): doc for doc in rendered(OBSERVABILITY)}
    data = {name: doc["data"] for (kind, name), doc in objects.items() if kind == "ConfigMap"}
    assert data == {
        "aegis-dashboard": {"aegis.json": (OBSERVABILITY / "dashboard.json").read_text()},
        "aegis-kube-state-metrics": {
            "kube-state-metrics.yaml": (OBSERVABILITY / "kube-state-metrics.yaml").read_text()
        },
    }
    assert ("PodMonitor", "aegis-functions") in objects
    assert objects["PrometheusRule", "aegis"]["spec"] == world.RULES


@pytest.mark.parametrize("overlay", sorted((ROOT / "knative" / "overlays").iterdir()), ids=lambda folder: folder.name)
def test_the_pods_of_both_functions_are_scraped(overlay: Path) -> None:
    (monitor,) = [doc for doc in rendered(OBSERVABILITY) if doc["kind"] == "PodMonitor"]
    wanted = monitor["spec"]["selector"]
    (expression,) = wanted["matchExpressions"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    scraped = set()
    for doc in rendered(overlay):
        pod = doc.get("spec", {}).get("template", {})
        labels = pod.get("metadata", {}).get("labels", {})
        chosen = labels.get(expression["key"]) in expression["values"]
        if chosen and wanted["matchLabels"].items() <= labels.items():
            assert doc["metadata"]["namespace"] == monitor["metadata"]["namespace"]
            ports = [port["containerPort"] for c in pod["spec"]["containers"] for port in c.get("ports", ())]
            assert endpoint["portNumber"] in ports, "Prometheus finds only ports that are declared"
            scraped.add(labels[expression["key"]])
    assert scraped == set(expression["values"])
