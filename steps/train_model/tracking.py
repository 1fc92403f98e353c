"""The attempt's run in MLflow: one, which is known again by a proof that only these steps can give.

For people to look at, never to trust. Whoever may write to MLflow may copy the tags of a run, the trainer among them.
So a run is the attempt's if it carries an HMAC of its own id: a copy has another id.
"""

from __future__ import annotations

import hmac
import json
import platform
import re
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from aegis.mlflow_client import connect, errors, experiment
from aegis.names import printable
from train_model.attempt import Attempt

Point = tuple[str, float, int, int]
"""Of a curve: name, value, step, milliseconds since 1970."""
UID, CLAIM, PROOF = "aegis.workflow_uid", "aegis.claim", "aegis.run_proof"
_TEXT = 4000  # MLflow's own limits are 8,000 for a tag and 6,000 for a parameter
_BATCH = 1000  # metrics that MLflow takes in one call
_CURVES, _POINTS = 4, 2000  # what is read back of them for the report, whatever a trainer logged
_CURVE = re.compile(r"loss|score|acc|err|auc|mae|mse", re.IGNORECASE)


class Run:
    """An attempt's run. Every method may raise `Temporary` (unreachable) or `Permanent` (refused)."""

    def __init__(self, client: Any, run_id: str) -> None:
        self._client = client
        self.run_id = run_id

    def log(self, params: Mapping[str, object], metrics: Mapping[str, float], tags: Mapping[str, object]) -> None:
        """Add parameters, metrics and tags. A parameter can't be changed later, so what a retry may find
        different (its data) belongs into the tags."""
        from mlflow.entities import Metric, Param, RunTag

        now = time.time_ns() // 1_000_000
        with errors():
            self._client.log_batch(
                self.run_id,
                metrics=[Metric(metric_name(name), value, now, 0) for name, value in metrics.items()],
                params=[Param(*item) for item in _texts(params).items()],
                tags=[RunTag(*item) for item in _texts(tags).items()],
            )

    def metrics(self, points: Sequence[Point]) -> None:
        """Add points to the run's curves, a thousand a call. The same point again changes nothing."""
        from mlflow.entities import Metric

        found = [Metric(metric_name(name), value, ms, step) for name, value, step, ms in points]
        with errors():
            for start in range(0, len(found), _BATCH):
                self._client.log_batch(self.run_id, metrics=found[start : start + _BATCH])

    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """(step, value) of the metrics that look like a learning curve; few, and of each the first 2,000 points."""
        with errors():
            names = [name for name in sorted(self._client.get_run(self.run_id).data.metrics) if _CURVE.search(name)]
            # The client's own method reads all that there are, and a trainer may have logged millions.
            store = self._client._tracking_client.store
            curves = {}
            for name in names[: 4 * _CURVES]:
                history = store.get_metric_history(self.run_id, name, max_results=_POINTS)
                if len(found := sorted({point.step: point.value for point in history}.items())) > 1:
                    curves[name] = found
        return dict(list(curves.items())[:_CURVES])

    def environment(self, env: Mapping[str, str]) -> None:
        """What this step runs in, which is what its trainer ran in: packages as a file, the rest as tags."""
        packages = sorted({f"{found.name}=={found.version}" for found in distributions()}, key=str.casefold)
        image = {"aegis.image": env["AEGIS_TRAINER_IMAGE"]} if env.get("AEGIS_TRAINER_IMAGE") else {}
        known = {"aegis.python": sys.version.split()[0], "aegis.platform": platform.platform()}
        with errors():
            self._client.log_text(self.run_id, "\n".join([*packages, ""]), "environment.txt")
        self.log({}, {}, known | image)

    def dataset(self, uri: str, digest: str) -> None:
        """Name a data set that the run learned from. MLflow keeps 36 letters of a digest, so it stands in a tag too."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        uri = printable(uri)[:_TEXT]
        scheme = uri.partition(":")[0]
        kind = "local" if scheme == "file" else scheme  # as mlflow.data names them, so that it can load one
        labels = [InputTag("mlflow.data.context", "training"), InputTag("aegis.digest", digest)]
        entry = Dataset(uri.rstrip("/").rpartition("/")[2][:200] or uri, digest[:36], kind, json.dumps({"uri": uri}))
        with errors():
            self._client.log_inputs(self.run_id, [DatasetInput(entry, labels)])

    def folder(self, path: Path, into: str = "") -> None:
        """Add the files of a folder to the run's artifacts."""
        with errors():
            self._client.log_artifacts(self.run_id, str(path), into or None)

    def end(self, status: str) -> None:
        """Close the run as FINISHED or FAILED."""
        with errors():
            self._client.set_terminated(self.run_id, status)


def begin(attempt: Attempt, tags: Mapping[str, object]) -> Run:
    """The attempt's run in the experiment `<environment>/<model>`, made if it is not there.

    A step that was told the run's id by the step before it takes that one. Without a secret (a training by hand) the
    workflow's uid alone tells whose a run is.
    """
    client = connect(attempt.tracking_uri)
    if attempt.run_id:
        return Run(client, attempt.run_id)
    with errors():
        place = experiment(client, f"{attempt.environment}/{attempt.model}")
        proven, _ = _known(client, place, attempt)
        if not proven:
            own = {UID: attempt.workflow_uid} | ({CLAIM: _mac(attempt, "claim")} if attempt.secret else {})
            made = client.create_run(place, tags=_texts(tags) | own, run_name=attempt.workflow or None)
            if attempt.secret:
                client.set_tag(made.info.run_id, PROOF, _mac(attempt, made.info.run_id))
        # Looked for again: an answer that got lost on its way made the client create a second one, and an earlier try
        # may have been killed between the two calls.
        (first, *twins), unproven = _known(client, place, attempt)
        for twin in [*twins, *unproven]:
            client.delete_run(twin)
        return Run(client, first)


def _known(client: Any, place: str, attempt: Attempt) -> tuple[list[str], list[str]]:
    """The ids of the attempt's runs, the oldest first, and of those that claim to be and prove nothing.

    A wrong proof is a copy of a run, which is somebody's own and stays.
    """
    mark, value = (CLAIM, _mac(attempt, "claim")) if attempt.secret else (UID, attempt.workflow_uid)
    found = client.search_runs([place], f"tags.`{mark}` = '{value}'", order_by=["attributes.start_time ASC"])
    runs = sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))
    proofs = {run.info.run_id: run.data.tags.get(PROOF, "") for run in runs}
    if not attempt.secret:
        return list(proofs), []
    proven = [name for name, proof in proofs.items() if proof == _mac(attempt, name)]
    return proven, [name for name, proof in proofs.items() if not proof]


def _mac(attempt: Attempt, text: str) -> str:
    return hmac.new(attempt.secret.encode(), f"{attempt.workflow_uid} {text}".encode(), "sha256").hexdigest()


def metric_name(name: str) -> str:
    """A name that MLflow takes: it refuses some letters, and what a path would not keep as it is."""
    parts = [re.sub(r"[^\w .-]", "_", part) for part in printable(name)[:200].split("/")]
    return "/".join(part for part in parts if part.strip(".")) or "_"


def _texts(values: Mapping[str, object]) -> dict[str, str]:
    """As MLflow keeps them and a page shows them: some came with an alert."""
    return {name: printable(str(value))[:_TEXT] for name, value in values.items()}


def identity(attempt: Attempt) -> dict[str, object]:
    """The tags that lead from a run back to workflow, decision, event and alert."""
    event = attempt.event
    return {
        "aegis.model": attempt.model,
        "aegis.environment": attempt.environment,
        "aegis.model_version": attempt.version,
        "aegis.workflow": attempt.workflow,
        "aegis.workflow_uid": attempt.workflow_uid,
        "aegis.event_id": event.get("event_id", ""),
        "aegis.fingerprint": event.get("fingerprint", ""),
        "aegis.decision": event.get("reason", ""),
        "aegis.seed": attempt.seed,
    }
