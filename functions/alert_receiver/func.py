"""The receiver under func-python; `make bundle` stages this file as the package `function`."""

from __future__ import annotations

from aegis.func_python import Hosted
from alert_receiver.receiver import build


def new() -> Hosted:
    """What func-python calls, by this name. With wrong settings the function runs and says so in its readiness."""
    return Hosted(build)
