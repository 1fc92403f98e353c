"""MLflow's client, its patience cut and its errors translated. It is imported on first use, which takes a second."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from aegis.errors import USAGE, Permanent, Temporary
from aegis.step import redact

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_BOUNDS = {
    # Four tries and half a minute each: MLflow's own defaults make a dead server cost four minutes a call.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",  # these pods reach nothing but their servers
}
_REFUSED = (
    "MLflow does not let us in, check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
)


def connect(uri: str) -> MlflowClient:
    """A client of the server (or its database) at `uri`. Calls of it belong into `errors()`."""
    if not uri:
        raise Permanent("bad settings", {"MLFLOW_TRACKING_URI": "missing"}, exit_code=USAGE)
    for name, value in _BOUNDS.items():
        os.environ.setdefault(name, value)  # MLflow reads these at each call and takes them from nowhere else
    with errors():
        from mlflow.tracking import MlflowClient

        return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def errors() -> Iterator[None]:
    """What MLflow raises becomes `Temporary` or, if it will not have the call, `Permanent` (64)."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        # Redacted before it is cut, or half a password would be left. MLflow took its credentials from os.environ.
        text = f"MLflow: {error.error_code}: {redact(str(error), os.environ)[:300]}"
        status = error.get_http_status_code()  # type: ignore[no-untyped-call]
        raced = "IntegrityError" in text  # its database's: another caller made the same row a moment before
        if status in (401, 403):
            raise Permanent(f"{_REFUSED}: {text}", exit_code=USAGE) from error
        if status == 429 or status >= 500 or error.error_code == "ABORTED" or raced:
            raise Temporary(text) from error
        raise Permanent(text, exit_code=USAGE) from error
    except OSError as error:  # those of requests are too; its artifact proxy's answers come as such
        answer = getattr(error, "response", None)
        status = getattr(answer, "status_code", 503)
        if status in (401, 403):
            raise Permanent(f"{_REFUSED}: its artifacts answer {status}", exit_code=USAGE) from error
        if status < 500 and status not in (408, 429):
            raise Permanent(f"MLflow: its artifacts answer {status}", exit_code=USAGE) from error
        raise Temporary(f"MLflow cannot be reached ({type(error).__name__})") from error


def experiment(client: MlflowClient, name: str) -> str:
    """The id of the experiment with this name, made if it is not there."""
    from mlflow.exceptions import MlflowException

    for _ in range(2):
        if found := client.get_experiment_by_name(name):
            return str(found.experiment_id)
        try:
            return str(client.create_experiment(name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
    raise Temporary(f"MLflow: experiment {name} came and went")
