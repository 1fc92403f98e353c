"""One model's world in a folder: data, a store of models with a signed champion, and the steps as processes."""

from __future__ import annotations

import base64
import contextlib
import importlib
import io
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aegis import pointer
from aegis.package import Origin
from aegis.pointer import Pointer
from aegis.signature import load_keys
from aegis.storage import open_store
from sign_model import keys
from sign_model.sign import sign
from tests.storage.servers import clean

SOURCES = ":".join(str(Path(__file__).parents[2] / room) for room in ("shared", "steps"))


@dataclass
class Outcome:
    """A step's end: exit code, what it printed, and its output parameters."""

    code: int
    text: str
    out: Mapping[str, str]


@dataclass
class World:
    """Paths of a pod, a model store and the environment of a step, which a test may change."""

    root: Path
    tracking: str
    uid: str = "uid-1"
    settings: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)

    def uri(self, name: str) -> str:
        return f"file://{self.root / name}"

    def environment(self) -> dict[str, str]:
        event = {"event_id": "ev-1", "fingerprint": "f1", "reason": "<b>drift</b> of \u202edigits\x1b[2J"}
        encoded = {"AEGIS_EVENT": event, "AEGIS_SETTINGS": self.settings}
        return clean(
            {
                "AEGIS_MODEL": "digits",
                "AEGIS_ENVIRONMENT": "test",
                "AEGIS_MODEL_VERSION": "1",
                "AEGIS_DATASET_URI": self.uri("data/new"),
                "AEGIS_DATASET_PREFIXES": self.uri("data"),
                "AEGIS_WORKFLOW": "aegis-digits-1",
                "AEGIS_WORKFLOW_UID": self.uid,
                "AEGIS_MODELS_URI": self.uri("models"),
                "AEGIS_TRUSTED_KEYS": str(self.root / "trusted"),
                "MLFLOW_TRACKING_URI": self.tracking,
                "PYTHONPATH": SOURCES,
                "AEGIS_TMP": str(self.root / "tmp"),
                "AEGIS_DATA": str(self.root / "pod"),
                "AEGIS_OUT": str(self.root / "out"),
                "AEGIS_MODEL_DIR": str(self.root / "out" / "model"),
                **{name: base64.b64encode(json.dumps(value).encode()).decode() for name, value in encoded.items()},
                **self.env,
            }
        )

    def run(self, step: str, *, seconds: float = 120) -> Outcome:
        """`python -m train_model.<step>` in a process of its own; never a traceback."""
        command = [sys.executable, "-m", f"train_model.{step}"]
        done = subprocess.run(
            command, env=self.environment(), cwd=self.root, capture_output=True, timeout=seconds, check=False
        )
        text = done.stdout.decode() + done.stderr.decode()
        assert "Traceback" not in done.stderr.decode(), text
        return Outcome(done.returncode, text, self.outputs())

    def call(self, step: str) -> Outcome:
        """The same within this process, which has imported MLflow already; children stay children."""
        before, text = dict(os.environ), io.StringIO()
        try:
            with (
                contextlib.redirect_stdout(text),
                contextlib.redirect_stderr(text),
                contextlib.chdir(self.root),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")  # MLflow's and SQLAlchemy's; in a process of their own they only print
                code = importlib.import_module(f"train_model.{step}").main(self.environment())
        finally:
            os.environ.clear()  # the steps bound MLflow's patience through it
            os.environ.update(before)
        return Outcome(code, text.getvalue(), self.outputs())

    def outputs(self) -> dict[str, str]:
        """The output parameters that lie there."""
        folder = self.root / "out"
        files = [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
        return {path.name: path.read_text() for path in files}

    def retrain(self) -> Outcome:
        """All three steps of a new attempt, or as far as they go; the gate's end."""
        shutil.rmtree(self.root / "out", ignore_errors=True)
        for step in ("fetch", "train"):
            done = self.call(step)
            assert done.code == 0, done.text
        return self.call("gate")

    def crown(self, model_dir: Path, dataset_uri: str = "") -> Pointer:
        """Sign a model and point at it, as a promotion would."""
        signer = keys.ensure(self.root / "keys" / "signing.pem", self.root / "trusted")
        trusted, store = load_keys(self.root / "trusted"), open_store(self.uri("models"), env={})
        (self.root / "tmp").mkdir(exist_ok=True)
        origin = Origin(model="digits", environment="test", workflow_uid="u0", dataset_uri=dataset_uri)
        package = sign(model_dir, origin, None, store=store, signer=signer, trusted=trusted, scratch=self.root / "tmp")
        found = pointer.read(store, trusted, "test", "digits")
        new = Pointer(
            model="digits",
            environment="test",
            serial=found[0].serial + 1 if found else 1,
            tar_sha256=package.tar_sha256,
            root_digest=package.root_digest,
            package=f"{self.uri('models')}/packages/test/digits/{package.tar_sha256}/",
            run_id="r0",
            model_version="1",
            workflow="u0",
            promoted_at="2026-01-01T00:00:00Z",
        )
        store.swap(pointer.path_of("test", "digits"), pointer.seal(new, signer), found[1] if found else None)
        return new
