"""Tell the trigger that a workflow has ended: `python -m sign_model.finish`.

Only a wake-up: the outcome is read from the Workflow, and reconcile finds it without this. So it never fails.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from aegis.errors import OK
from aegis.names import NAME

TYPE = "dev.aegis.retrain.finished.v1"
TIMEOUT = 5.0
"""Seconds. A trigger that is up answers at once; one that is down is not waited for."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def request(env: Mapping[str, str], now: datetime) -> urllib.request.Request | None:
    """The CloudEvent to POST (binary mode), or None if there is nowhere to send it."""
    sink = env.get("AEGIS_SINK", "")
    if not sink.startswith(("http://", "https://")):
        return None
    data = {"workflow": env.get("AEGIS_WORKFLOW", ""), "status": env.get("AEGIS_WORKFLOW_STATUS", "")}
    headers = {
        "Content-Type": "application/json",
        "ce-specversion": "1.0",
        "ce-type": TYPE,
        "ce-source": "/aegis/workflows",
        "ce-id": f"{env.get('AEGIS_WORKFLOW_UID') or 'unknown'}.finished",
        "ce-time": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }
    identity = [env.get("AEGIS_ENVIRONMENT", ""), env.get("AEGIS_MODEL", "")]
    if all(map(NAME.fullmatch, identity)):
        headers["ce-subject"] = "/".join(identity)
    return urllib.request.Request(sink, json.dumps(data).encode(), headers, method="POST")  # noqa: S310  http(s) only


def main(env: Mapping[str, str] = os.environ) -> int:
    """Entry point; always 0."""
    try:
        post = request(env, datetime.now(UTC))
        if post is None:
            print("finish: no AEGIS_SINK to tell")
            return OK
        with urllib.request.build_opener(_NoRedirect).open(post, timeout=TIMEOUT) as answer:
            print(f"finish: told the trigger, status {answer.status}")
    except urllib.error.HTTPError as error:
        error.close()
        print(f"finish: the trigger answered {error.code}; reconcile will see it")
    except (OSError, ValueError, http.client.HTTPException) as error:
        print(f"finish: {type(error).__name__}; reconcile will see it")
    return OK


if __name__ == "__main__":
    sys.exit(main())
