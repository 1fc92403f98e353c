"""What a WorkflowTemplate may say, and the one that ships."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hera.workflows.models import WorkflowTemplate as Argo
from hypothesis import given
from hypothesis import strategies as st

from aegis.errors import Permanent
from aegis_cli.runner import load
from aegis_cli.workflow_template import backoff_s, holds, parse, retries, seconds, substitute
from train_model.attempt import MAX_PREDICTION, MAX_TRAINING

from .conftest import Json, output, pod, template

SHIPPED = Path(__file__).parents[2] / "knative" / "base" / "argo" / "workflow-template.yaml"
STORAGE = "aegis-storage"


@pytest.fixture(scope="module")
def shipped() -> Json:
    document: Json = yaml.safe_load(SHIPPED.read_text())
    return document


@pytest.fixture(scope="module")
def templates(shipped: Json) -> dict[str, Json]:
    return {t["name"]: t for t in shipped["spec"]["templates"]}


def containers(templates: dict[str, Json]) -> dict[str, Json]:
    found = {name: t["container"] for name, t in templates.items() if "container" in t}
    return found | {
        c["name"]: c for t in templates.values() for c in (*t.get("initContainers", []), *t.get("sidecars", []))
    }


def test_the_shipped_template_is_what_argo_reads(shipped: Json) -> None:
    read = Argo.model_validate(shipped).model_dump(mode="json", by_alias=True, exclude_none=True)
    assert lost(shipped, read) == []


def lost(written: Any, read: Any, path: str = "") -> list[str]:
    """Every field that stands in the file and that Argo's model doesn't have."""
    if isinstance(written, dict):
        gone = [f"{path}.{key}" for key in written if key not in read]
        return gone + [x for key in written if key in read for x in lost(written[key], read[key], f"{path}.{key}")]
    if isinstance(written, list):
        pairs = enumerate(zip(written, read, strict=True))
        return [x for i, (one, other) in pairs for x in lost(one, other, f"{path}[{i}]")]
    return []


def test_the_shipped_template_runs_here() -> None:
    read = load(SHIPPED)
    assert read.name == "aegis-retrain"
    assert set(read.parameters) == {
        "model", "environment", "model-version", "dataset-uri", "evaluation-uri", "event", "settings", "approval",
        "last-inputs",
    }  # fmt: skip


def test_only_fetch_checkpoint_gate_sign_and_promote_get_the_bucket_s_credential(templates: dict[str, Json]) -> None:
    holders = {name for name, c in containers(templates).items() if STORAGE in str(c.get("envFrom")) + str(c["env"])}
    assert holders == {"fetch", "checkpoint", "gate", "sign", "promote"}


def test_only_sign_and_promote_see_the_signing_key(templates: dict[str, Json]) -> None:
    found = containers(templates).items()
    assert {name for name, c in found if "AEGIS_SIGNING_KEY" in str(c["env"])} == {"sign", "promote"}
    assert {name for name, c in found if "signing-key" in str(c["volumeMounts"])} == {"sign", "promote"}
    assert {name for name, c in found if "vault" in str(c).lower()} == {"sign", "promote"}


def test_only_promote_may_write_the_registry(templates: dict[str, Json]) -> None:
    found = containers(templates).items()
    assert {name for name, c in found if "aegis-registry" in str(c.get("envFrom"))} == {"promote"}


def test_every_container_is_locked_down(shipped: Json, templates: dict[str, Json]) -> None:
    assert shipped["spec"]["automountServiceAccountToken"] is False
    assert shipped["spec"]["securityContext"]["runAsNonRoot"] is True
    for name, one in containers(templates).items():
        context = one["securityContext"]
        assert context["readOnlyRootFilesystem"] is True, name
        assert context["allowPrivilegeEscalation"] is False, name
        assert context["capabilities"] == {"drop": ["ALL"]}, name


def test_every_container_template_has_a_deadline(templates: dict[str, Json]) -> None:
    assert all("activeDeadlineSeconds" in t for t in templates.values() if "container" in t)


def test_no_trainer_and_no_prediction_may_outlast_its_pod(templates: dict[str, Json]) -> None:
    # A pod that is ended uses no attempt and would be made again and again: what hangs has to be ended before, and half
    # an hour at least (ten minutes) is left for the download and for MLflow.
    assert templates["train"]["activeDeadlineSeconds"] >= MAX_TRAINING + 1800
    assert templates["gate"]["activeDeadlineSeconds"] >= 2 * MAX_PREDICTION + 600


def test_every_output_has_a_default(templates: dict[str, Json]) -> None:
    parameters = [p for t in templates.values() for p in t.get("outputs", {}).get("parameters", [])]
    assert parameters
    assert all("default" in p["valueFrom"] for p in parameters)


def test_no_value_stands_in_a_command(templates: dict[str, Json]) -> None:
    for one in containers(templates).values():
        assert "{{" not in str([one["command"], one.get("args")])
        assert not {"sh", "bash"} & set(one["command"])


def test_transient_failures_are_tried_again_and_no_others(templates: dict[str, Json]) -> None:
    strategies = [t["retryStrategy"] for t in templates.values() if "retryStrategy" in t]
    assert len(strategies) == 4
    for strategy in strategies:
        assert [code for code in range(256) if retries(strategy, code, "Failed", "")] == [75, 137, 143]
        assert retries(strategy, -1, "Error", "pod deleted")
        assert retries(strategy, -1, "Failed", "fetch: Error (exit code 75): the bucket didn't answer")
        assert not retries(strategy, -1, "Failed", "fetch: Error (exit code 65): no labels")
        overran = "Pod was active on the node longer than the specified deadline"
        assert not retries(strategy, 137, "Failed", overran)


def faults_of(document: object) -> dict[str, str]:
    with pytest.raises(Permanent) as refused:
        parse(document)
    return refused.value.faults


def test_a_field_that_the_runner_does_not_know_is_refused_by_name_and_all_of_them_at_once() -> None:
    document = template(pod("a", "", memoize={"key": "x"}), parallelism=3, hooks={})
    document["spec"]["templates"][1]["container"]["livenessProbe"] = {}
    assert set(faults_of(document)) == {
        "spec.parallelism",
        "spec.hooks",
        "spec.templates[1].memoize",
        "spec.templates[1].container.livenessProbe",
    }


def test_what_only_a_cluster_honours_is_accepted() -> None:
    document = template(
        pod("a", "", synchronization={"mutexes": [{"name": "{{workflow.parameters.unknown}}"}]}),
        podGC={}, podSpecPatch="", ttlStrategy={}, securityContext={}, synchronization={},
    )  # fmt: skip
    assert parse(document).entrypoint == "main"


STEP = "spec.templates[0].steps[0][0]"
X = {"name": "x", "template": "a"}
P = {"name": "p", "value": ""}


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"steps": [[{"name": "x", "template": "absent"}]]}, f"{STEP}.template"),
        ({"steps": [[X | {"when": "{{workflow.name}}"}]]}, f"{STEP}.when"),
        ({"steps": [[X | {"when": "'{{workflow.nme}}' == ''"}]]}, f"{STEP}.when"),
        ({"steps": [[X | {"when": "'{{steps.x.outputs.parameters.o}}' == ''"}]]}, f"{STEP}.when"),
        ({"steps": [[X], [X]]}, "spec.templates[0].steps"),
        ({"steps": [[X | {"arguments": {"parameters": [P]}}]]}, f"{STEP}.arguments.parameters"),
        ({"steps": [[X | {"withItems": [1]}]]}, f"{STEP}.withItems"),
        ({"entrypoint": "absent"}, "spec.entrypoint"),
        ({"onExit": "absent"}, "spec.onExit"),
    ],
)  # fmt: skip
def test_a_reference_to_nothing_is_refused(change: Json, path: str) -> None:
    steps = change.pop("steps", None)
    document = template(pod("a", "", outputs={"parameters": [output("o")]}), steps=steps, **change)
    assert path in faults_of(document)


@pytest.mark.parametrize(
    "bad",
    [
        {"retryStrategy": {"limit": 1, "expression": "lastRetry.exitCode == 1"}},
        {"retryStrategy": {"limit": 1, "expression": "true"}},
        {"outputs": {"parameters": [{"name": "o", "valueFrom": {"path": "/elsewhere/o"}}]}},
        {"env": [{"name": "A", "value": "{{workflow.parameters.unknown}}"}]},
        {"env": [{"name": "A", "value": "{{=1+1}}"}]},
        {"env": [{"name": "A", "value": "{{ open"}]},
        {"env": [{"name": "A", "value": "$(B)"}]},
        {"env": [{"name": "A"}]},
        {"volumeMounts": [{"name": "absent", "mountPath": "/x"}]},
        {"suspend": {}},
    ],
)
def test_what_can_not_be_executed_as_it_stands_is_refused(bad: Json) -> None:
    assert faults_of(template(pod("a", "", **bad)))


@pytest.mark.parametrize("document", [None, [], "text", {}, {"spec": []}, {"spec": {"templates": [{"name": 3}]}}])
def test_something_else_than_a_template_is_refused(document: object) -> None:
    assert faults_of(document)


@given(st.text())
def test_a_value_is_never_looked_at_again(value: str) -> None:
    assert substitute("<{{a}}>", {"a": value, "b": "no"}) == f"<{value}>"


@given(st.text())
def test_no_value_becomes_part_of_a_condition(value: str) -> None:
    assert holds("'{{a}}' == 'accept' && '{{b}}' != 'x'", {"a": value, "b": "y"}) is (value == "accept")


def test_conditions_are_all_needed() -> None:
    scope = {"a": "1", "b": "2"}
    assert holds("'{{a}}' == '1' && '{{b}}' == '2'", scope)
    assert not holds("'{{a}}' == '1' && '{{b}}' == '3'", scope)
    assert holds("'{{a}}' != '2'", scope)
    assert holds(None, scope)


def test_waits_between_attempts_grow_to_their_cap() -> None:
    strategy = {"backoff": {"duration": "10s", "factor": 2, "cap": "1m"}}
    assert [backoff_s(strategy, failures) for failures in (1, 2, 3, 4)] == [10, 20, 40, 60]


def test_durations_are_read_as_argo_writes_them() -> None:
    assert [seconds(text) for text in ("90", "90s", "1m30s", "2h")] == [90, 90, 90, 7200]
