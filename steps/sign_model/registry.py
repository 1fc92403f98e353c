"""The model registry, as promotion sees it, and MLflow behind it. For display and lookup; never trusted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from aegis.mlflow_client import connect, errors, experiment

UID, TAR = "aegis.workflow_uid", "aegis.tar_sha256"
ENVIRONMENT, SERIAL, APART = "aegis.environment", "aegis.pointer_serial", "aegis.alias_was_at"


class Registry(Protocol):
    """What promotion needs. Each call may be repeated. `name` is the registered model."""

    def register(self, directory: Path, name: str, run_id: str, tags: Mapping[str, str]) -> str:
        """The one version with these bytes by this workflow (tags UID and TAR), made if it is not there."""
        ...

    def versions(self, name: str) -> Mapping[str, Mapping[str, str]]:
        """The tags of each version, the newest thousand."""
        ...

    def aliased(self, name: str, alias: str) -> str:
        """The version that an alias is at, or empty."""
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
        self._client = connect(uri)
        from mlflow.tracking import set_tracking_uri

        set_tracking_uri(uri)  # a registry that is a database looks a version's logged model up through this

    def register(self, directory: Path, name: str, run_id: str, tags: Mapping[str, str]) -> str:
        with errors():
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

    def versions(self, name: str) -> Mapping[str, Mapping[str, str]]:
        with errors():
            found = self._client.search_model_versions(
                f"name = '{name}'", max_results=1000, order_by=["version_number DESC"]
            )
            return {str(each.version): dict(each.tags) for each in found}

    def aliased(self, name: str, alias: str) -> str:
        with errors():
            found = self._client.search_registered_models(f"name = '{name}'")
            aliases = {key: str(value) for model in found for key, value in model.aliases.items()}
            return aliases.get(alias, "")

    def tag(self, name: str, version: str, tags: Mapping[str, str]) -> None:
        with errors():
            for key, value in tags.items():
                self._client.set_model_version_tag(name, version, key, value)

    def alias(self, name: str, alias: str, version: str) -> None:
        with errors():
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
        place = self._client.get_run(run_id).info.experiment_id if run_id else experiment(self._client, name)
        ours = f"tags.`{UID}` = '{tags[UID]}' AND tags.`{TAR}` = '{tags[TAR]}'"
        found = self._client.search_logged_models([place], ours)
        if not found:
            # A logged model's name allows no dot.
            self._client.create_logged_model(place, name.replace(".", "_"), run_id or None, dict(tags))
            found = self._client.search_logged_models([place], ours)
        # As with versions, there may be two of ours.
        logged, *doubles = sorted(found, key=lambda model: (model.creation_timestamp, model.model_id))
        for double in doubles:
            self._client.delete_logged_model(double.model_id)
        if str(logged.status) != "READY":
            self._client.log_model_artifacts(logged.model_id, str(directory))
            self._client.finalize_logged_model(logged.model_id, "READY")
        return str(logged.model_id)
