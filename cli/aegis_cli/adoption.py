"""A person's acts on the chain of one machine: bring in a model that already serves, roll back, sign again."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from aegis import signature
from aegis.signature import Keys
from aegis.storage import open_store
from retrain_trigger.model import object_name
from sign_model import keys
from sign_model.adopt import adopt
from sign_model.chain import Chain
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
    with _chain(state, mlflow) as chain:
        return adopt(
            directory,
            environment,
            model,
            chain,
            dataset_uri=dataset_uri,
            run_id=run_id,
            alias=_alias(state, environment, model),
            allow_pickle=allow_pickle,
        )


def rolled_back(state: State, environment: str, model: str, to: str, *, mlflow: str) -> Promotion:
    """Make an older package the champion. Raises Permanent, Temporary."""
    with _chain(state, mlflow) as chain:
        return rollback(environment, model, to, chain, alias=_alias(state, environment, model))


def resigned(
    state: State, environment: str, model: str, *, mlflow: str, believed: Sequence[Path] = (), only: str = ""
) -> Promotion:
    """Sign the champion with this machine's key; `believed` are public keys that count for this once."""
    keyring: Keys = {}
    for path in believed:
        keyring = {**keyring, **signature.load_keys(path)}
    with _chain(state, mlflow) as chain:
        return resign(environment, model, chain, believed=keyring, only=only, alias=_alias(state, environment, model))


@contextmanager
def _chain(state: State, mlflow: str) -> Iterator[Chain]:
    """This machine's; its key is made on first use."""
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # it tells of its waiting at length
    signer = keys.ensure(state.signing_key, state.trusted)
    with tempfile.TemporaryDirectory() as scratch:
        yield Chain(
            store=open_store(state.models.as_uri(), env={}),
            models_uri=state.models.as_uri(),
            signer=signer,
            trusted=signature.load_keys(state.trusted),
            models=MlflowRegistry(mlflow),
            now=datetime.now(UTC),
            scratch=Path(scratch),
        )


def _alias(state: State, environment: str, model: str) -> str:
    record = state.records().read(object_name(environment, model))
    return (record.policy.alias or "") if record else ""
