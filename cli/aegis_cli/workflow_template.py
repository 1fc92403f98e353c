"""What one machine reads in an Argo WorkflowTemplate. Pure: starts nothing, reads no file.

Two lists stand in `SHAPES`: the fields that the local runner executes, and those that only a cluster can honour.
Any other field is a fault, by name: what the runner doesn't know it doesn't skip in silence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aegis.errors import Permanent

TAG = re.compile(r"\{\{(.*?)\}\}")


@dataclass(frozen=True, slots=True)
class Shape:
    """One kind of mapping: field -> kind of its value for what runs here; names of what only a cluster honours."""

    executed: Mapping[str, str]
    cluster: frozenset[str] = frozenset()
    required: tuple[str, ...] = ()


def _shape(executed: str, cluster: str = "", required: str = "") -> Shape:
    pairs = (item.partition(":") for item in executed.split())
    return Shape({name: kind for name, _, kind in pairs}, frozenset(cluster.split()), tuple(required.split()))


# What the shipped template says (and `args`, and defaults of parameters): another field is added here when it is needed
# there, and not before.
_CONTAINER = (
    "name:text command:[text] args:[text] env:[env] envFrom:[envFrom] volumeMounts:[mount]",
    "image resources securityContext terminationMessagePolicy",
)
SHAPES: Mapping[str, Shape] = {
    "workflowTemplate": _shape(
        "apiVersion:text kind:text metadata:metadata spec:spec", required="apiVersion kind metadata spec"
    ),
    "metadata": _shape("name:text", "labels", "name"),
    "spec": _shape(
        "activeDeadlineSeconds:number arguments:declared entrypoint:text onExit:text templates:[template]",
        "automountServiceAccountToken executor podGC podSpecPatch securityContext serviceAccountName synchronization"
        " ttlStrategy",
        "entrypoint templates",
    ),
    "declared": _shape("parameters:[parameter]"),
    "parameter": _shape("name:text value:text description:text", required="name"),
    "template": _shape(
        "name:text inputs:inputs outputs:outputs steps:[[step]] suspend:suspend container:container"
        " initContainers:[initContainer] sidecars:[initContainer] volumes:[volume] retryStrategy:retryStrategy"
        " activeDeadlineSeconds:number",
        "metadata serviceAccountName synchronization",
        "name",
    ),
    "suspend": _shape(""),
    "step": _shape(
        "name:text template:text arguments:arguments when:text continueOn:continueOn",
        required="name template",
    ),
    "continueOn": _shape("failed:flag error:flag"),
    "arguments": _shape("parameters:[argument] artifacts:[artifactArgument]"),
    "argument": _shape("name:text value:text", required="name value"),
    "artifactArgument": _shape("name:text from:text", required="name from"),
    "inputs": _shape("parameters:[parameter] artifacts:[inputArtifact]"),
    "inputArtifact": _shape("name:text path:text", required="name path"),
    "outputs": _shape("parameters:[outputParameter] artifacts:[outputArtifact]"),
    "outputParameter": _shape("name:text valueFrom:valueFrom globalName:text", required="name valueFrom"),
    "valueFrom": _shape("path:text default:text", required="path"),
    "outputArtifact": _shape("name:text path:text optional:flag", required="name path"),
    "container": _shape(*_CONTAINER, "command"),
    "initContainer": _shape(*_CONTAINER, "name command"),
    "env": _shape("name:text value:text valueFrom:envSource", required="name"),
    "envSource": _shape("configMapKeyRef:keyRef", required="configMapKeyRef"),
    "keyRef": _shape("name:text key:text optional:flag", required="name key"),
    "envFrom": _shape("secretRef:ref", required="secretRef"),
    "ref": _shape("name:text optional:flag", required="name"),
    "mount": _shape("name:text mountPath:text", "readOnly", "name mountPath"),
    "volume": _shape(
        "name:text emptyDir:emptyDir secret:secretVolume configMap:configMapVolume projected:projectedVolume",
        required="name",
    ),
    "emptyDir": _shape("", "sizeLimit"),
    "secretVolume": _shape("secretName:text optional:flag", "defaultMode", "secretName"),
    "projectedVolume": _shape("", "sources"),  # a token of the cluster's: here the folder stays empty
    "configMapVolume": _shape("name:text optional:flag", required="name"),
    "retryStrategy": _shape("limit:number expression:text backoff:backoff", required="limit expression"),
    "backoff": _shape("duration:duration factor:number cap:duration", required="duration"),
}
_DURATION = re.compile(r"(\d+)|((\d+h)?(\d+m)?(\d+s)?)(?<=[hms])")
_SCALARS: Mapping[str, Callable[[object], bool]] = {
    "text": lambda value: isinstance(value, str),
    "number": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "flag": lambda value: isinstance(value, bool),
    "duration": lambda value: isinstance(value, str) and _DURATION.fullmatch(value) is not None,
}

Template = Mapping[str, Any]
"""One template as the document has it, after its fields were checked."""


@dataclass(frozen=True, slots=True)
class WorkflowTemplate:
    """A template that the runner can execute as it stands."""

    name: str
    entrypoint: str
    on_exit: str | None
    deadline_s: int | None
    """Seconds from the start of the Workflow; onExit is not subject to it."""
    parameters: Mapping[str, str | None]
    """Declared workflow parameters and their defaults."""
    templates: Mapping[str, Template]


def parse(document: object) -> WorkflowTemplate:
    """Check a WorkflowTemplate document. Raises Permanent with every fault, by path."""
    broken: dict[str, str] = {}
    unknown: dict[str, str] = {}
    texts = list(_walk(document, "workflowTemplate", "", broken, unknown))
    if broken or not isinstance(document, dict):  # the other checks need the right types
        raise Permanent("this WorkflowTemplate can't run here", {**broken, **unknown})
    faults = dict(unknown)
    _check_meaning(document, texts, faults)
    if faults:
        raise Permanent("this WorkflowTemplate can't run here", faults)
    spec = document["spec"]
    return WorkflowTemplate(
        name=document["metadata"]["name"],
        entrypoint=spec["entrypoint"],
        on_exit=spec.get("onExit"),
        deadline_s=spec.get("activeDeadlineSeconds"),
        parameters={p["name"]: p.get("value") for p in items(spec, "arguments", "parameters")},
        templates={template["name"]: template for template in spec["templates"]},
    )


def items(holder: Template, *path: str) -> list[Template]:
    """Return the list at the end of a path of optional mappings."""
    for name in path[:-1]:
        holder = holder.get(name) or {}
    return holder.get(path[-1]) or []


def _walk(
    value: object, kind: str, path: str, broken: dict[str, str], unknown: dict[str, str]
) -> Iterator[tuple[str, str]]:
    """Check fields and types; yield every executed text with its path."""
    if kind.startswith("["):
        if not isinstance(value, list):
            broken[path] = "must be a list"
            return
        for i, item in enumerate(value):
            yield from _walk(item, kind[1:-1], f"{path}[{i}]", broken, unknown)
    elif kind in _SCALARS:
        if not _SCALARS[kind](value):
            broken[path] = f"must be a {kind}"
        elif isinstance(value, str):
            yield path, value
    elif not isinstance(value, dict):
        broken[path or "document"] = "must be a mapping"
    else:
        shape = SHAPES[kind]
        for name in shape.required:
            if name not in value:
                broken[f"{path}.{name}".lstrip(".")] = "missing"
        for name, item in value.items():
            where = f"{path}.{name}".lstrip(".")
            if name in shape.executed:
                yield from _walk(item, shape.executed[name], where, broken, unknown)
            elif name not in shape.cluster:
                unknown[where] = "a field that this runner neither executes nor knows as one for clusters"


def _check_meaning(document: Mapping[str, Any], texts: Sequence[tuple[str, str]], faults: dict[str, str]) -> None:
    spec = document["spec"]
    if document["kind"] != "WorkflowTemplate" or not document["apiVersion"].startswith("argoproj.io/"):
        faults["kind"] = "must be an argoproj.io WorkflowTemplate"
    templates = {template["name"]: template for template in spec["templates"]}
    _unique(spec["templates"], "spec.templates", faults)
    for name in ("entrypoint", "onExit"):
        if name in spec and spec[name] not in templates:
            faults[f"spec.{name}"] = f"no template {spec[name]!r}"
    always = {"workflow.name", "workflow.uid", "workflow.status"}
    always |= {f"workflow.parameters.{p['name']}" for p in items(spec, "arguments", "parameters")}
    known = {path: always for path, _ in texts}
    for i, template in enumerate(spec["templates"]):
        path = f"spec.templates[{i}]"
        scope = always | {f"inputs.parameters.{p['name']}" for p in items(template, "inputs", "parameters")}
        known.update({where: scope for where in known if where.startswith(f"{path}.")})
        if sum(kind in template for kind in ("steps", "container", "suspend")) != 1:
            faults[path] = "must have one of steps, container, suspend"
        elif "steps" in template:
            _check_steps(template, path, templates, scope, known, faults)
        elif "container" in template:
            _check_container(template, path, faults)
    for path, text in texts:
        for fault in _tags(text, known[path]) if not path.endswith(".description") else ():
            faults[path] = fault


def _tags(text: str, known: set[str]) -> Iterator[str]:
    for tag in TAG.findall(text):
        if tag.strip() not in known:
            yield f"nothing is known as {{{{{tag}}}}} here"
    if "{{" in TAG.sub("", text):
        yield "{{ without }}"


def _unique(named: Sequence[Template], path: str, faults: dict[str, str]) -> None:
    names = [item["name"] for item in named]
    for name in {name for name in names if names.count(name) > 1}:
        faults[path] = f"{name!r} stands there more than once"


def _check_steps(
    template: Template, path: str, templates: Mapping[str, Template], scope: set[str],
    known: dict[str, set[str]], faults: dict[str, str],
) -> None:  # fmt: skip
    _unique([step for group in template["steps"] for step in group], f"{path}.steps", faults)
    for g, group in enumerate(template["steps"]):
        results: set[str] = set()
        for s, step in enumerate(group):
            where = f"{path}.steps[{g}][{s}]"
            known.update({one: scope for one in known if one.startswith(f"{where}.")})
            if "when" in step and conditions(step["when"]) is None:
                faults[f"{where}.when"] = "must be comparisons by == or != of quoted texts, joined by &&"
            target = templates.get(step["template"])
            if target is None:
                faults[f"{where}.template"] = f"no template {step['template']!r}"
                continue
            _check_arguments(step, target, where, faults)
            base = f"steps.{step['name']}.outputs"
            results |= {f"{base}.parameters.{p['name']}" for p in items(target, "outputs", "parameters")}
            results |= {f"{base}.artifacts.{a['name']}" for a in items(target, "outputs", "artifacts")}
        scope = scope | results


def _check_arguments(step: Template, target: Template, where: str, faults: dict[str, str]) -> None:
    for kind in ("parameters", "artifacts"):
        given = {a["name"] for a in items(step, "arguments", kind)}
        wanted = {w["name"]: "value" in w for w in items(target, "inputs", kind)}
        for name in sorted(given - wanted.keys()):
            faults[f"{where}.arguments.{kind}"] = f"template {target['name']!r} has no input {name!r}"
        for name in sorted(name for name, default in wanted.items() if name not in given and not default):
            faults[f"{where}.arguments.{kind}"] = f"template {target['name']!r} needs {name!r}"
    for i, artifact in enumerate(items(step, "arguments", "artifacts")):
        if not TAG.fullmatch(artifact["from"]):
            faults[f"{where}.arguments.artifacts[{i}].from"] = "must be one {{steps.…}} reference"


def _check_container(template: Template, path: str, faults: dict[str, str]) -> None:
    volumes = {volume["name"] for volume in items(template, "volumes")}
    for i, volume in enumerate(items(template, "volumes")):
        if len(volume) != 2:
            faults[f"{path}.volumes[{i}]"] = "must have one of emptyDir, secret, configMap, projected"
    containers = [(f"{path}.container", template["container"])]
    for kind in ("initContainers", "sidecars"):
        containers += [(f"{path}.{kind}[{i}]", each) for i, each in enumerate(items(template, kind))]
    for where, container in containers:
        if not container["command"]:
            faults[f"{where}.command"] = "must name a program"
        for i, mount in enumerate(items(container, "volumeMounts")):
            if mount["name"] not in volumes:
                faults[f"{where}.volumeMounts[{i}].name"] = f"no volume {mount['name']!r}"
        for i, variable in enumerate(items(container, "env")):
            if "$(" in variable.get("value", ""):
                faults[f"{where}.env[{i}].value"] = "$(…) would be expanded on a cluster; it isn't here"
            if ("value" in variable) == ("valueFrom" in variable):
                faults[f"{where}.env[{i}]"] = "must have one of value, valueFrom"
    mounts = [mount["mountPath"] for mount in items(template["container"], "volumeMounts")]
    outputs = [p["valueFrom"]["path"] for p in items(template, "outputs", "parameters")]
    for output in outputs + [a["path"] for a in items(template, "outputs", "artifacts")]:
        if not any(output.startswith(f"{mount}/") for mount in mounts):
            faults[f"{path}.outputs"] = f"{output} lies on no mounted volume"
    strategy = template.get("retryStrategy")
    if strategy and _alternatives(strategy["expression"]) is None:
        faults[f"{path}.retryStrategy.expression"] = "has a part that this runner can't evaluate"


def substitute(text: str, scope: Mapping[str, str]) -> str:
    """Fill every {{name}} once. A value is never looked at again, so one that holds {{…}} arrives as it is.

    Argo itself looks again, and would evaluate such a value: the allow-lists in front of it refuse them.
    Raises Permanent for a name without a value (an output that its step never wrote).
    """

    def fill(match: re.Match[str]) -> str:
        name = match.group(1).strip()
        if name not in scope:
            raise Permanent(f"{{{{{name}}}}} has no value")
        return scope[name]

    return TAG.sub(fill, text)


_OPERAND = r"\s*(?:'([^']*)'|\"([^\"]*)\")\s*"
_COMPARISON = re.compile(f"{_OPERAND}(==|!=){_OPERAND}")


def conditions(when: str) -> list[tuple[str, str, str]] | None:
    """Split `'a' == 'b' && …` into (left, operator, right), unsubstituted; None if it is anything else."""
    found = []
    for part in when.split("&&"):
        match = _COMPARISON.fullmatch(part)
        if match is None:
            return None
        a, b, operator, c, d = match.groups()
        found.append((a if a is not None else b, operator, c if c is not None else d))
    return found


def holds(when: str | None, scope: Mapping[str, str]) -> bool:
    """Evaluate a step's `when`. It is split before values go in: no value becomes part of the expression."""
    return all(
        (substitute(left, scope) == substitute(right, scope)) == (operator == "==")
        for left, operator, right in conditions(when or "") or ()
    )


Check = Callable[[int, str, str], bool]
"""(exit code, phase, message) of the last attempt -> whether this part of a retry expression holds."""


def _in_codes(match: re.Match[str]) -> Check:
    codes = {int(code) for code in match.group(1).split(",")}
    return lambda exit_code, _phase, _message: exit_code in codes


def _is_phase(match: re.Match[str]) -> Check:
    return lambda _exit_code, phase, _message: phase == match.group(1)


def _has_text(match: re.Match[str]) -> Check:
    return lambda _exit_code, _phase, message: match.group(1) in message


def _lacks_text(match: re.Match[str]) -> Check:
    return lambda _exit_code, _phase, message: match.group(1) not in message


_CHECKS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], Check]], ...] = (
    (re.compile(r"asInt\(lastRetry\.exitCode\) in \[([\d, ]+)\]"), _in_codes),
    (re.compile(r'lastRetry\.status == "([^"]*)"'), _is_phase),
    (re.compile(r'lastRetry\.message contains "([^"]*)"'), _has_text),
    (re.compile(r'!\(lastRetry\.message contains "([^"]*)"\)'), _lacks_text),
)


def _alternatives(expression: str) -> list[list[Check]] | None:
    """Split a retry expression into alternatives of joined checks; None if a part is unknown."""
    found = [[_check(part.strip()) for part in side.split("&&")] for side in expression.split("||")]
    known = [[check for check in side if check is not None] for side in found]
    return known if [len(side) for side in known] == [len(side) for side in found] else None


def _check(part: str) -> Check | None:
    for pattern, make in _CHECKS:
        match = pattern.fullmatch(part)
        if match:
            return make(match)
    return None


def retries(strategy: Template, exit_code: int, phase: str, message: str) -> bool:
    """Say whether a failed attempt is worth another one. `exit_code` is -1 if the main container never ran."""
    alternatives = _alternatives(strategy["expression"]) or []
    return any(all(check(exit_code, phase, message) for check in side) for side in alternatives)


def backoff_s(strategy: Template, failures: int) -> float:
    """Return how many seconds to wait after so many failed attempts."""
    backoff = strategy.get("backoff")
    if not backoff:
        return 0.0
    wait = seconds(backoff["duration"]) * float(backoff.get("factor", 1)) ** (failures - 1)
    return min(wait, seconds(backoff["cap"])) if "cap" in backoff else wait


def seconds(duration: str) -> float:
    """Read `90`, `90s`, `1m30s`, `2h` as seconds."""
    if duration.isdigit():
        return float(duration)
    parts = re.findall(r"(\d+)([hms])", duration)
    return float(sum(int(number) * {"h": 3600, "m": 60, "s": 1}[unit] for number, unit in parts))
