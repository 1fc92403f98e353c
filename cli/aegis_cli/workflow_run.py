"""Execute one Workflow as local processes, from its first node that has not finished. Decides nothing itself.

What happens is what Argo 4.1.2 does, as its controller and executor have it:
- Outputs are collected from a failed main container too, and global ones are set from them. An init container that
  fails ends the pod before anything is collected: only its last output is known, in the message.
- Sidecars start with the main container and get SIGTERM when that is over. One that fails by itself fails the pod.
- A later node's global output replaces an earlier one, also by the empty text of a `default`.
- A node with a `retryStrategy` has its attempts beside it (`train(0)`) and the outputs of the one that succeeded.
- A skipped step's outputs have their defaults.
- `Stop` ends the steps and runs onExit, `Terminate` runs nothing more; both end as Failed and say so.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aegis.errors import Conflict, NotFound, Permanent, Temporary
from retrain_trigger.sqlite import Document, Objects

from . import process
from .workflow_template import TAG, Template, WorkflowTemplate, backoff_s, holds, items, retries, substitute

KIND = "Workflow"
ENDED = frozenset({"Succeeded", "Failed", "Error", "Skipped"})
BAD = frozenset({"Failed", "Error"})
DEADLINE = "Pod was active on the node longer than the specified deadline"
SPEC_FIELDS = frozenset({"workflowTemplateRef", "arguments", "entrypoint", "priority", "shutdown", "ttlStrategy"})
"""What a Workflow may say here; its template says the rest."""
OUTPUT_LIMIT = 64 * 1024
"""Bytes of an output parameter: it travels in the Workflow's status, 1 MiB in all on a cluster."""
SIGNALLED = (137, 143)
"""Exit codes of a sidecar that Argo does not mind: it ended it itself."""
CONFLICTS = 50
"""Lost compare-and-sets before a status write gives up: hardly anybody else writes there."""

ARTIFACTS = ".artifacts"
"""Where a run keeps what its steps left: no step can have that name."""

Node = dict[str, Any]
Scope = Mapping[str, str]
Mounts = Mapping[str, Path]


class Halt(Exception):  # not an error
    """The runner stops, or the Workflow waits for a person: the row stays as it is, for later."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How this machine runs Workflows."""

    parallel: int = 2
    """Workflows at a time. Trainers are pinned to one thread, and small machines have two cores."""
    poll_s: float = 0.5
    """Seconds between looks at the rows: nobody notices half a second, and a look is one indexed query."""
    longest_backoff_s: float = 300.0
    """Cap on the waits between attempts, in seconds: that of the template, unless a person sits in front."""
    keep_runs: int = 20
    """Directories of ended runs that are kept, newest first: they hold data and models."""


@dataclass(frozen=True, slots=True)
class Host:
    """What a run needs of this machine."""

    objects: Objects
    template: WorkflowTemplate
    runs: Path
    config: Mapping[str, Mapping[str, str]]
    """ConfigMaps by name."""
    secrets: Mapping[str, Mapping[str, str]]
    """Secrets by name."""
    settings: Settings
    clock: Callable[[], datetime]
    path: str
    """The PATH of every step."""
    stopping: threading.Event

    def overdue(self, doc: Document) -> bool:
        """Say whether a Workflow has run longer than its template allows."""
        started = doc.get("status", {}).get("startedAt")
        if self.template.deadline_s is None or not started:
            return False
        return (self.clock() - datetime.fromisoformat(started)).total_seconds() > self.template.deadline_s


def timestamp(now: datetime) -> str:
    """Write a time as Kubernetes does, in whole seconds UTC."""
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read(objects: Objects, name: str) -> Document:
    """Return a Workflow. Raises NotFound."""
    stored = objects.get(KIND, name)
    if stored is None:
        raise NotFound(f"there is no workflow {name}")
    return stored.doc


def update(objects: Objects, name: str, change: Callable[[Document], None]) -> Document:
    """Change a Workflow by compare-and-set, on top of what others wrote. Raises NotFound, Temporary."""
    for _ in range(CONFLICTS):
        stored = objects.get(KIND, name)
        if stored is None:
            raise NotFound(f"there is no workflow {name}")
        change(stored.doc)
        ended = stored.doc.get("status", {}).get("phase") in ENDED
        try:
            return objects.replace(KIND, name, stored.doc, stored.version, pending=not ended).doc
        except Conflict:
            continue
    raise Temporary(f"workflow {name} changes faster than it can be written")


def end(host: Host, name: str, phase: str, message: str) -> Document:
    """Write the end of a Workflow. Raises NotFound, Temporary."""

    def change(doc: Document) -> None:
        status = doc.setdefault("status", {})
        now = timestamp(host.clock())
        status.setdefault("startedAt", now)
        status.update(phase=phase, finishedAt=now, message=message)

    return update(host.objects, name, change)


class Run:
    """One Workflow under way. Nobody else writes its nodes, but for a person's approval."""

    def __init__(self, host: Host, name: str) -> None:
        self._host, self._name = host, name
        self._directory = host.runs / name
        doc = read(host.objects, name)
        self._uid: str = doc["metadata"]["uid"]
        self._spec: Mapping[str, Any] = doc["spec"]
        self._nodes: dict[str, Node] = doc.get("status", {}).get("nodes", {})
        self._stop_reason: tuple[str, bool] | None = None
        self._looked = float("-inf")

    def execute(self) -> Document:
        """Run to the end and return the final document. Raises Halt, NotFound (the row was deleted), Temporary."""
        template = self._host.template
        faults = self._faults()
        if faults:
            return end(self._host, self._name, "Error", str(Permanent("this Workflow can't run", faults)))
        values = {p: default for p, default in template.parameters.items() if default is not None}
        values |= {p["name"]: p["value"] for p in items(self._spec, "arguments", "parameters")}
        scope = {f"workflow.parameters.{name}": value for name, value in values.items()}
        scope |= {"workflow.name": self._name, "workflow.uid": self._uid, "workflow.status": "Running"}
        self._write(self._begin)
        last = self._template(template.entrypoint, "", scope, {}, on_exit=False)
        if template.on_exit and self._shutdown() != "Terminate":
            scope["workflow.status"] = last["phase"]
            after = self._template(template.on_exit, "onExit", scope, {}, on_exit=True)
            last = after if last["phase"] == "Succeeded" else last
        shutdown = self._shutdown()
        stopped = f"Stopped with strategy '{shutdown}'" if shutdown and last["phase"] in BAD else ""
        return end(self._host, self._name, last["phase"], stopped or last.get("message", ""))

    def _faults(self) -> dict[str, str]:
        """Say what is wrong with the Workflow itself, all at once."""
        template, spec = self._host.template, self._spec
        faults = {f"spec.{name}": "not allowed here" for name in sorted(spec.keys() - SPEC_FIELDS)}
        if (spec.get("workflowTemplateRef") or {}).get("name") != template.name:
            faults["spec.workflowTemplateRef.name"] = f"must be {template.name}"
        if spec.get("entrypoint", template.entrypoint) != template.entrypoint:
            faults["spec.entrypoint"] = f"must be {template.entrypoint}"
        given = [p["name"] for p in items(spec, "arguments", "parameters")]
        for name, default in template.parameters.items():
            if given.count(name) != 1 and (given.count(name) or default is None):
                faults[f"spec.arguments.{name}"] = "given twice" if name in given else "missing"
        for parameter in items(spec, "arguments", "parameters"):
            if parameter["name"] not in template.parameters:
                faults[f"spec.arguments.{parameter['name']}"] = "unknown"
            elif not isinstance(parameter.get("value"), str):
                faults[f"spec.arguments.{parameter['name']}"] = "must be a text"
        return faults

    # What the row holds

    def _begin(self, status: Document) -> None:
        status.setdefault("startedAt", timestamp(self._host.clock()))
        status.setdefault("nodes", {})
        status.setdefault("outputs", {"parameters": []})
        status["phase"] = "Running"
        status.pop("message", None)

    def _write(self, change: Callable[[Document], None]) -> Document:
        return update(self._host.objects, self._name, lambda doc: change(doc.setdefault("status", {})))

    def _put(self, key: str, kind: str, template: str, **fields: Any) -> Node:  # a node's fields
        """Write a node, and the global outputs that it has."""
        now = timestamp(self._host.clock())
        node: Node = {"name": key, "type": kind, "templateName": template, **fields}
        node["displayName"] = key.rpartition(".")[2]
        first = self._nodes.get(key) or self._nodes.get(f"{key}(0)") or {}
        node["startedAt"] = first.get("startedAt", now)
        if node["phase"] in ENDED:
            node["finishedAt"] = now
        found = {p["globalName"]: p["value"] for p in items(node, "outputs", "parameters") if "globalName" in p}

        def change(status: Document) -> None:
            status["nodes"][key] = node
            outputs = {p["name"]: p["value"] for p in status["outputs"]["parameters"]} | found
            status["outputs"]["parameters"] = [{"name": n, "value": v} for n, v in outputs.items()]

        self._write(change)
        self._nodes[key] = node
        return node

    def _done(self, key: str) -> Node | None:
        node = self._nodes.get(key)
        return node if node is not None and node["phase"] in ENDED else None

    def _shutdown(self) -> str:
        shutdown: str = read(self._host.objects, self._name)["spec"].get("shutdown", "")
        return shutdown

    def _stopped(self, on_exit: bool) -> str | None:
        """Say why nodes may not run (on), from the row as it was at most a moment ago."""
        if self._host.stopping.is_set():
            return "the runner stops"
        if time.monotonic() - self._looked >= self._host.settings.poll_s:
            self._looked = time.monotonic()
            try:
                doc = read(self._host.objects, self._name)
            except Temporary:  # no news; the next look is soon
                return None
            shutdown = doc["spec"].get("shutdown")
            self._stop_reason = None
            if shutdown:
                self._stop_reason = (f"workflow shutdown with strategy: {shutdown}", shutdown == "Stop")
            elif self._host.overdue(doc):
                self._stop_reason = ("Step exceeded its deadline", True)
        reason, spares_on_exit = self._stop_reason or (None, True)
        return None if on_exit and spares_on_exit else reason

    # Templates

    def _template(self, name: str, key: str, scope: Scope, artifacts: Mapping[str, Path], *, on_exit: bool) -> Node:
        template = self._host.template.templates[name]
        if "steps" in template:
            return self._steps(template, key, scope, on_exit)
        if "suspend" in template:
            return self._suspend(template, key, on_exit)
        return self._retried(template, key or "main", scope, artifacts, on_exit)

    def _steps(self, template: Template, prefix: str, outer: Scope, on_exit: bool) -> Node:
        scope = dict(outer)
        for group in template["steps"]:
            keys = [f"{prefix}.{step['name']}".lstrip(".") for step in group]
            with ThreadPoolExecutor(len(group)) as pool:
                futures = [pool.submit(self._step, *one, scope, on_exit) for one in zip(group, keys, strict=True)]
            nodes = [future.result() for future in futures]
            for step, key, node in zip(group, keys, nodes, strict=True):
                tolerated = step.get("continueOn", {}).get(node["phase"].lower(), False)
                if node["phase"] in BAD and not tolerated:
                    return {"phase": "Failed", "message": f"{key}: {node.get('message', '')}"}
                scope |= self._outputs(step, node)
        return {"phase": "Succeeded"}

    def _outputs(self, step: Template, node: Node) -> dict[str, str]:
        declared = items(self._host.template.templates[step["template"]], "outputs", "parameters")
        values = {p["name"]: p["value"] for p in items(node, "outputs", "parameters")}
        if node["phase"] == "Skipped":
            values = {p["name"]: p["valueFrom"]["default"] for p in declared if "default" in p["valueFrom"]}
        return {f"steps.{step['name']}.outputs.parameters.{name}": value for name, value in values.items()}

    def _step(self, step: Template, key: str, scope: Scope, on_exit: bool) -> Node:
        done = self._done(key)
        if done is not None:
            return done
        target = self._host.template.templates[step["template"]]
        try:
            if not holds(step.get("when"), scope):
                return self._put(key, "Skipped", target["name"], phase="Skipped", message="when is false")
            given = {p["name"]: p["value"] for p in items(target, "inputs", "parameters") if "value" in p}
            given |= {p["name"]: substitute(p["value"], scope) for p in items(step, "arguments", "parameters")}
            beside = key.removesuffix(step["name"])
            artifacts = {a["name"]: self._artifact(beside, a["from"]) for a in items(step, "arguments", "artifacts")}
        except Permanent as exc:
            message = f"unable to resolve references: {exc}"
            return self._put(key, "Pod", target["name"], phase="Error", message=message)
        inner = {name: value for name, value in scope.items() if name.startswith("workflow.")}
        inner |= {f"inputs.parameters.{name}": value for name, value in given.items()}
        return self._template(target["name"], key, inner, artifacts, on_exit=on_exit)

    def _artifact(self, prefix: str, reference: str) -> Path:
        _, step, _, _, name = TAG.sub(r"\1", reference).strip().split(".", 4)  # {{steps.S.outputs.artifacts.A}}
        path = self._directory / ARTIFACTS / f"{prefix}{step}" / name
        if not path.exists():
            raise Permanent(f"step {step} left no artifact {name}")
        return path

    def _suspend(self, template: Template, key: str, on_exit: bool) -> Node:
        reason = self._stopped(on_exit)
        if reason and not self._host.stopping.is_set():
            return self._put(key, "Suspend", template["name"], phase="Failed", message=reason)
        if key not in self._nodes:
            self._put(key, "Suspend", template["name"], phase="Running", message="waits for a person")
        raise Halt

    # Pods

    def _retried(
        self, template: Template, key: str, scope: Scope, artifacts: Mapping[str, Path], on_exit: bool
    ) -> Node:
        strategy = template.get("retryStrategy")
        if strategy is None:
            return self._attempt(template, key, key, scope, artifacts, on_exit)
        failures = 0
        while True:
            node = self._attempt(template, key, f"{key}({failures})", scope, artifacts, on_exit)
            failures += 1
            end = {field: node[field] for field in ("phase", "exitCode", "outputs", "message") if field in node}
            if node["phase"] not in BAD:
                return self._put(key, "Retry", template["name"], **end)
            end.pop("outputs", None)
            main_code = int(node.get("outputs", {}).get("exitCode", -1))
            reason = self._stopped(on_exit)
            if reason is None and failures > strategy["limit"]:
                reason = "No more retries left"
            if reason is None and not retries(strategy, main_code, node["phase"], node["message"]):
                reason = "retryStrategy.expression evaluated to false"
            reason = reason or self._back_off(strategy, failures, on_exit)
            if reason is not None:
                self._halt_if_stopping()
                return self._put(key, "Retry", template["name"], **end | {"message": f"{reason}: {node['message']}"})

    def _back_off(self, strategy: Template, failures: int, on_exit: bool) -> str | None:
        settings = self._host.settings
        until = time.monotonic() + min(backoff_s(strategy, failures), settings.longest_backoff_s)
        while (left := until - time.monotonic()) > 0:
            reason = self._stopped(on_exit)
            if reason is not None:
                return reason
            self._host.stopping.wait(min(left, settings.poll_s))
        return self._stopped(on_exit)

    def _halt_if_stopping(self) -> None:
        if self._host.stopping.is_set():
            raise Halt

    def _attempt(
        self,
        template: Template,
        step: str,
        key: str,
        scope: Scope,
        artifacts: Mapping[str, Path],
        on_exit: bool,
    ) -> Node:
        done = self._done(key)
        if done is not None:
            return done
        reason = self._stopped(on_exit)
        self._halt_if_stopping()
        if reason is not None:
            return self._put(key, "Pod", template["name"], phase="Failed", message=reason)
        self._put(key, "Pod", template["name"], phase="Running")
        pod = _Pod(self._host, template, self._directory / key, scope)
        try:
            pod.prepare(artifacts)
            end = pod.run(lambda: self._stopped(on_exit))
        except (Permanent, OSError) as exc:
            end = {"phase": "Failed", "message": str(exc)}
        self._halt_if_stopping()
        if "outputs" in end:
            self._collect(pod, template, self._directory / ARTIFACTS / step, end)
        return self._put(key, "Pod", template["name"], **end)

    def _collect(self, pod: _Pod, template: Template, target: Path, end: Node) -> None:
        """Put the main container's outputs into the node, of a failed one too."""
        try:
            for parameter in items(template, "outputs", "parameters"):
                value = {"name": parameter["name"], "value": pod.parameter(parameter["valueFrom"])}
                if "globalName" in parameter:
                    value["globalName"] = parameter["globalName"]
                end["outputs"].setdefault("parameters", []).append(value)
            for artifact in items(template, "outputs", "artifacts"):
                if pod.keep(artifact, target / artifact["name"]):
                    end["outputs"].setdefault("artifacts", []).append({"name": artifact["name"]})
        except (Permanent, OSError) as exc:  # shutil.Error is an OSError
            if end["phase"] not in BAD:
                end.update(phase="Error", message=f"wait: {exc}")


class _Pod:
    """Directories and processes of one attempt."""

    def __init__(self, host: Host, template: Template, directory: Path, scope: Scope) -> None:
        self._host, self._template, self._scope = host, template, scope
        self._directory = directory
        self._main = {**template["container"], "name": "main"}
        self._inputs: dict[str, Path] = {}

    def prepare(self, artifacts: Mapping[str, Path]) -> None:
        """Make a fresh directory with the volumes and the input artifacts. Raises Permanent, OSError."""
        shutil.rmtree(self._directory, ignore_errors=True)
        for name in ("home", "tmp"):
            (self._directory / name).mkdir(parents=True)
        for volume in items(self._template, "volumes"):
            self._fill(volume, self._directory / "volumes" / volume["name"])
        for artifact in items(self._template, "inputs", "artifacts"):
            copy = self._directory / "inputs" / artifact["name"]
            _copy(artifacts[artifact["name"]], copy)
            self._inputs[artifact["path"]] = copy

    def _fill(self, volume: Template, target: Path) -> None:
        target.mkdir(parents=True, mode=0o700)
        source = volume.get("secret") or volume.get("configMap")
        if source is None:
            return
        held, name = (self._host.secrets, "secretName") if "secret" in volume else (self._host.config, "name")
        for key, value in _values(held, source[name], source).items():
            with os.fdopen(os.open(target / key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(value)

    def run(self, stopped: Callable[[], str | None]) -> Node:
        """Run the containers in turn; return the node's phase, message, exit code and, if main ran, outputs."""
        limit = self._template.get("activeDeadlineSeconds")
        until = time.monotonic() + limit if limit is not None else float("inf")

        def stop() -> str | None:
            return DEADLINE if time.monotonic() > until else stopped()

        for container in items(self._template, "initContainers"):
            node = self._end(container, self._start(container, stop))
            if node["phase"] in BAD:
                return node
        over = threading.Event()
        beside = items(self._template, "sidecars")
        with ThreadPoolExecutor(len(beside) or 1) as pool:
            try:
                told = [pool.submit(self._start, each, lambda: "over" if over.is_set() else None) for each in beside]
                ended = self._start(self._main, stop)
            finally:
                over.set()
        node = self._end(self._main, ended)
        for container, future in zip(beside, told, strict=True):
            if node["phase"] not in BAD and (code := future.result().exit_code) not in (0, *SIGNALLED):
                node |= {"phase": "Failed", "message": f"{container['name']}: Error (exit code {code})"}
        return node | {"outputs": {"exitCode": str(ended.exit_code)}}

    def _start(self, container: Template, stop: Callable[[], str | None]) -> process.Ended:
        mounts = self._mounts(container)
        argv, env = self._argv(container, mounts), self._env(container, mounts)
        return process.run(argv, env, self._directory / "tmp", self._directory / f"{container['name']}.log", stop)

    @staticmethod
    def _end(container: Template, ended: process.Ended) -> Node:
        node: Node = {"phase": "Succeeded", "exitCode": ended.exit_code}
        if ended.stopped or ended.exit_code:
            message = f"{container['name']}: Error (exit code {ended.exit_code})"
            message = ended.stopped or (f"{message}: {ended.tail}" if ended.tail else message)
            node |= {"phase": "Failed", "message": message}
        return node

    def parameter(self, source: Template) -> str:
        """Read an output parameter, one line end less. Raises Permanent, OSError."""
        path = self._outside(source["path"])
        try:
            with path.open("rb") as file:
                data = file.read(OUTPUT_LIMIT + 1)
        except OSError:
            if "default" not in source:
                raise
            return str(source["default"])
        if len(data) > OUTPUT_LIMIT:
            raise Permanent(f"{source['path']} is longer than {OUTPUT_LIMIT} bytes")
        return data.decode(errors="replace").removesuffix("\n")

    def keep(self, artifact: Template, target: Path) -> bool:
        """Copy an output artifact to where later steps find it; False if it is optional and not there."""
        source = self._outside(artifact["path"])
        if artifact.get("optional", False) and not source.exists():
            return False
        shutil.rmtree(target, ignore_errors=True)
        _copy(source, target)
        return True

    def _mounts(self, container: Template) -> Mounts:
        volumes = self._directory / "volumes"
        mounts = {m["mountPath"]: volumes / m["name"] for m in items(container, "volumeMounts")}
        return mounts | self._inputs if container is self._main else mounts

    def _outside(self, path: str) -> Path:
        return Path(_rewrite(path, self._mounts(self._main), {}))

    def _argv(self, container: Template, mounts: Mounts) -> list[str]:
        words = [_rewrite(word, mounts, self._scope) for word in (*container["command"], *items(container, "args"))]
        return [sys.executable if words[0] == "python" else words[0], *words[1:]]

    def _env(self, container: Template, mounts: Mounts) -> dict[str, str]:
        home, tmp = str(self._directory / "home"), str(self._directory / "tmp")
        env = {"PATH": self._host.path, "LANG": "C.UTF-8", "HOME": home, "TMPDIR": tmp}
        for source in items(container, "envFrom"):
            env |= _values(self._host.secrets, source["secretRef"]["name"], source["secretRef"])
        for variable in items(container, "env"):
            if "value" in variable:
                env[variable["name"]] = _rewrite(variable["value"], mounts, self._scope)
                continue
            reference = variable["valueFrom"]["configMapKeyRef"]
            values = _values(self._host.config, reference["name"], reference)
            if reference["key"] in values:
                env[variable["name"]] = values[reference["key"]]
            elif not reference.get("optional", False):
                raise Permanent(f"{variable['name']} needs {reference['key']} of {reference['name']}")
        return env


def _values(held: Mapping[str, Mapping[str, str]], name: str, reference: Template) -> Mapping[str, str]:
    """Look up a ConfigMap or Secret; empty if it is optional and not there. Raises Permanent."""
    if name not in held and not reference.get("optional", False):
        raise Permanent(f"{name} isn't there")
    return held.get(name, {})


def _rewrite(text: str, mounts: Mounts, scope: Scope) -> str:
    """Fill a text of the template; a mounted path at its beginning becomes a local one, in a value never."""
    for mount in sorted(mounts, key=len, reverse=True):
        if text == mount or text.startswith(f"{mount}/"):
            return f"{mounts[mount]}{substitute(text[len(mount) :], scope)}"
    return substitute(text, scope)


def _copy(source: Path, target: Path) -> None:
    """Copy a file or directory as it is: a link stays a link, for the next step to refuse."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy2(source, target, follow_symlinks=False)
