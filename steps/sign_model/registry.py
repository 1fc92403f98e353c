"""The model registry, as promotion sees it, and MLflow behind it. For display and lookup; never trusted."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from aegis.errors import USAGE, Permanent, Temporary

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

UID, TAR = "aegis.workflow_uid", "aegis.tar_sha256"
_BOUNDS = {
    # Four tries and half a minute each: MLflow's own defaults make a dead server cost four minutes a call.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",  # this pod reaches nothing but the registry and the store
}
_LATER = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "IO_ERROR", "ABORTED"}


class Registry(Protocol):
    """What promotion needs. Each call may be repeated. `name` is the registered model."""

    def register(self, directory: Path, name: str, run_id: str, tags: Mapping[str, str]) -> str:
        """The one version with these bytes by this workflow (tags UID and TAR), made if it is not there."""
        ...

    def tag(self, name: str, version: str, tags: Mapping[str, str]) -> None:
        """Add tags to a version."""
        ...

    def alias(self, name: str, alias: str, version: str) -> None:
        """Let the alias name this version."""
        ...


class MlflowRegistry:
    """Registers through an MLflow server (or its database). mlflow is imported here, on first use."""

    def __init__(self, uri: str) -> None:
        if not uri:
            raise Permanent("settings", {"MLFLOW_TRACKING_URI": "missing"}, exit_code=USAGE)
        for name, value in _BOUNDS.items():
            os.environ.setdefault(name, value)  # MLflow reads these at each call and takes them from nowhere else
        with _translated():
            from mlflow.tracking import MlflowClient, set_tracking_uri

            set_tracking_uri(uri)  # a registry that is a database looks a version's logged model up through this
            self._client: MlflowClient = MlflowClient(tracking_uri=uri, registry_uri=uri)

    def register(self, directory: Path, name: str, run_id: str, tags: Mapping[str, str]) -> str:
        with _translated():
            versions = self._versions(name, tags)
            if not versions:
                self._create_name(name)
                logged = self._upload(directory, name, run_id, tags)
                self._client.create_model_version(
                    name, f"models:/{logged}", run_id=run_id or None, tags=dict(tags), model_id=logged
                )
                versions = self._versions(name, tags)
            # The client repeats a POST whose answer was lost, so there may be two of ours: the first counts.
            first, *doubles = sorted(versions)
            for double in doubles:
                self._client.delete_model_version(name, str(double))
            return str(first)

    def tag(self, name: str, version: str, tags: Mapping[str, str]) -> None:
        with _translated():
            for key, value in tags.items():
                self._client.set_model_version_tag(name, version, key, value)

    def alias(self, name: str, alias: str, version: str) -> None:
        with _translated():
            self._client.set_registered_model_alias(name, alias, version)

    def _versions(self, name: str, tags: Mapping[str, str]) -> list[int]:
        ours = f"name = '{name}' AND tags.`{UID}` = '{tags[UID]}' AND tags.`{TAR}` = '{tags[TAR]}'"
        return [int(found.version) for found in self._client.search_model_versions(ours)]

    def _create_name(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _upload(self, directory: Path, name: str, run_id: str, tags: Mapping[str, str]) -> str:
        """The id of a logged model with exactly these files; one that an earlier try left is completed."""
        experiment = self._client.get_run(run_id).info.experiment_id if run_id else self._experiment(name)
        ours = f"tags.`{UID}` = '{tags[UID]}' AND tags.`{TAR}` = '{tags[TAR]}'"
        found = self._client.search_logged_models([experiment], ours, max_results=1)
        # A logged model's name allows no dot.
        logged = (
            found[0]
            if found
            else self._client.create_logged_model(experiment, name.replace(".", "_"), run_id or None, dict(tags))
        )
        if str(logged.status) != "READY":
            self._client.log_model_artifacts(logged.model_id, str(directory))
            self._client.finalize_logged_model(logged.model_id, "READY")
        return str(logged.model_id)

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        try:
            return str(self._client.create_experiment(name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = self._client.get_experiment_by_name(name)
        if found is None:
            raise Temporary(f"MLflow: experiment {name} came and went")
        return str(found.experiment_id)


@contextmanager
def _translated() -> Iterator[None]:
    import requests
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        told = f"MLflow: {error.error_code}: {str(error)[:300]}"
        if error.error_code in _LATER:
            raise Temporary(told) from error
        raise Permanent(told, exit_code=USAGE) from error
    except (requests.RequestException, OSError) as error:
        raise Temporary(f"MLflow: {type(error).__name__}") from error
