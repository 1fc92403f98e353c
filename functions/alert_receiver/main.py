"""The receiver under functions-framework: `functions-framework --asgi --target main --source .../main.py`."""

from __future__ import annotations

from aegis.http import functions_framework_entry
from alert_receiver.receiver import build

main = functions_framework_entry(build)
