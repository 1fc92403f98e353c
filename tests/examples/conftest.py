"""The world of the training steps, with the examples where Python finds them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.train_model.conftest import database  # noqa: F401 - a fixture
from tests.train_model.world import SOURCES, World

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture
def world(tmp_path: Path, database: str) -> World:  # noqa: F811 - the fixture above
    """Steps that find the examples, and `python` as the image has it."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return World(
        tmp_path, database, uid=f"uid-{tmp_path.name}", env={"PYTHONPATH": f"{EXAMPLES}:{SOURCES}", "PATH": path}
    )
