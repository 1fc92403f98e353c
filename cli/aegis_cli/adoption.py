"""Bring a model that already serves into the chain of one machine."""

from __future__ import annotations

import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from aegis import signature
from aegis.storage import open_store
from retrain_trigger.model import object_name
from sign_model import keys
from sign_model.adopt import adopt
from sign_model.promote import Promotion
from sign_model.registry import MlflowRegistry

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
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # it tells of its waiting at length
    signer = keys.ensure(state.signing_key, state.trusted)
    record = state.records().read(object_name(environment, model))
    with tempfile.TemporaryDirectory() as scratch:
        return adopt(
            directory,
            environment,
            model,
            store=open_store(state.models.as_uri(), env={}),
            models_uri=state.models.as_uri(),
            signer=signer,
            trusted=signature.load_keys(state.trusted),
            models=MlflowRegistry(mlflow),
            now=datetime.now(UTC),
            scratch=Path(scratch),
            dataset_uri=dataset_uri,
            run_id=run_id,
            alias=(record.policy.alias or "") if record else "",
            allow_pickle=allow_pickle,
        )
