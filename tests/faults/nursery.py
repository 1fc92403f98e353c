"""Steps as forks of one process that has imported what takes them seconds; each is a process of its own to kill.

`python -m tests.faults.nursery` reads orders from stdin, one line of JSON each, and answers each with how the step
ended: its exit code, or minus the signal. A step runs in the environment of its order alone.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from aegis.storage import open_store
from tests.storage.servers import clean

ROOT = Path(__file__).parents[2]
HEAVY = (
    "boto3.session",
    "cryptography.hazmat.backends.openssl.backend",
    "mlflow.entities",
    "mlflow.store.artifact.mlflow_artifacts_repo",
    "mlflow.store.model_registry.rest_store",
    "mlflow.store.tracking.rest_store",
    "mlflow.tracing.processor.otel",
    "mlflow.tracking",
    "mlflow.tracking.request_header.registry",
    "sign_model.finish",
    "sign_model.promote",
    "sign_model.sign",
    "train_model.fetch",
    "train_model.gate",
    "train_model.train",
)


class Nursery:
    """The process that forks, as its caller sees it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def run(self, step: str, env: Mapping[str, str], cwd: Path, log: Path) -> int:
        """`python -m step` with this environment; its exit code, or minus the signal that ended it."""
        order = {"step": step, "env": dict(env), "cwd": str(cwd), "log": str(log)}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the nursery has ended"
        return int(answer)


@contextmanager
def nursery() -> Iterator[Nursery]:
    """A nursery; its end is that of its stdin."""
    command = [sys.executable, "-m", "tests.faults.nursery"]
    env = clean({"MLFLOW_DISABLE_TELEMETRY": "true", "OPENBLAS_NUM_THREADS": "1"})
    with subprocess.Popen(
        command, env=env, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        yield Nursery(process)
        assert process.stdin is not None
        process.stdin.close()


def main() -> None:
    for name in HEAVY:
        importlib.import_module(name)
    _read_once()
    assert threading.active_count() == 1, "a fork would lose the other threads"
    gc.freeze()  # or each fork would look for garbage among all that was imported
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _child(json.loads(line))
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _read_once() -> None:
    """What botocore reads from its own files for each client, 0.2 s of JSON, the forks find in memory."""
    from botocore.loaders import JSONFileLoader

    read = functools.cache(JSONFileLoader().load_file)
    JSONFileLoader.load_file = lambda _self, path: read(path)
    open_store("s3://bucket", env={})


def _child(order: Mapping[str, object]) -> NoReturn:
    """End without tidying up what was imported, which takes a second; as multiprocessing ends its forks."""
    code = 1
    try:
        code = _step(order)
    except BaseException:  # noqa: BLE001  # the outermost boundary of this process
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _step(order: Mapping[str, object]) -> int:
    """Become the step: its environment, its folder, its log; and then what `python -m` does."""
    log = os.open(str(order["log"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.clear()
    env = order["env"]
    assert isinstance(env, dict)
    os.environ.update(env)
    os.chdir(str(order["cwd"]))
    code = importlib.import_module(str(order["step"])).main()
    assert isinstance(code, int)
    return code


if __name__ == "__main__":
    main()
