"""A person's acts on the chain of one machine: bring in a model that already serves, roll back, sign again."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aegis import signature
from aegis.signature import Keys
from aegis.storage import open_store
from retrain_trigger.model import object_name
from sign_model import keys
from sign_model.adopt import adopt
from sign_model.promote import Promotion
from sign_model.registry import MlflowRegistry
from sign_model.resign import resign
from sign_model.rollback import rollback

from .stack import State


def adopted(
    state: State,
    directory: Path,
    environment: str,
    model: str,
    *,
    mlflow: str,
    dataset_uri: str = "",
    run_id: str = "",
    allow_pickle: bool = False,
) -> Promotion:
    """Sign a model directory with this machine's key and make it the champion. Raises Permanent, Temporary.

    `dataset_uri` is what it was trained on; a retrain then trains on that beside the new data.
    """
    with _chain(state, environment, model, mlflow) as chain:
        return adopt(
            directory,
            environment,
            model,
            dataset_uri=dataset_uri,
            run_id=run_id,
            allow_pickle=allow_pickle,
            **chain,
        )


def rolled_back(state: State, environment: str, model: str, to: str, *, mlflow: str) -> Promotion:
    """Make an older package the champion. Raises Permanent, Temporary."""
    with _chain(state, environment, model, mlflow) as chain:
        return rollback(environment, model, to, **chain)


def resigned(
    state: State, environment: str, model: str, *, mlflow: str, believed: Sequence[Path] = (), only: str = ""
) -> Promotion:
    """Sign the champion with this machine's key; `believed` are public keys that count for this once."""
    keyring: Keys = {}
    for path in believed:
        keyring = {**keyring, **signature.load_keys(path)}
    with _chain(state, environment, model, mlflow) as chain:
        return resign(environment, model, believed=keyring, only=only, **chain)


@contextmanager
def _chain(state: State, environment: str, model: str, mlflow: str) -> Iterator[dict[str, Any]]:
    """What each of them needs of this machine; its key is made on first use."""
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # it tells of its waiting at length
    signer = keys.ensure(state.signing_key, state.trusted)
    record = state.records().read(object_name(environment, model))
    with tempfile.TemporaryDirectory() as scratch:
        yield {
            "store": open_store(state.models.as_uri(), env={}),
            "models_uri": state.models.as_uri(),
            "signer": signer,
            "trusted": signature.load_keys(state.trusted),
            "models": MlflowRegistry(mlflow),
            "now": datetime.now(UTC),
            "scratch": Path(scratch),
            "alias": (record.policy.alias or "") if record else "",
        }
