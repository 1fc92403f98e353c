"""One server of each kind for each module of tests, with the bucket `BUCKET`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from tests.storage import servers
from tests.storage.servers import BUCKET


@pytest.fixture(scope="module")
def gcs() -> Iterator[Mapping[str, str]]:
    with servers.gcs(BUCKET) as env:
        yield env


@pytest.fixture(scope="module")
def s3() -> Iterator[Mapping[str, str]]:
    with servers.s3(BUCKET) as env:
        yield env
