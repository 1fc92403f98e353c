"""The attempt's run in MLflow: one, found again by the workflow's UID. For people to look at, never to trust.

MLflow is imported when a run is first asked for (a second of start-up), and its own patience is cut: by default
it would try for four minutes a call.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aegis.errors import USAGE, Permanent, Temporary
from train_model.attempt import Attempt

_BOUNDS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
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
        with _errors():
            self._client.log_batch(
                self.run_id,
                metrics=[Metric(name, value, now, 0) for name, value in metrics.items()],
                params=[Param(name, str(value)[:_TEXT]) for name, value in params.items()],
                tags=[RunTag(name, str(value)[:_TEXT]) for name, value in tags.items()],
            )

    def dataset(self, uri: str, digest: str) -> None:
        """Name a data set that the run learned from; MLflow keeps 36 letters of the digest."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        scheme = uri.partition(":")[0]
        label = [InputTag("mlflow.data.context", "training")]
        entry = Dataset(uri.rpartition("/")[2] or uri, digest[:36], scheme, f'{{"uri": "{uri}"}}')
        with _errors():
            self._client.log_inputs(self.run_id, [DatasetInput(entry, label)])

    def artifacts(self, folder: Path) -> None:
        """Add the files of a folder."""
        with _errors():
            self._client.log_artifacts(self.run_id, str(folder))

    def end(self, status: str) -> None:
        """Close the run as FINISHED or FAILED."""
        with _errors():
            self._client.set_terminated(self.run_id, status)


def begin(attempt: Attempt, tags: Mapping[str, object]) -> Run:
    """The attempt's run in the experiment `<environment>/<model>`, made if it is not there.

    A step that was told the run's id takes that one.
    """
    for name, value in _BOUNDS.items():
        os.environ.setdefault(name, value)  # MLflow reads nothing else
    with _errors():
        from mlflow import MlflowClient

        client = MlflowClient(attempt.tracking_uri)
        if attempt.run_id:
            return Run(client, attempt.run_id)
        experiment = _experiment(client, f"{attempt.environment}/{attempt.model}")
        wanted = f"tags.`aegis.workflow_uid` = '{attempt.workflow_uid}'"

        def known() -> list[str]:
            runs = client.search_runs([experiment], wanted, order_by=["attributes.start_time ASC"])
            return [run.info.run_id for run in sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))]

        if not known():
            texts = {name: str(value)[:_TEXT] for name, value in tags.items()}
            own = {"aegis.workflow_uid": attempt.workflow_uid}
            client.create_run(experiment, tags=texts | own, run_name=attempt.workflow or None)
        # Looked for again: an answer that got lost on its way made the client create a second one.
        first, *twins = known()
        for twin in twins:
            client.delete_run(twin)
        return Run(client, first)


def _experiment(client: Any, name: str) -> str:
    from mlflow.exceptions import MlflowException

    def look() -> str | None:
        found = client.get_experiment_by_name(name)
        return str(found.experiment_id) if found else None

    try:
        return look() or str(client.create_experiment(name))
    except MlflowException as error:
        if error.error_code == "RESOURCE_ALREADY_EXISTS" and (other := look()):
            return other
        raise


@contextmanager
def _errors() -> Iterator[None]:
    import requests
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        text = f"MLflow: {str(error)[:300]}"
        status = error.get_http_status_code()  # type: ignore[no-untyped-call]
        if status in (429, *range(500, 600)):
            raise Temporary(text) from error
        raise Permanent(text, exit_code=USAGE) from error
    except requests.RequestException as error:
        raise Temporary(f"MLflow cannot be reached ({type(error).__name__})") from error


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
