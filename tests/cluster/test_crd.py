"""The ManagedModel definition: the same fields as the code's, and answers that tell an owner what to write."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from aegis.settings import duration
from retrain_trigger.model import Policy, Record, Status, camel, policy_from
from tests.cluster.control_plane import ControlPlane
from tests.conftest import CRDS
from tests.trigger.contract import full_status
from tests.trigger.world import NOW

VERSION = yaml.safe_load(CRDS.read_text())["spec"]["versions"][0]
SCHEMA = VERSION["schema"]["openAPIV3Schema"]["properties"]
ALSO_IN_STATUS = {"pending", "observedGeneration"}


def schema_of(kind: Any) -> Any:
    """The type that a schema has to have for a field of the document's classes, nested ones included."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return schema_of(next(arg for arg in inner if arg is not type(None)))
    if origin is typing.Annotated:
        return schema_of(inner[0])
    if origin is tuple:
        return [schema_of(inner[0])]
    if origin is Mapping:
        return {"*": schema_of(inner[1])} if inner[1] is not Any else "object"
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        return {camel(f.name): schema_of(hints[f.name]) for f in dataclasses.fields(kind)}
    plain = {str: "string", int: "integer", float: "number", bool: "boolean", datetime: "time", timedelta: "string"}
    return plain[kind]


def said_by(schema: Mapping[str, Any]) -> Any:
    """The same shape, read from the definition."""
    if schema["type"] == "array":
        return [said_by(schema["items"])]
    if "properties" in schema:
        return {name: said_by(inner) for name, inner in schema["properties"].items()}
    if "additionalProperties" in schema:
        return {"*": said_by(schema["additionalProperties"])}
    return "time" if schema.get("format") == "date-time" else schema["type"]


def test_the_ledger_in_the_definition_is_the_ledger_of_the_code() -> None:
    found = said_by(SCHEMA["status"])
    for name in ALSO_IN_STATUS:
        del found[name]
    for condition in found["conditions"]:
        del condition["observedGeneration"]
    assert found == schema_of(Status)


def test_the_policy_in_the_definition_is_the_policy_of_the_code() -> None:
    found = said_by(SCHEMA["spec"])
    assert {found.pop("environment"), found.pop("model")} == {"string"}
    assert found == schema_of(Policy)


def test_the_definitions_defaults_are_the_codes() -> None:
    spec = {name: field["default"] for name, field in SCHEMA["spec"]["properties"].items() if "default" in field}
    assert policy_from(spec) == Policy()
    plain = {f.name for f in dataclasses.fields(Policy) if f.default not in (dataclasses.MISSING, None)}
    assert set(spec) == {camel(name) for name in plain}, "every plain default is visible to an owner"


# --- on a real API server ---


def model(name: str = "churn.default", **spec: Any) -> dict[str, Any]:
    identity = {"environment": "default", "model": "churn"}
    return {
        "apiVersion": "aegis.dev/v1alpha1",
        "kind": "ManagedModel",
        "metadata": {"name": name},
        "spec": {key: value for key, value in {**identity, **spec}.items() if value is not None},
    }


def applied(plane: ControlPlane, namespace: str, doc: Mapping[str, Any]) -> str:
    """What kubectl apply says; it begins with the object's name if it was taken."""
    done = plane.kubectl("apply", "-n", namespace, "-f", "-", stdin=yaml.safe_dump(dict(doc)), check=False)
    return done.stdout + done.stderr


REFUSED = [
    ({"environment": None}, "spec.environment: Required value"),
    ({"model": "no spaces"}, "must be 1 to 63 letters, digits, dots, dashes and underscores"),
    ({"model": "Churn"}, "metadata.name must be what `aegis name Churn --environment default` prints"),
    ({"environment": "production"}, "metadata.name must be churn.production"),
    ({"cooldown": "soon"}, "must be a duration between 1m and 30d, such as 6h, 90m or 1d12h"),
    ({"cooldown": ""}, "must be a duration between 1m and 30d"),
    ({"cooldown": "59s"}, "must be a duration between 1m and 30d"),
    ({"cooldown": "30d1s"}, "must be a duration between 1m and 30d"),
    ({"cooldown": "1h 30m"}, "must be a duration between 1m and 30d"),
    ({"quietPeriod": "9m"}, "must be a duration between 10m and 90d"),
    ({"quietPeriod": "91d"}, "must be a duration between 10m and 90d"),
    ({"evidenceTTL": "9m59s"}, "must be a duration between 10m and 7d"),
    ({"evidenceTTL": "8d"}, "must be a duration between 10m and 7d"),
    ({"maxAttempts": 0}, "should be greater than or equal to 1"),
    ({"maxAttempts": 101}, "should be less than or equal to 100"),
    ({"datasetUri": "my data"}, "must be a location such as s3://bucket/folder/"),
    ({"datasetUri": "s3://bucket/{{x}}"}, "must be a location such as s3://bucket/folder/"),
    ({"evaluationUri": "s3://bucket/\u00e9"}, "must be a location such as s3://bucket/folder/"),
    ({"alias": "v1"}, "MLflow keeps latest, v1, v2 ... for itself"),
    ({"alias": "Latest"}, "MLflow keeps latest, v1, v2 ... for itself"),
    ({"alias": "my.alias"}, "must be letters, digits, _ and -"),
    ({"workflowTemplate": "other"}, "must be the name of a WorkflowTemplate that begins with aegis-"),
    ({"coolDown": "6h"}, 'unknown field "spec.coolDown"'),
    ({"suspend": "yes"}, "must be of type boolean"),
]


@pytest.mark.parametrize(("spec", "message"), REFUSED, ids=[f"{s}" for s, _ in REFUSED])
def test_a_wrong_object_is_refused_with_what_to_write(
    control_plane: ControlPlane, crd_namespace: str, spec: dict[str, Any], message: str
) -> None:
    assert message in applied(control_plane, crd_namespace, model(**spec))


@pytest.fixture(scope="module")
def crd_namespace(control_plane: ControlPlane) -> str:
    """One namespace for the tests that store nothing."""
    control_plane.kubectl("create", "namespace", "definition")
    return "definition"


def test_all_faults_of_an_object_are_named_at_once(control_plane: ControlPlane, crd_namespace: str) -> None:
    told = applied(control_plane, crd_namespace, model(cooldown="soon", datasetUri="x", alias="v1"))
    for field in ("spec.cooldown", "spec.datasetUri", "spec.alias"):
        assert field in told


ACCEPTED: list[dict[str, Any]] = [
    {},
    {"cooldown": "1m", "quietPeriod": "90d", "evidenceTTL": "7d", "maxAttempts": 100},
    {"cooldown": "1d12h30m10s", "datasetUri": "s3://bucket/a b".replace(" ", "%20"), "alias": "blue"},
    {"trainer": {"kind": "linear", "data": {"deep": [1, 2]}}, "gate": {"minGain": 0.5}, "approval": True},
]


@pytest.mark.parametrize("spec", ACCEPTED, ids=str)
def test_what_the_code_reads_the_api_server_takes(
    control_plane: ControlPlane, namespace: str, spec: dict[str, Any]
) -> None:
    assert applied(control_plane, namespace, model(**spec)).startswith("managedmodel.aegis.dev/churn.default created")
    stored = yaml.safe_load(control_plane.kubectl("get", "mm", "churn.default", "-n", namespace, "-o", "yaml").stdout)
    policy = {name: value for name, value in stored["spec"].items() if name not in ("environment", "model")}
    assert policy_from(policy) == policy_from(spec)
    assert duration(stored["spec"]["cooldown"])


def test_environment_and_model_cannot_be_changed(control_plane: ControlPlane, namespace: str) -> None:
    assert "created" in applied(control_plane, namespace, model())
    told = applied(control_plane, namespace, model(model="fraud"))
    assert "environment and model cannot be changed" in told


@pytest.mark.parametrize("name", ["churn.other", "churn-default", "churn-default-12345678", "x"])
def test_a_readable_model_has_one_name(control_plane: ControlPlane, crd_namespace: str, name: str) -> None:
    assert "metadata.name must be churn.default" in applied(control_plane, crd_namespace, model(name))


def test_an_owner_cannot_write_the_ledger_with_the_policy(control_plane: ControlPlane, namespace: str) -> None:
    assert "created" in applied(control_plane, namespace, {**model(), "status": {"attempts": 3, "pending": True}})
    assert control_plane.kubectl("get", "mm", "-n", namespace, "-o", "jsonpath={.items[0].status}").stdout == ""


def test_the_columns_say_why_a_model_was_not_retrained(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    from dataclasses import replace

    from retrain_trigger.kubernetes import Client, KubernetesLedger
    from retrain_trigger.model import Condition

    ledger = KubernetesLedger(Client(control_plane.kubeconfig(tmp_path / "kubeconfig")), namespace)
    made: Record = ledger.create("default", "churn", Status(), NOW)
    conditions = tuple(
        Condition(type=kind, status=state, reason=reason, message=reason + " in words", last_transition_time=NOW)
        for kind, state, reason in (
            ("Drifting", "True", "AlertsFiring"), ("Retraining", "False", "Cooldown"), ("NeedsHuman", "False", "No"),
        )
    )  # fmt: skip
    ledger.write(made, replace(full_status(), conditions=conditions), pending=True)
    shown = control_plane.kubectl("get", "mm", "-n", namespace, "-o", "wide").stdout.splitlines()
    headings, cells = (line.split() for line in (shown[0], shown[1].replace("Cooldown in words", "Cooldown-in-words")))
    row = dict(zip(headings, cells, strict=True))
    assert {name: row[name] for name in ("MODEL", "ENVIRONMENT", "DRIFTING", "RETRAINING", "WHY")} == {
        "MODEL": "churn", "ENVIRONMENT": "default", "DRIFTING": "True", "RETRAINING": "False", "WHY": "Cooldown",
    }  # fmt: skip
    assert (row["NEEDS-HUMAN"], row["LAST-OUTCOME"], row["ATTEMPTS"]) == ("False", "Rejected", "2")
    assert row["MESSAGE"] == "Cooldown-in-words"
