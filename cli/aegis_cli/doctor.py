"""What is wrong with an installation, and the command that mends it: documents in, findings out. Pure.

`examine` gets the documents. A Secret comes here as the digests of its values by key, never as values.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import yaml

from aegis.errors import Permanent, Temporary
from aegis.events import DETECTED, FINISHED, REJECTED, RESOLVED
from retrain_trigger.model import from_document

from .story import shown

OK, WRONG, UNKNOWN = "ok", "wrong", "unknown"
ARGO = (4, 1, 2)
"""The oldest controller."""
_LEAST = ".".join(map(str, ARGO))
ARGO_INSTALL = f"https://github.com/argoproj/argo-workflows/releases/download/v{_LEAST}/install.yaml"
ARGO_WHY = "before it, a Workflow ended while it waits for its lock counts as Succeeded, and a hiccup there fails it"
MAX_SKEW_S = 60
"""Half of the two minutes that `decide` allows for clocks."""
APPLY = "kubectl apply --server-side -k knative/overlays/OVERLAY   # or -f install-OVERLAY.yaml, of this version"
_ADAPTED = frozenset(
    ("image", "imagePullPolicy", "imagePullSecrets", "resources", "nodeSelector", "tolerations", "affinity",
     "priorityClassName", "podPriorityClassName")
)  # fmt: skip
"""What differs from cluster to cluster in a WorkflowTemplate, and changes nothing of what a retrain does."""


class Unseen(str):
    """Why something could not be looked at."""


Document = Mapping[str, Any]
Seen = Document | Unseen | None
"""A document, why it could not be read, or None where there is none."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: `ok`, `wrong` or `unknown`, why, and if something can be done: what."""

    check: str
    state: str
    message: str
    mend: str = ""

    def as_json(self) -> dict[str, str]:
        return asdict(self)


def told(findings: Sequence[Finding]) -> str:
    """For people."""
    lines = []
    for finding, after in zip(findings, [*findings[1:], None], strict=True):
        lines.append(f"{finding.state:8} {shown(finding.check)}: {shown(finding.message)}")
        once = after is None or after.state == OK or after.mend != finding.mend  # the same command mends both
        if finding.mend and finding.state != OK and once:
            lines += [f"{'':9}  {shown(line)}" for line in finding.mend.split("\n")]
    counts = {state: sum(finding.state == state for finding in findings) for state in (OK, WRONG, UNKNOWN)}
    return "\n".join([*lines, "", ", ".join(f"{count} {state}" for state, count in counts.items())])


def judged(
    check: str, seen: Seen, mend: str, fault: Callable[[Document], str | None] = lambda _: None, fine: str = "is there"
) -> Finding:
    """The finding about one document; `fault` says what is wrong with it."""
    if isinstance(seen, Unseen):
        return Finding(check, UNKNOWN, seen)
    wrong = "is not there" if seen is None else fault(seen)
    return Finding(check, WRONG, wrong, mend) if wrong else Finding(check, OK, fine)


# --- what was applied ---------------------------------------------------------------------------------------------


def definition(seen: Seen, ours: Document, mend: str) -> Finding:
    """The CustomResourceDefinition against this version's."""

    def fault(theirs: Document) -> str | None:
        found = [path for part in ("group", "scope", "versions") for path in _differs(ours, theirs, "spec", part)]
        return f"is not this version's: {_some(found)}" if found else _not(theirs, "Established")

    return judged("ManagedModel definition", seen, mend, fault, "is this version's")


def template(seen: Seen, ours: Document) -> Finding:
    """The WorkflowTemplate against this version's, what clusters adapt aside."""

    def fault(theirs: Document) -> str | None:
        found = list(_differs(ours, theirs, "spec"))
        return f"is not this version's: {_some(found)}" if found else None

    mend = APPLY + "\n# a template of your own goes under a name of its own: spec.workflowTemplate of a ManagedModel"
    return judged("WorkflowTemplate aegis-retrain", seen, mend, fault, "is this version's")


def _differs(ours: Document, theirs: Document, *path: str) -> Iterator[str]:
    one: Any = ours
    other: Any = theirs
    for part in path:
        one, other = one.get(part), (other or {}).get(part)
    yield from differences(one, other, ".".join(path))


def differences(ours: Any, theirs: Any, path: str) -> Iterator[str]:
    """The paths at which two documents differ, what clusters adapt aside."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        image = ours.get("name") == "AEGIS_TRAINER_IMAGE"  # a variable that names an image, and is adapted with it
        for key in sorted({*ours, *theirs} - _ADAPTED - ({"value"} if image else set())):
            yield from differences(ours.get(key), theirs.get(key), f"{path}.{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for place, pair in enumerate(zip(ours, theirs, strict=True)):
            yield from differences(*pair, f"{path}[{place}]")
    elif isinstance(ours, str) and isinstance(theirs, str) and ours.split() == theirs.split():
        pass  # kustomize folds long lines anew
    elif ours != theirs:
        yield path


def _some(found: Sequence[str]) -> str:
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def _not(doc: Document, condition: str) -> str | None:
    found = {c.get("type"): c for c in (doc.get("status") or {}).get("conditions") or ()}.get(condition) or {}
    if found.get("status") == "True":
        return None
    return f"is not {condition}: {found.get('reason') or 'nothing says why'} {found.get('message') or ''}".rstrip()


# --- Argo ---------------------------------------------------------------------------------------------------------


def argo_kinds(seen: Seen) -> Finding:
    """The API server knows Argo's kinds."""

    def fault(doc: Document) -> str | None:
        known = {resource["name"] for resource in doc.get("resources") or ()}
        missing = {"workflows", "workflowtemplates", "workflowtaskresults"} - known
        return f"{', '.join(sorted(missing))} not known" if missing else None

    return judged("Argo's definitions", seen, f"kubectl apply --server-side -n argo -f {ARGO_INSTALL}", fault)


def controllers(deployments: Iterable[Document]) -> list[tuple[Document, Document]]:
    """The Deployments that run Argo's workflow-controller, whatever they are called, and the container that does."""
    return [
        (doc, container)
        for doc in deployments
        for container in doc["spec"]["template"]["spec"]["containers"]
        if re.search(r"(^|/)workflow-controller([:@]|$)", str(container.get("image")))
    ]


def argo_version(found: Sequence[tuple[Document, Document]] | Unseen) -> Finding:
    """Argo's controller runs, and is new enough as far as its image's tag says."""
    check, least, mend = "Argo's controller", _LEAST, f"kubectl apply --server-side -n argo -f {ARGO_INSTALL}"
    if isinstance(found, Unseen):
        return Finding(check, UNKNOWN, found)
    if not found:
        return Finding(check, WRONG, "no Deployment runs workflow-controller", mend)
    for doc, container in found:
        namespace, name, image = doc["metadata"].get("namespace"), doc["metadata"]["name"], str(container["image"])
        tag = re.search(r":v?(\d+)\.(\d+)\.(\d+)(-[^@]*)?(@|$)", image)
        if tag and (tuple(map(int, tag.groups()[:3])), not tag[4]) < (ARGO, True):
            return Finding(check, WRONG, f"{image} runs; {least} or newer is needed: {ARGO_WHY}", mend)
        if not (doc.get("status") or {}).get("availableReplicas"):
            return Finding(
                check, WRONG, f"{name} has no pod that is ready", f"kubectl -n {namespace} describe deploy {name}"
            )
        if not tag:
            return Finding(check, UNKNOWN, f"{image} names no version; {least} or newer is needed: {ARGO_WHY}")
    return Finding(check, OK, f"{found[0][1]['image']} runs")


def artifact_repository(own: Seen, controller: Seen) -> Finding:
    """Where Argo keeps a trained model between steps: the namespace's default, else the controller's."""
    check = "artifact repository"
    mend = (
        "kubectl -n aegis-workflows edit configmap artifact-repositories   # with the annotation\n"
        "# workflows.argoproj.io/default-artifact-repository: KEY, and under KEY the bucket as `s3: {...}`:\n"
        "# https://argo-workflows.readthedocs.io/en/latest/configure-artifact-repository/"
    )
    try:
        if isinstance(own, Mapping):
            key = (own["metadata"].get("annotations") or {}).get("workflows.argoproj.io/default-artifact-repository")
            if key in (own.get("data") or {}):  # it counts, even if it is no good
                if _names_a_place(yaml.safe_load(own["data"][key])):
                    return Finding(check, OK, f"{key} of the ConfigMap artifact-repositories")
                return Finding(check, WRONG, f"{key} of the ConfigMap artifact-repositories names no place", mend)
        if isinstance(controller, Mapping):
            data = controller.get("data") or {}
            found = yaml.safe_load(data.get("artifactRepository") or "{}")
            found = found or (yaml.safe_load(data.get("config") or "{}") or {}).get("artifactRepository")
            if _names_a_place(found):
                return Finding(check, OK, "the controller's own")
    except (yaml.YAMLError, AttributeError) as exc:
        return Finding(check, WRONG, f"cannot be read: {type(exc).__name__}", mend)
    for seen in (own, controller):
        if isinstance(seen, Unseen):
            return Finding(check, UNKNOWN, seen)
    return Finding(check, WRONG, "none is configured, so no model gets from train to gate", mend)


def _names_a_place(found: object) -> bool:
    kinds = ("s3", "gcs", "azure", "oss", "artifactory", "hdfs", "plugin")
    return isinstance(found, Mapping) and any(found.get(kind) for kind in kinds)


# --- rights -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Right:
    """What somebody may do in a namespace. `resource` may be `pods/exec`."""

    verb: str
    group: str
    resource: str
    namespace: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}{' ' + self.name if self.name else ''} in {self.namespace}"


def needed(functions: str, workflows: str) -> dict[tuple[str, str], list[Right]]:
    """What each service account has to be allowed."""

    def rights(verbs: str, group: str, resource: str, namespace: str, name: str = "") -> list[Right]:
        return [Right(verb, group, resource, namespace, name) for verb in verbs.split()]

    return {
        (functions, "alert-receiver"): [],
        (functions, "retrain-trigger"): [
            *rights("get list create", "aegis.dev", "managedmodels", functions),
            *rights("patch", "aegis.dev", "managedmodels/status", functions),
            *rights("get patch", "", "configmaps", functions, "aegis-budget"),
            *rights("create", "", "events", functions),
            *rights("create get list", "argoproj.io", "workflows", workflows),
        ],
        (workflows, "aegis-workflow-sa"): [],
        (workflows, "aegis-signer"): [],
        (workflows, "aegis-workflow-executor"): rights("create patch", "argoproj.io", "workflowtaskresults", workflows),
    }


def dangerous(functions: str, workflows: str) -> list[Right]:
    """What none of them may, but for what it needs: secrets, code in pods, rights, other people's ledgers."""
    found = [Right("patch", "aegis.dev", kind, functions) for kind in ("managedmodels", "managedmodels/status")]
    found += [Right(verb, "aegis.dev", "managedmodels", functions) for verb in ("create", "delete")]
    found += [Right(verb, "argoproj.io", "workflows", workflows) for verb in ("create", "patch", "delete")]
    found += [Right("update", "argoproj.io", "workflowtemplates", workflows)]
    for namespace in (functions, workflows):
        found += [Right(verb, "", "secrets", namespace) for verb in ("get", "list")]
        found += [Right("create", "", kind, namespace) for kind in ("pods", "pods/exec", "serviceaccounts/token")]
        found += [Right("update", "", "configmaps", namespace)]
        found += [Right("create", "rbac.authorization.k8s.io", "rolebindings", namespace)]
    return found


def rights(account: str, must: Sequence[Right], may: Mapping[Right, bool] | Unseen) -> Finding:
    """An account may what it has to and nothing that is dangerous. `may`: what it was asked about, and the answers."""
    check = f"rights of {account}"
    if isinstance(may, Unseen):
        return Finding(check, UNKNOWN, may)
    lacks = [f"may not {right}" for right in must if not may[right]]
    if lacks:
        return Finding(check, WRONG, _some(lacks), APPLY)
    excess = [f"may {right}" for right, allowed in may.items() if allowed and right not in must]
    if excess:
        name = account.rpartition("/")[2]
        mend = f"kubectl get rolebindings,clusterrolebindings -A -o wide | grep {name}   # delete what is not ours"
        return Finding(check, WRONG, f"{_some(excess)}, which it has no use for", mend)
    return Finding(check, OK, "what it needs, and nothing else that was asked about")


# --- functions and events -----------------------------------------------------------------------------------------


def runs(name: str, seen: Seen) -> Finding:
    """A function runs: its Knative Service or Deployment is ready."""
    kind = "ksvc" if isinstance(seen, Mapping) and "serving.knative.dev" in str(seen.get("apiVersion")) else "deploy"

    def fault(doc: Document) -> str | None:
        if kind == "ksvc":
            return _not(doc, "Ready")
        return None if (doc.get("status") or {}).get("availableReplicas") else "has no pod that is ready"

    mend = APPLY if seen is None else f"kubectl -n aegis describe {kind} {name}"
    return judged(name, seen, mend, fault, "is ready")


def timer(seen: Seen) -> Finding:
    """Something wakes the trigger every minute: a PingSource or a CronJob."""

    def fault(doc: Document) -> str | None:
        if doc.get("kind") == "CronJob":
            return "is suspended" if doc["spec"].get("suspend") else None
        return _not(doc, "Ready")

    return judged("reconcile timer", seen, APPLY, fault)


def broker(brokers: Sequence[Document]) -> Finding:
    """There is a Broker and it is ready."""
    faults = [f"{doc['metadata']['name']} {fault}" for doc in brokers if (fault := _not(doc, "Ready"))]
    wrong = "there is none" if not brokers else _some(faults)
    return Finding("Broker", WRONG, wrong, APPLY) if wrong else Finding("Broker", OK, "ready")


def triggers(found: Sequence[Document]) -> Finding:
    """Every event of ours is delivered, with all four fields of delivery: a Trigger's own replace the Broker's."""
    faults, missing = [], {DETECTED, RESOLVED, FINISHED, REJECTED}
    for doc in found:
        spec = doc["spec"]
        missing -= {kind for kind in missing if kind in str(spec.get("filter")) + str(spec.get("filters"))}
        fields = ("retry", "backoffPolicy", "backoffDelay", "timeout")
        unset = [name for name in fields if (spec.get("delivery") or {}).get(name) is None]
        if unset:
            faults.append(f"{doc['metadata']['name']} leaves {', '.join(unset)} of its delivery to defaults")
        elif fault := _not(doc, "Ready"):
            faults.append(f"{doc['metadata']['name']} {fault}")
    faults += [f"nothing delivers {kind}" for kind in sorted(missing)]
    return Finding("Triggers", WRONG, _some(faults), APPLY) if faults else Finding("Triggers", OK, "ready")


# --- secrets ------------------------------------------------------------------------------------------------------


def seal(sides: Sequence[Mapping[str, bytes] | Unseen]) -> Finding:
    """Receiver and trigger hold the same key. Each side: where its keys are, and their digests."""
    check = "seal"
    mend = (
        "openssl rand -hex 32 | kubectl -n aegis create secret generic aegis-seal --from-file=seal-key=/dev/stdin\n"
        "# and mount it into both functions (knative/overlays)"
    )
    for who, side in zip(("receiver", "trigger"), sides, strict=True):
        if isinstance(side, Unseen):
            return Finding(check, UNKNOWN, f"{who}: {side}")
        if absent := [where for where, digest in side.items() if not digest]:
            return Finding(check, WRONG, f"{who}: {_some(absent)} is not there or empty", mend)
        if not side:
            return Finding(check, WRONG, f"{who}: no key is configured", mend)
    seals, knows = (list(side.values()) for side in sides if isinstance(side, Mapping))
    if any([hmac.compare_digest(seals[0], digest) for digest in knows]):  # noqa: C419  # all are compared, whichever fits
        return Finding(check, OK, "the same on both sides")
    return Finding(check, WRONG, "receiver and trigger hold different keys, so every event is refused", mend)


def mounted(pod: Document, path: str) -> tuple[str, str] | None:
    """The Secret and its key that a pod's first container finds at `path`."""
    volumes = {volume["name"]: volume for volume in pod.get("volumes") or ()}
    for mount in pod["containers"][0].get("volumeMounts") or ():
        folder, _, file = path.rpartition("/")
        secret = (volumes.get(mount["name"]) or {}).get("secret")
        if secret and folder == mount["mountPath"].rstrip("/"):
            keys = {item["path"]: item["key"] for item in secret.get("items") or ()}
            return secret["secretName"], keys.get(file, file)
    return None


def signing(signer: str | Unseen | None, trusted: Mapping[str, Any] | Unseen, make: str, trust: str) -> Finding:
    """The signing key is there and trusted. `signer`: its public half's hint; `trusted`: the hints that count."""
    check = "signing key"
    if isinstance(signer, Unseen):
        return Finding(check, UNKNOWN, signer)
    if isinstance(trusted, Unseen):
        return Finding(check, UNKNOWN, trusted)
    if not signer:
        return Finding(check, WRONG, "is not there, or no P-256 key", make)
    if signer not in trusted:
        return Finding(check, WRONG, "is not among the trusted keys that can be read, so nothing is promoted", trust)
    return Finding(check, OK, "there, and trusted")


# --- MLflow, clocks, models ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said, and when by its own clock and ours."""

    status: int
    body: str
    date: datetime | None
    now: datetime


def mlflow(host: str, answer: Answer | Unseen, *, local: bool = False) -> Finding:
    """MLflow answers to the name by which the steps call it."""
    check = "MLflow"
    if isinstance(answer, Unseen):
        if local:
            return Finding(check, WRONG, answer, "aegis up")
        mend = "kubectl port-forward ...   # to it, and: aegis doctor --cluster --mlflow http://127.0.0.1:PORT"
        return Finding(check, UNKNOWN, answer, mend)
    if answer.status == 403 and "Invalid Host header" in answer.body:
        why = f"refuses the name {host} (403 Invalid Host header), by which every retrain calls it"
        return Finding(check, WRONG, why, f"mlflow server --allowed-hosts {host}   # or MLFLOW_SERVER_ALLOWED_HOSTS")
    if answer.status == 401:
        return Finding(check, OK, f"{host} answers, and asks for a credential (the Secret aegis-mlflow)")
    if answer.status != 200:
        return Finding(check, WRONG, f"{host} answers {answer.status}: {answer.body[:200]}", "see MLflow's log")
    return Finding(check, OK, f"{host} answers")


def clock(who: str, theirs: datetime | None, ours: datetime) -> Finding:
    """The clocks are together; which of the two is wrong nobody can tell from here."""
    check = f"clock of {who}"
    if theirs is None:
        return Finding(check, UNKNOWN, "it does not say what time it is")
    apart = abs(theirs - ours).total_seconds()
    if apart > MAX_SKEW_S:
        return Finding(check, WRONG, f"{apart:.0f} s apart from this machine's", "timedatectl status   # on both")
    return Finding(check, OK, f"within {MAX_SKEW_S} s of this machine's")


@dataclass(frozen=True, slots=True)
class Alias:
    """A registry's alias, the version that it names, and the version that the signed pointer names, or why the pointer
    does not count."""

    model: str
    environment: str
    alias: str
    version: str | None
    pointer: str
    refused: str = ""


def aliases(found: Iterable[Alias], uri: str, *, local: bool = False) -> Finding:
    """The signed pointers count, and MLflow's aliases are where they are. What somebody moved by hand is left alone:
    which of the two was meant is for a person to say."""
    apart = [each for each in found if each.refused or each.version != each.pointer]
    if not apart:
        return Finding("aliases", OK, "where the signed pointers are")
    faults, mends = [], []
    for each in apart:
        name, model = f"{each.environment}/{each.model}", f"{each.model} --environment {each.environment}"
        if each.refused:
            faults.append(f"the pointer of {name} is refused: {each.refused}")
            mends.append(_person(f"aegis resign {model} --trust OLD.pub", "if OLD.pub was revoked", local=local))
            continue
        is_set = each.version or "not set"
        faults.append(f"{each.alias} of {each.model} is {is_set}, the signed pointer {each.pointer}")
        mends.append(
            f"MLFLOW_TRACKING_URI={uri} python -c 'import mlflow; mlflow.MlflowClient()"
            f'.set_registered_model_alias("{each.model}", "{each.alias}", "{each.pointer}")\''
        )
        if each.version:
            why = f"or, if {each.version} is to serve"
            mends.append(_person(f"aegis rollback {model} --to {each.version}", why, local=local))
    return Finding("aliases", WRONG, _some(faults), "\n".join(mends[:6]))


def _person(command: str, why: str, *, local: bool) -> str:
    return f"{command}   # {why}" if local else f"# {why}: {command}, as docs/cli.md does it on a cluster"


def models(docs: Iterable[Document]) -> Finding:
    """Every ManagedModel can be read; who is suspended is told, because nothing else will."""
    faults, suspended, count = [], [], 0
    for doc in docs:
        count += 1
        try:
            record = from_document(doc, "")
        except (Permanent, Temporary) as exc:
            faults.append(str(exc))
            continue
        suspended += [record.name] if record.policy.suspend else []
    if faults:
        return Finding("models", WRONG, "; ".join(faults[:3]), "kubectl -n aegis edit mm NAME")
    told = f"{count} known" + (f"; suspended, so never retrained: {', '.join(suspended[:20])}" if suspended else "")
    return Finding("models", OK, told)
