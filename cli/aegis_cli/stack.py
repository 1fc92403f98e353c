"""Everything on one machine: receiver, trigger, runner and MLflow as processes and threads of one command."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import glob
import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from aegis.errors import Conflict, Permanent, Temporary
from aegis.settings import duration
from aegis.tied import tied
from retrain_trigger.local import MODELS, LocalLedger, LocalWorkflows
from retrain_trigger.sqlite import Objects
from sign_model import keys

from . import runner
from .config import Config

READY_WITHIN_S = 90.0
"""MLflow takes some twelve seconds on an idle machine, and longer on a busy one."""
STORAGE_VARIABLES = ("AWS_", "GOOGLE_", "STORAGE_EMULATOR_HOST")
MLFLOW_VARIABLES = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


class NotRunning(Permanent):
    """Nothing answers where it should."""

    exit_code = 69


@dataclass(frozen=True, slots=True)
class State:
    """Where one machine keeps everything."""

    root: Path
    poll_s: float = 0.2

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.db"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def datasets(self) -> Path:
        return self.root / "datasets"

    @property
    def trusted(self) -> Path:
        return self.root / "keys" / "trusted"

    @property
    def signing_key(self) -> Path:
        return self.root / "keys" / "signing.pem"

    @property
    def addresses(self) -> Path:
        return self.root / "addresses.json"

    def objects(self) -> Objects:
        return Objects(self.ledger)

    def records(self) -> LocalLedger:
        return LocalLedger(self.objects(), _no_uid)

    def workflows(self) -> LocalWorkflows:
        return LocalWorkflows(self.objects(), _no_uid)

    def request(self, name: str, why: str) -> str:
        """Ask for a retrain as `kubectl label` does on a cluster; return the token."""
        token = secrets.token_hex(8)
        for _ in range(20):
            try:
                self.records().request(name, token, getpass.getuser(), why)
            except Conflict:
                continue
            return token
        raise Temporary(f"{name}: too many others write its ledger; try again")

    def wake(self) -> bool:
        """Let the trigger look at what waits; False if none runs."""
        try:
            call(self.urls()["trigger"], "POST", "/reconcile")
        except (NotRunning, OSError, http.client.HTTPException):
            return False
        return True

    def answer(self, workflow: str, refusal: str | None) -> None:
        """Release a Workflow that waits for a person, or refuse it."""
        person, now = getpass.getuser(), datetime.now(UTC)
        if refusal is None:
            runner.approve(self.objects(), workflow, by=person, now=now)
        else:
            runner.reject(self.objects(), workflow, by=person, why=refusal, now=now)

    def mlflow(self) -> str | None:
        """The URL of the running (or last) MLflow."""
        try:
            return self.urls()["mlflow"]
        except NotRunning:
            return None

    def report(self, run_id: str) -> str | None:
        """The model card of a run, if it has one."""
        found = (self.root / "mlflow" / "artifacts").glob(f"*/{glob.escape(run_id)}/artifacts/model_card.html")
        return str(next(found, "")) or None

    def logs(self, workflow: str) -> str | None:
        """The folder of a Workflow's logs, if it is still there."""
        folder = self.root / "runs" / workflow
        return str(folder) if folder.is_dir() else None

    def urls(self) -> dict[str, str]:
        """The addresses of the running (or last) stack. Raises NotRunning."""
        try:
            found: dict[str, str] = json.loads(self.addresses.read_text())
        except (OSError, ValueError) as exc:
            raise NotRunning(f"nothing was started in {self.root}: run `aegis up` first") from exc
        return found


def _no_uid() -> str:
    raise AssertionError("a reader creates nothing")


def default_state() -> Path:
    """`$AEGIS_STATE`, else a folder for state as the XDG specification has it."""
    home = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(os.environ.get("AEGIS_STATE") or Path(home) / "aegis")


class Stack:
    """Start, watch and end the parts. Use as a context manager."""

    def __init__(
        self, state: State, config: Config, env: Mapping[str, str], stop: threading.Event | None = None
    ) -> None:
        """`stop`, when set, ends the start early; leaving the block sets it."""
        self.state = state
        self.config = config
        self._env = env
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event() if stop is None else stop
        self._failures: list[str] = []
        self._held = contextlib.ExitStack()
        self.urls = {name: f"http://127.0.0.1:{port}" for name, port in config.ports.items()}

    def __enter__(self) -> Stack:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=20)
        for child in self._children.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGTERM)
        deadline = time.monotonic() + 10
        for child in self._children.values():
            try:
                child.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        self._held.close()

    def _start(self) -> None:
        self._refuse_busy_ports()
        state = self.state
        self._lock()
        for folder in (state.root, state.datasets, state.models, state.root / "logs", state.root / "mlflow"):
            folder.mkdir(parents=True, exist_ok=True)
        state.root.chmod(0o700)
        keys.ensure(state.signing_key, state.trusted)
        seal_key = _secret(state.root / "keys" / "seal.key")
        mapping_file = state.root / "receiver.yaml"
        mapping_file.write_text(yaml.safe_dump({"receiver": dict(self.config.receiver)}))
        self._set_policies()
        self._mlflow()
        sink = self.urls["trigger"] + "/"
        trigger = self.config.trigger
        self._function(
            "trigger",
            "retrain_trigger",
            {
                "AEGIS_LEDGER": str(state.ledger),
                "AEGIS_DATASET_PREFIXES": ",".join(self.config.prefixes(state.root)),
                "AEGIS_BUDGET": str(trigger.get("budget", 20)),
                "AEGIS_CREATE_UNKNOWN": str(trigger.get("createUnknown", True)).lower(),
                "AEGIS_MAX_MODELS": str(trigger.get("maxModels", 1000)),
                "AEGIS_RUN_DEADLINE": str(trigger.get("runDeadline", "4h")),
                "AEGIS_SEAL_KEYS": str(seal_key),
                "AEGIS_TRUST_LOOPBACK": "true",
                "AEGIS_MODELS_URI": state.models.as_uri(),
                "AEGIS_TRUSTED_KEYS": str(state.trusted),
            },
        )
        self._function(
            "receiver",
            "alert_receiver",
            {"K_SINK": sink, "AEGIS_CONFIG": str(mapping_file), "AEGIS_SEAL_KEY_FILE": str(seal_key)},
        )
        for name, path in (("trigger", "/health/readiness"), ("receiver", "/health/readiness"), ("mlflow", "/health")):
            self._wait_ready(name, path)
        if self._stop.is_set():
            return
        state.addresses.write_text(json.dumps(self.urls))
        self._wake()  # the ledgers note what ended before the runner may forget it
        self._thread("runner", lambda: self._runner().serve(self._stop))
        self._thread("reconcile", self._reconcile)

    def _lock(self) -> None:
        self.state.root.mkdir(parents=True, exist_ok=True)
        held = self._held.enter_context((self.state.root / ".lock").open("w"))
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel drops it with this process
        except BlockingIOError as exc:
            raise NotRunning(f"cannot start: `aegis up` runs already in {self.state.root}") from exc

    def _refuse_busy_ports(self) -> None:
        busy = {}
        for name, port in self.config.ports.items():
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    busy[f"ports.{name}"] = f"port {port} is in use; stop who uses it, or set another in --config"
        if busy:
            raise Permanent("cannot start", busy, exit_code=NotRunning.exit_code)

    def _set_policies(self) -> None:
        """The file is the only owner here: a model that it no longer names goes back to the defaults."""
        ledger = LocalLedger(self.state.objects(), lambda: secrets.token_hex(16))
        identity = ("environment", "model")
        specs = {
            (given.get("environment", "default"), given["model"]): {k: v for k, v in given.items() if k not in identity}
            for given in self.config.models
        }
        for stored in self.state.objects().list(MODELS):
            old = stored.doc["spec"]
            specs.setdefault((old["environment"], old["model"]), {})
        for (environment, model), spec in specs.items():
            ledger.set_spec(environment, model, spec, datetime.now(UTC))

    def _mlflow(self) -> None:
        folder = self.state.root / "mlflow"
        self._spawn(
            "mlflow",
            [
                sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port",
                str(self.config.ports["mlflow"]), "--workers", "1", "--backend-store-uri",
                f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder / "artifacts"),
            ],
            {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
        )  # fmt: skip

    def _function(self, name: str, package: str, env: Mapping[str, str]) -> None:
        spec = find_spec(f"{package}.main")
        if spec is None or spec.origin is None:
            raise AssertionError(f"{package} is not installed")
        self._spawn(
            name,
            [
                sys.executable, "-m", "uvicorn", "functions_framework.aio:app", "--host", "127.0.0.1", "--port",
                str(self.config.ports[name]), "--lifespan", "on", "--timeout-keep-alive", "95", "--no-access-log",
                "--log-level", "warning",
            ],
            {"FUNCTION_TARGET": "main", "FUNCTION_SOURCE": spec.origin, **env},
        )  # fmt: skip

    def _spawn(self, name: str, argv: list[str], env: Mapping[str, str]) -> None:
        base = {key: self._env[key] for key in ("PATH", "HOME", "LANG", "TMPDIR") if key in self._env}
        with (self.state.root / "logs" / f"{name}.log").open("ab") as log:
            self._children[name] = subprocess.Popen(  # noqa: S603  # a fixed command, never a shell
                tied(argv),
                env={**base, **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches this command only, which then ends the others in order
            )

    def _wait_ready(self, name: str, path: str) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < deadline and not self._stop.is_set():
            if (code := self._children[name].poll()) is not None:
                raise Temporary(f"{name} ended with code {code}; see {self.state.root / 'logs' / f'{name}.log'}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                if call(self.urls[name], "GET", path, timeout=2)[0] == 200:
                    return
            self._stop.wait(0.1)
        if not self._stop.is_set():
            raise Temporary(f"{name} did not become ready within {READY_WITHIN_S:.0f} s")

    def _runner(self) -> runner.Runner:
        state = self.state
        steps = {
            "AEGIS_MODELS_URI": state.models.as_uri(),
            "AEGIS_DATASET_PREFIXES": ",".join(self.config.prefixes(state.root)),
            "AEGIS_SIGNING_KEY": state.signing_key.as_uri(),
            "AEGIS_TRUSTED_KEYS": str(state.trusted),
            "AEGIS_SINK": self.urls["trigger"] + "/",
            "AEGIS_ALLOW_PICKLE": str(self.config.allow_pickle).lower(),
            "MLFLOW_TRACKING_URI": self.urls["mlflow"],
        }
        given = self._env.items()
        return runner.Runner(
            objects=state.objects(),
            template=runner.load(template_path()),
            state_dir=state.root,
            config={"aegis-steps": steps, "aegis-limits": {"training": "2"}},
            secrets={
                "aegis-storage": {key: value for key, value in given if key.startswith(STORAGE_VARIABLES)},
                "aegis-mlflow": {key: value for key, value in given if key in MLFLOW_VARIABLES},
            },
            on_end=lambda _: self._wake(),
        )

    def _reconcile(self) -> None:
        interval = duration(self.config.reconcile_interval).total_seconds()
        while not self._stop.wait(interval):
            self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):  # the timer comes again
            call(self.urls["trigger"], "POST", "/reconcile")

    def _thread(self, name: str, work: Callable[[], object]) -> None:
        def run() -> None:
            try:
                work()
            except Exception as exc:  # noqa: BLE001  # the outermost boundary of this thread: `check` tells it
                self._failures.append(f"{name} ended: {exc}")

        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def check(self) -> None:
        """Raise Temporary if a part has ended by itself."""
        ended = [f"{name} ended with code {c.returncode}" for name, c in self._children.items() if c.poll() is not None]
        if found := ended + self._failures:
            raise Temporary("; ".join(found) + f"; see {self.state.root / 'logs'}")


def template_path() -> Path:
    """The WorkflowTemplate."""
    return shipped("argo/workflow-template.yaml")


def shipped(path: str) -> Path:
    """A manifest of `knative/base`: beside this package when installed, there in a checkout."""
    packaged = Path(__file__).with_name(Path(path).name)
    return packaged if packaged.exists() else Path(__file__).parents[2] / "knative" / "base" / path


def call(
    url: str,
    method: str,
    path: str,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    *,
    timeout: float = 30,
) -> tuple[int, dict[str, str], bytes]:
    """One HTTP request: status, headers (lower-case) and body. `url` is http[s]://host[:port]. Raises OSError."""
    parts = urlsplit(url)
    made = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = made(parts.hostname or "", parts.port, timeout=timeout)
    try:
        connection.request(method, path, body or None, dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def _secret(path: Path) -> Path:
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    return path


@contextlib.contextmanager
def interrupted() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, in place of an exception at any line."""
    stop = threading.Event()

    def note(*_: Any) -> None:
        stop.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
