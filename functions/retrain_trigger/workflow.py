"""The Argo Workflow of a retrain: the manifest to submit, and what a Workflow's status says. Pure."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from aegis.errors import BAD_DATA, TRAINER_FAILED, USAGE, Permanent
from aegis.events import SEVERITIES, canonical_json, parse_time, rfc3339
from aegis.names import NAME, alias_of

from .model import Record, Retrain, travels
from .policy import Finish, Outcome

CLAIM = "aegis.dev/claim"
MODEL_LABEL = "aegis.dev/managed-model"
SEQUENCE_LABEL = "aegis.dev/sequence"
MIN_TTL = timedelta(hours=24)
MAX_OUTPUT = 1000
"""Characters kept of an output parameter."""
_DIGEST = re.compile(r"[0-9a-f]{64}")

_EXIT_CODE = re.compile(r"\(exit code (\d{1,3})\)", re.ASCII)
"""An init container's exit code stands only in its pod's message."""
_CODE = re.compile(r"\d{1,3}", re.ASCII)
_REASON = re.compile(r"\bBadData:(\w{1,40})")
_DEADLINE = "Step exceeded its deadline"
"""What Argo and `aegis up` write on a node that still waited when activeDeadlineSeconds of the Workflow was over. An
answer by a person and a shutdown leave other messages."""
_TERMINAL = ("Succeeded", "Failed", "Error")


@dataclass(frozen=True, slots=True)
class Running:
    """Not ended: `Queued`, `Running` or `AwaitingApproval`."""

    state: str


def manifest(record: Record, retrain: Retrain, namespace: str, *, traceparent: str | None = None) -> dict[str, Any]:
    """The Workflow that a claim orders. Raises Permanent if a value could not travel safely.

    Argo substitutes templates inside parameter values, so every value is allow-listed before, or base64.
    """
    policy = record.policy
    event = {
        "event_id": retrain.event_id,
        "source": retrain.source,
        "fingerprint": retrain.fingerprint,
        "severity": retrain.severity,
        "sequence": retrain.sequence,
        "reason": retrain.reason,
        "claimed_at": rfc3339(retrain.first_claimed_at),
    }
    settings = {
        "trainer": dict(policy.trainer),
        "gate": dict(policy.gate),
        "alias": alias_of(record.environment, policy.alias),
        "seed": retrain.sequence,
        "maxAttempts": policy.max_attempts,
        # Of the claim, which whoever may read Workflows knows, but neither a trainer nor a user of MLflow or a bucket.
        "secret": hashlib.sha256(f"attempt {retrain.claim}".encode()).hexdigest(),
    }
    parameters = {
        "model": record.model,
        "environment": record.environment,
        "model-version": retrain.version,
        "dataset-uri": retrain.dataset_uri or "",
        "evaluation-uri": policy.evaluation_uri or "",
        "event": _packed(event),
        "settings": _packed(settings),
        "approval": str(policy.approval).lower(),
        "last-inputs": retrain.inputs or "",
    }
    unsafe = {
        name: "must be printable ASCII without {{ and }}" for name, value in parameters.items() if not travels(value)
    }
    unsafe |= {
        n: "is not a name" for n in ("model", "environment", "model-version") if not NAME.fullmatch(parameters[n])
    }
    if unsafe:
        raise Permanent("these values cannot be passed to a Workflow", unsafe)
    annotations = {
        CLAIM: retrain.claim,
        "aegis.dev/event-id": retrain.event_id,
        "aegis.dev/fingerprint": retrain.fingerprint,
    }
    if traceparent:
        annotations["aegis.dev/traceparent"] = traceparent
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {
            "name": retrain.workflow,
            "namespace": namespace,
            "labels": {MODEL_LABEL: model_label(record.name), SEQUENCE_LABEL: str(retrain.sequence)},
            "annotations": annotations,
        },
        "spec": {
            "workflowTemplateRef": {"name": policy.workflow_template},
            "arguments": {"parameters": [{"name": name, "value": value} for name, value in parameters.items()]},
            "priority": SEVERITIES.index(retrain.severity),
            # The ledger must see the end before Argo forgets it.
            "ttlStrategy": {"secondsAfterCompletion": int(max(policy.cooldown, MIN_TTL).total_seconds())},
        },
    }


def model_label(name: str) -> str:
    """A ManagedModel's name as the value of a label, which ends at 63 characters."""
    return name if len(name) <= 63 else f"{name[:54]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _packed(value: Mapping[str, Any]) -> str:
    return base64.b64encode(canonical_json(value)).decode()


def carries(workflow: Mapping[str, Any], claim: str) -> bool:
    """Whether a Workflow was created for this very claim."""
    return bool((workflow["metadata"].get("annotations") or {}).get(CLAIM) == claim)


def sequence(workflow: Mapping[str, Any]) -> int:
    """The sequence number in a Workflow's label; 0 when there is none."""
    text = (workflow["metadata"].get("labels") or {}).get(SEQUENCE_LABEL, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def as_retrain(workflow: Mapping[str, Any], now: datetime) -> Retrain:
    """The ledger's entry for a Workflow that the ledger forgot."""
    metadata = workflow["metadata"]
    notes = metadata.get("annotations") or {}
    made = parse_time(metadata["creationTimestamp"]) if metadata.get("creationTimestamp") else now
    return Retrain(
        sequence=sequence(workflow),
        workflow=metadata["name"],
        claim=notes.get(CLAIM, ""),
        phase="Submitted",
        first_claimed_at=made,
        claimed_at=made,
        submitted_at=made,
        uid=metadata.get("uid"),
        event_id=notes.get("aegis.dev/event-id", ""),
        fingerprint=notes.get("aegis.dev/fingerprint", ""),
        reason="taken over from an existing Workflow",
    )


def read(workflow: Mapping[str, Any], now: datetime) -> Running | Finish:
    """What a Workflow's status says."""
    status = workflow.get("status") or {}
    phase = status.get("phase") or "Pending"
    if phase not in _TERMINAL:
        return Running(_state(phase, status))
    # Steps wrote these, and a trainer is not ours: what reaches the ledger is bounded.
    parameters = (status.get("outputs") or {}).get("parameters") or ()
    outputs = {p["name"]: str(p.get("value") or "")[:MAX_OUTPUT] for p in parameters}
    ended_at = parse_time(status["finishedAt"]) if status.get("finishedAt") else now
    outcome, reason, explanation = _outcome(workflow, phase, outputs)
    return Finish(
        outcome=outcome,
        reason=reason,
        explanation=explanation,
        ended_at=ended_at,
        inputs=inputs if _DIGEST.fullmatch(inputs := outputs.get("inputs", "")) else None,
        pointer=outputs.get("pointer") or None,
        run_id=outputs.get("run-id") or None,
        registered_version=outputs.get("registered-version") or None,
    )


def _state(phase: str, status: Mapping[str, Any]) -> str:
    nodes = (status.get("nodes") or {}).values()
    if any(node.get("type") == "Suspend" and node.get("phase") == "Running" for node in nodes):
        return "AwaitingApproval"
    return "Running" if phase == "Running" else "Queued"


def _outcome(
    workflow: Mapping[str, Any], phase: str, outputs: Mapping[str, Any]
) -> tuple[Outcome, str | None, str | None]:
    told = (outputs.get("explanation") or "")[:1000] or None
    said, _, reason = (outputs.get("outcome") or "").partition(":")
    if phase == "Succeeded" and said in set(Outcome):
        return Outcome(said), reason or None, told
    status = workflow.get("status") or {}
    nodes = [node for node in (status.get("nodes") or {}).values() if node.get("phase") in ("Failed", "Error")]
    refused = [node for node in nodes if node.get("type") == "Suspend"]
    answer = str(refused[0].get("message") or "") if refused else ""
    if (workflow.get("spec") or {}).get("shutdown") or (refused and answer != _DEADLINE):
        return Outcome.CANCELLED, None, (answer or "stopped by a person")[:1000]
    if refused:
        # Nobody said no: the challenger went stale while it waited, which DESIGN's table calls Failed. Not Cancelled,
        # which names a person who did nothing; not Rejected, for the model was good enough, and the next attempt
        # would be refused unread because its inputs are the same. If the model still fires it trains again, on data
        # of today: as often as the deadline allows, which is once a week. NeedsHuman shows after a day of each wait,
        # and after five in a row until one ends otherwise.
        return Outcome.FAILED, "ApprovalTimedOut", "nobody approved the model before the Workflow's deadline"
    code, message = _failure(nodes)
    if code == BAD_DATA and said != Outcome.BAD_DATA and (found := _REASON.search(message)):
        reason = found[1]  # an init container reports nothing but the end of its log
    # What an earlier step explained is no explanation of this one's failure.
    why = told if said in (Outcome.BAD_DATA, Outcome.TRAINER_FAILED) else message or status.get("message")
    why = str(why or f"the Workflow ended as {phase}")[:1000]
    if code == BAD_DATA:
        return Outcome.BAD_DATA, reason or None, why
    if code in (USAGE, TRAINER_FAILED):
        return Outcome.TRAINER_FAILED, reason or None, why
    return Outcome.FAILED, f"exit code {code}" if code else phase, why


def _failure(nodes: Sequence[Mapping[str, Any]]) -> tuple[int | None, str]:
    """Exit code and message of the failed container that tells most: the last one, the notifying onExit step aside.

    One that has no exit code (deleted, past its deadline) tells less than any that has.
    """
    found: tuple[int | None, str] = None, ""
    for node in sorted(nodes, key=lambda node: str(node.get("finishedAt") or "")):
        message = str(node.get("message") or "")
        spelled = (node.get("outputs") or {}).get("exitCode") or ((e := _EXIT_CODE.search(message)) and e[1])
        if node.get("templateName") in ("finished", "notify"):
            continue
        if _CODE.fullmatch(str(spelled)):
            found = int(str(spelled)), message
        elif found[0] is None and node.get("type") == "Pod":
            found = None, message
    return found
