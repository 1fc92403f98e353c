"""One MLflow server and one object store for all tests of faults."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

import pytest

from tests.faults.nursery import Nursery, nursery
from tests.faults.stage import BUCKET, put_data
from tests.mlflow_server import mlflow_server
from tests.storage.servers import s3


@pytest.fixture(scope="package")
def nurseries() -> Iterator[tuple[Nursery, Nursery]]:
    """Asked for before a server they import what they need while that starts."""
    with nursery() as first, nursery() as second:
        yield first, second


@pytest.fixture(scope="package")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a real MLflow server with its artifact proxy."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as uri:
        yield int(uri.rpartition(":")[2])


@pytest.fixture(scope="package")
def storage() -> Iterator[Mapping[str, str]]:
    """The environment that reaches an object store with data in it, and no proxy in front of it."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line a request hides what a failure says
    with s3(BUCKET) as env:
        put_data(env)
        yield env
