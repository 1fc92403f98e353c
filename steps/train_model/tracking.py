"""The attempt's run in MLflow: one, found again by the workflow's UID. For people to look at, never to trust."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aegis.mlflow_client import connect, errors, experiment
from aegis.names import printable
from train_model.attempt import Attempt

_TEXT = 4000  # MLflow's own limits are 5,000 for a tag and 6,000 for a parameter


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
                metrics=[Metric(name, value, now, 0) for name, value in metrics.items()],
                params=[Param(*item) for item in _texts(params).items()],
                tags=[RunTag(*item) for item in _texts(tags).items()],
            )

    def dataset(self, uri: str, digest: str) -> None:
        """Name a data set that the run learned from; MLflow keeps 36 letters of the digest."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        scheme = uri.partition(":")[0]
        label = [InputTag("mlflow.data.context", "training")]
        entry = Dataset(uri.rpartition("/")[2] or uri, digest[:36], scheme, json.dumps({"uri": uri}))
        with errors():
            self._client.log_inputs(self.run_id, [DatasetInput(entry, label)])

    def artifacts(self, folder: Path) -> None:
        """Add the files of a folder."""
        with errors():
            self._client.log_artifacts(self.run_id, str(folder))

    def end(self, status: str) -> None:
        """Close the run as FINISHED or FAILED."""
        with errors():
            self._client.set_terminated(self.run_id, status)


def begin(attempt: Attempt, tags: Mapping[str, object]) -> Run:
    """The attempt's run in the experiment `<environment>/<model>`, made if it is not there.

    A step that was told the run's id takes that one.
    """
    client = connect(attempt.tracking_uri)
    if attempt.run_id:
        return Run(client, attempt.run_id)
    with errors():
        place = experiment(client, f"{attempt.environment}/{attempt.model}")
        wanted = f"tags.`aegis.workflow_uid` = '{attempt.workflow_uid}'"

        def known() -> list[str]:
            runs = client.search_runs([place], wanted, order_by=["attributes.start_time ASC"])
            return [run.info.run_id for run in sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))]

        if not known():
            own = {"aegis.workflow_uid": attempt.workflow_uid}
            client.create_run(place, tags=_texts(tags) | own, run_name=attempt.workflow or None)
        # Looked for again: an answer that got lost on its way made the client create a second one.
        first, *twins = known()
        for twin in twins:
            client.delete_run(twin)
        return Run(client, first)


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
