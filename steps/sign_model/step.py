"""What the steps here share: their settings from the environment, and how a step ends. No decisions."""

from __future__ import annotations

import base64
import json
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aegis.errors import OK, USAGE, Permanent, Temporary

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
HEX = re.compile(r"[0-9a-f]{64}")
_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}")
_ALIAS = re.compile(r"(?!latest$|[vV][0-9]+$)[A-Za-z0-9_-]{1,100}")  # MLflow keeps those for itself
_SECRET = re.compile(r"PASSWORD|TOKEN|SECRET|CREDENTIAL|ACCESS_KEY", re.IGNORECASE)
_USERINFO = re.compile(r"://[^/\s@]+@")


@dataclass(frozen=True, slots=True)
class Context:
    """One workflow's identity and settings, as the WorkflowTemplate hands them to its containers."""

    model: str
    environment: str
    workflow: str
    workflow_uid: str
    run_id: str
    dataset_uri: str
    inputs: str
    event: Mapping[str, Any]
    settings: Mapping[str, Any]
    models_uri: str
    signing_key: str
    trusted_keys: Path
    out: Path
    scratch: Path
    allow_pickle: bool
    """AEGIS_ALLOW_PICKLE=true. Off: a pickle runs code when it is loaded, whoever signed it."""

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Context:
        """Read and check all of it; `Permanent` (64) names every fault."""
        faults: dict[str, str] = {}

        def text(name: str, pattern: re.Pattern[str] | None = None, *, empty: bool = False) -> str:
            value = env.get(name, "")
            if not value and not empty:
                faults[name] = "missing"
            elif value and pattern and not pattern.fullmatch(value):
                faults[name] = f"must match {pattern.pattern}"
            return value

        def document(name: str) -> Mapping[str, Any]:
            try:
                value = json.loads(base64.b64decode(env.get(name, "") or "e30=", validate=True))
            except (ValueError, RecursionError):
                value = None
            if not isinstance(value, dict):
                faults[name] = "must be a JSON object in base64"
                return {}
            return value

        context = cls(
            model=text("AEGIS_MODEL", NAME),
            environment=text("AEGIS_ENVIRONMENT", NAME),
            workflow=text("AEGIS_WORKFLOW", _UID),
            workflow_uid=text("AEGIS_WORKFLOW_UID", _UID),
            run_id=text("AEGIS_RUN_ID", _UID, empty=True),
            dataset_uri=text("AEGIS_DATASET_URI", empty=True),
            inputs=text("AEGIS_INPUTS", HEX, empty=True),
            event=document("AEGIS_EVENT"),
            settings=document("AEGIS_SETTINGS"),
            models_uri=text("AEGIS_MODELS_URI"),
            signing_key=text("AEGIS_SIGNING_KEY"),
            trusted_keys=Path(text("AEGIS_TRUSTED_KEYS")),
            out=Path(env.get("AEGIS_OUT") or "/aegis/out"),
            scratch=Path(env.get("AEGIS_TMP") or tempfile.gettempdir()),
            allow_pickle=env.get("AEGIS_ALLOW_PICKLE") == "true",
        )
        if not _ALIAS.fullmatch(context.alias):
            faults["AEGIS_SETTINGS.alias"] = f"must match {_ALIAS.pattern}"
        if faults:
            raise Permanent("settings", faults, exit_code=USAGE)
        return context

    @property
    def alias(self) -> str:
        """The registry alias that follows the pointer."""
        return str(self.settings.get("alias") or "") or alias_of(self.environment)

    def told(self, name: str) -> str:
        """A text from the drift event, or empty."""
        value = self.event.get(name)
        return value[:1000].encode(errors="replace").decode() if isinstance(value, str) else ""


def alias_of(environment: str) -> str:
    """`champion` in the environment `default`, `champion-<environment>` elsewhere; aliases have no dots."""
    return "champion" if environment == "default" else f"champion-{environment.replace('.', '-')}"


def wanted(env: Mapping[str, str], name: str, *, empty: bool = False) -> str:
    """A sha256 in hex from the environment; `Permanent` (64) if it is not there or not one."""
    value = env.get(name)
    if value is None or not (HEX.fullmatch(value) or (empty and not value)):
        raise Permanent("settings", {name: "must be a sha256 in hex"}, exit_code=USAGE)
    return value


def write_outputs(out: Path, values: Mapping[str, str]) -> None:
    """Output parameters: one small file each."""
    out.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (out / name).write_text(value)


def run(name: str, body: Callable[[Mapping[str, str]], str], env: Mapping[str, str]) -> int:
    """Run a step's body and turn how it ended into an exit code, one line on stderr and `out/failure`."""
    try:
        print(body(env), flush=True)
    except (Temporary, Permanent) as error:
        code, line = error.exit_code, str(error)
    except Exception as error:  # noqa: BLE001  the outermost boundary; the text may hold what nobody should read
        trace = error.__traceback__
        while trace and trace.tb_next:
            trace = trace.tb_next
        place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "?"
        code, line = 1, f"unexpected {type(error).__name__} at {place}"
    else:
        return OK
    line = " ".join(redact(f"{name}: {line}", env).split())
    print(line, file=sys.stderr, flush=True)
    if out := env.get("AEGIS_OUT"):
        write_outputs(Path(out), {"failure": line})
    return code


def redact(text: str, env: Mapping[str, str]) -> str:
    """The text without credentials in URLs and without any secret that the environment holds."""
    for name, value in env.items():
        if _SECRET.search(name) and len(value) >= 6:
            text = text.replace(value, "***")
    return _USERINFO.sub("://***@", text)
