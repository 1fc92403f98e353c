"""The part of `aegis up` that runs Workflows, as a process to kill: `python -m tests.faults.runner_process FILE`.

The file says where everything is: {"ledger", "state", "trigger", "steps", "secrets"}.
"""

from __future__ import annotations

import http.client
import json
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from aegis_cli.runner import Runner, load
from aegis_cli.stack import call, template_path
from aegis_cli.workflow_run import Settings
from retrain_trigger.sqlite import Objects


def main(given: dict[str, Any]) -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    def wake(_: object) -> None:
        with suppress(OSError, http.client.HTTPException):
            call(given["trigger"], "POST", "/reconcile")

    Runner(
        objects=Objects(Path(given["ledger"])),
        template=load(template_path()),
        state_dir=Path(given["state"]),
        config={"aegis-steps": given["steps"], "aegis-limits": {"training": "2"}},
        secrets=given["secrets"],
        settings=Settings(poll_s=0.1, longest_backoff_s=0.1),  # the template's 10 s would be most of the test
        on_end=wake,
    ).serve(stop)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
