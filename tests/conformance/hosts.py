"""The functions under each host that they may run in: the same settings, the same requests, the same answers."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.trigger.host import Host

ROOT = Path(__file__).resolve().parents[2]
HOSTS = ("functions-framework", "func-python")
NAMES = {"alert_receiver": "alert-receiver", "retrain_trigger": "retrain-trigger"}

MAIN = """\
from func_python.http import serve

from function import new as handler

if __name__ == "__main__":
    serve(handler)
"""
"""What func writes around a function that it builds, without what it does about limits of open files."""


def environment() -> Path:
    """func-python's own virtual environment, made once for a lock: it cannot share one with functions-framework."""
    lock = ROOT / "requirements" / "func.txt"
    venv = ROOT / "build" / "venv-func" / hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()[:12]
    if not (venv / "complete").exists():
        pip = [str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet"]
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
        made = subprocess.run(
            [*pip, "install", "--require-hashes", "--no-deps", "-r", str(lock)], capture_output=True, text=True
        )
        if made.returncode != 0:
            pytest.skip(f"func-python's environment cannot be made: {made.stderr.strip().splitlines()[-1]}")
        (venv / "complete").touch()
    return venv


@dataclass(frozen=True)
class Scaffolding:
    """The staged bundles as func installs and starts them."""

    python: Path
    folder: Path

    @classmethod
    def of(cls, bundles: Path, folder: Path) -> Scaffolding:
        """Build and install each bundle, each in a folder of its own: both distributions are named `function`."""
        python = environment() / "bin" / "python"
        for name in NAMES.values():
            command = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-index"]
            command += ["--no-deps", "--no-build-isolation", "--target", str(folder / name / "site"), f"./{name}"]
            subprocess.run(command, check=True, cwd=bundles)
            (folder / name / "service").mkdir()
            (folder / name / "service" / "main.py").write_text(MAIN)
        return cls(python, folder)


@dataclass
class FuncHost(Host):
    """One function under func-python."""

    scaffolding: Scaffolding | None = None

    def start(self) -> FuncHost:
        assert self.scaffolding is not None
        home = self.scaffolding.folder / NAMES[self.function]
        env = {
            "PATH": os.environ["PATH"],
            "LISTEN_ADDRESS": f"127.0.0.1:{self.port}",
            "PYTHONPATH": str(home / "site"),
            **self.env,
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([str(self.scaffolding.python), "service/main.py"], env=env, cwd=home,
                                            stdout=log, stderr=log, start_new_session=True)  # fmt: skip
        return self


def answers(host: Host) -> bool:
    """Whether it answers yet, ready or not. Fails if the process has ended."""
    assert host.process is not None
    assert host.process.poll() is None, host.text()
    try:
        return host.request("GET", "/health/liveness")[0] == 200
    except OSError:
        return False
