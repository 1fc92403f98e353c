"""retrain-trigger under functions-framework (ASGI, HTTP function)."""

from __future__ import annotations

import os
import sys
from typing import Any

import functions_framework.aio

from aegis.errors import Permanent
from aegis.http import functions_framework_entry
from retrain_trigger.function import from_env

try:
    _function = from_env(os.environ)  # opens nothing: the host may still fork
except Permanent as exc:
    sys.exit(str(exc))
_entry = functions_framework_entry(lambda: _function)


@functions_framework.aio.http
async def main(request: Any) -> Any:
    return await _entry(request)
