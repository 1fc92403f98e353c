"""Real host processes of the functions on loopback, each on a free port and ended by its pid."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support import free_port, until

ROOT = Path(__file__).resolve().parents[2]
START_WITHIN_S = 60.0


@dataclass
class Host:
    """One function under uvicorn (or under the `functions-framework` command)."""

    function: str
    env: Mapping[str, str]
    log: Path
    command: bool = False
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> Host:
        """Start the process; it may not answer yet."""
        source = ROOT / "functions" / self.function / "main.py"
        env = {
            "PATH": os.environ["PATH"],
            "FUNCTION_TARGET": "main",
            "FUNCTION_SOURCE": str(source),
            **self.env,
        }
        if self.command:
            argv = [str(Path(sys.executable).parent / "functions-framework"), "--asgi", "--host", "127.0.0.1"]
            argv += ["--port", str(self.port)]
        else:
            argv = [sys.executable, "-m", "uvicorn", "functions_framework.aio:app", "--lifespan", "on"]
            argv += ["--host", "127.0.0.1", "--port", str(self.port), "--no-access-log", "--log-level", "warning"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(argv, env=env, stdout=log, stderr=log, cwd=self.log.parent,
                                            start_new_session=True)  # fmt: skip
        return self

    def ready(self) -> Host:
        """Wait until readiness is 200."""
        until(self._answers, within_s=START_WITHIN_S, what=f"{self.function} being ready")
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.text()
        try:
            return self.request("GET", "/health/readiness")[0] == 200
        except OSError:
            return False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def request(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None, timeout: float = 30
    ) -> tuple[int, bytes, dict[str, str]]:
        """One request on a connection of its own: status, body, headers. Raises OSError if none is answered."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body or None, dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.read(), {k.lower(): v for k, v in answer.getheaders()}
        except http.client.HTTPException as exc:
            raise ConnectionError(str(exc)) from exc
        finally:
            connection.close()

    def kill(self) -> None:
        """As kill -9: nothing of the process is left, nothing was tidied."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()

    def text(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def __enter__(self) -> Host:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def trigger_host(ledger: Path | None, log: Path, *, command: bool = False, **settings: Any) -> Host:
    """A trigger over a ledger file; by default for callers on loopback."""
    env = {
        "AEGIS_LEDGER": str(ledger or ""),
        "AEGIS_TRUST_LOOPBACK": "true",
        "AEGIS_CREATE_UNKNOWN": "true",
        "AEGIS_DATASET_PREFIXES": "s3://data/",
        "AEGIS_LOG_LEVEL": "warning",
        **{"AEGIS_" + name.upper(): value for name, value in settings.items()},
    }
    return Host("retrain_trigger", {k: v for k, v in env.items() if v}, log, command)


def receiver_host(sink: str, log: Path, **settings: str) -> Host:
    """A receiver whose events go to `sink`."""
    env = {"K_SINK": sink, **{"AEGIS_" + name.upper(): value for name, value in settings.items()}}
    return Host("alert_receiver", env, log)
