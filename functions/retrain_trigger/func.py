"""retrain-trigger under func-python; `make bundle` stages this file as the package `function`."""

from __future__ import annotations

import os

from aegis.func_python import Hosted
from retrain_trigger.function import from_env


def new() -> Hosted:
    """What func-python calls, by this name. Wrong settings end the process."""
    return Hosted(lambda: from_env(os.environ))
