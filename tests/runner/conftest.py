"""A world with one runner in it: templates whose steps are a few lines of Python, and rows to run."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from aegis_cli.runner import Runner
from aegis_cli.workflow_run import Settings
from aegis_cli.workflow_template import parse
from retrain_trigger.sqlite import Document, Objects

Json = dict[str, Any]
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def container(code: str, **fields: Any) -> Json:
    """A container whose program is this Python code, with /out mounted."""
    mounts = [{"name": "out", "mountPath": "/out"}]
    return {"command": ["python", "-c", code], "volumeMounts": mounts, **fields}


def pod(name: str, code: str, *, init: str | None = None, **fields: Any) -> Json:
    """A template of one container; `fields` are merged into the template, but for those of a container."""
    own = {key: fields.pop(key) for key in ("env", "envFrom", "args", "volumeMounts") if key in fields}
    template: Json = {"name": name, "container": container(code, **own), **fields}
    template["volumes"] = [{"name": "out", "emptyDir": {}}, *fields.get("volumes", [])]
    if init is not None:
        template["initContainers"] = [{**container(init), "name": "fetch"}]
    return template


def output(name: str, *, default: str | None = "", global_name: str | None = None) -> Json:
    source = {"path": f"/out/{name}"} | ({} if default is None else {"default": default})
    return {"name": name, "valueFrom": source} | ({"globalName": global_name} if global_name else {})


def template(*templates: Json, steps: Sequence[list[Json]] | None = None, **spec: Any) -> Json:
    """A WorkflowTemplate whose steps run these templates one after another."""
    groups = steps if steps is not None else [[{"name": t["name"], "template": t["name"]}] for t in templates]
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "WorkflowTemplate",
        "metadata": {"name": "test"},
        "spec": {"entrypoint": "main", "templates": [{"name": "main", "steps": groups}, *templates], **spec},
    }


def row(name: str, values: Mapping[str, object] | None = None, *, of: str = "test", **spec: Any) -> Json:
    parameters = [{"name": key, "value": value} for key, value in (values or {}).items()]
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"name": name, "uid": str(uuid.uuid4()), "creationTimestamp": "2026-03-01T12:00:00Z"},
        "spec": {"workflowTemplateRef": {"name": of}, "arguments": {"parameters": parameters}, **spec},
    }


@dataclass
class World:
    """One machine: its table, its state directory, its ConfigMaps and Secrets."""

    home: Path
    config: dict[str, dict[str, str]] = field(default_factory=dict)
    secrets: dict[str, dict[str, str]] = field(default_factory=dict)
    now: datetime = NOW

    @property
    def objects(self) -> Objects:
        return Objects(self.home / "objects.db")

    def submit(self, document: Json) -> None:
        self.objects.create("Workflow", document["metadata"]["name"], document, pending=True)

    def runner(self, document: Json, *, parallel: int = 2, on_end: Callable[[Document], None] | None = None) -> Runner:
        return Runner(
            self.objects, parse(copy.deepcopy(document)), self.home, self.config, self.secrets,
            settings=Settings(parallel=parallel, poll_s=0.02), clock=lambda: self.now, path="/usr/bin:/bin",
            on_end=on_end,
        )  # fmt: skip

    def run(self, document: Json, workflow: Json | None = None) -> Json:
        """Run one Workflow of this template to its end (or to an approval) and return it."""
        workflow = workflow or row("w")
        self.submit(workflow)
        self.runner(document).run_pending()
        return self.read(workflow["metadata"]["name"])

    def read(self, name: str = "w") -> Json:
        stored = self.objects.get("Workflow", name)
        assert stored is not None
        return stored.doc

    def log(self, node: str, container: str = "main", workflow: str = "w") -> str:
        return (self.home / "runs" / workflow / node / f"{container}.log").read_text()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def phase(document: Json, node: str | None = None) -> str:
    status = document["status"]
    return str(status["phase"] if node is None else status["nodes"][node]["phase"])


def outputs(holder: Json) -> dict[str, str]:
    """The output parameters of a Workflow's status or of a node."""
    return {p["name"]: p["value"] for p in holder.get("outputs", {}).get("parameters", [])}
