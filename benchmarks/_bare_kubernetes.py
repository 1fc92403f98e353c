"""The limit of a cold start: a bare uvicorn app that has imported the Kubernetes client."""

from __future__ import annotations

import kubernetes.client  # noqa: F401  # its import is what costs
from benchmarks._bare import raw as app

__all__ = ["app"]
