"""How a step of the workflow reads its environment and how it ends: output files, one line, an exit code.

Every step gets AEGIS_MODEL, AEGIS_ENVIRONMENT, AEGIS_WORKFLOW, AEGIS_WORKFLOW_UID, AEGIS_EVENT and AEGIS_SETTINGS of
its workflow, and AEGIS_OUT and AEGIS_TMP to write to. What is set once for all workflows (AEGIS_MODELS_URI,
AEGIS_DATASET_PREFIXES, AEGIS_TRUSTED_KEYS, AEGIS_SIGNING_KEY, AEGIS_ALLOW_PICKLE, MLFLOW_TRACKING_URI) comes from the
ConfigMap `aegis-steps`, on one machine from `aegis up`; the step that reads it documents it.
"""

from __future__ import annotations

import base64
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aegis.errors import OK, USAGE, Permanent, Temporary
from aegis.names import printable
from aegis.strict import strict_json

MAX_LINE = 2000
_SECRET = re.compile(r"PASSWORD|TOKEN|SECRET|CREDENTIAL|ACCESS_KEY", re.IGNORECASE)
_USERINFO = re.compile(r"://[^/\s]+@")


@dataclass(frozen=True, slots=True)
class Reader:
    """A step's environment. What is wrong with it is noted by name, and raised all at once."""

    env: Mapping[str, str]
    faults: dict[str, str] = field(default_factory=dict)

    def text(self, name: str, pattern: re.Pattern[str] | None = None, *, empty: bool = False) -> str:
        """A variable, which has to match; it may be missing if `empty`."""
        value = self.env.get(name, "")
        if not value and not empty:
            self.faults[name] = "missing"
        elif value and pattern and not pattern.fullmatch(value):
            self.faults[name] = f"must match {pattern.pattern}"
        return value

    def document(self, name: str) -> dict[str, Any]:
        """A JSON object in base64; one that is missing is empty."""
        try:
            found = strict_json(base64.b64decode(self.env.get(name) or "e30=", validate=True))
        except ValueError:
            found = None
        if isinstance(found, dict):
            return found
        self.faults[name] = "must be a JSON object in base64"
        return {}

    def check(self) -> None:
        """`Permanent` (64) with every fault noted so far."""
        if self.faults:
            raise Permanent("bad settings", self.faults, exit_code=USAGE)


def out_of(env: Mapping[str, str]) -> Path:
    """The folder for output parameters."""
    return Path(env.get("AEGIS_OUT") or "/aegis/out")


def write_outputs(out: Path, values: Mapping[str, str]) -> None:
    """Output parameters: one small file each."""
    out.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (out / name).write_text(value, encoding="utf-8")


def run(
    name: str,
    body: Callable[[Mapping[str, str]], str],
    env: Mapping[str, str],
    outcome: Callable[[Permanent], str] = lambda _: "",
) -> int:
    """Run a step's body, which returns what is to be said of its success; the exit code.

    A failure leaves one line on stderr, the same in `failure`, and what a ledger may keep in `explanation` and, where
    the step has a word for it, `outcome`. The line begins with that word: of an init container nothing else is known.
    """
    kind = ""
    try:
        print(body(env), flush=True)
        return OK
    except Permanent as error:
        code, text, kind = error.exit_code, str(error), outcome(error)
    except Temporary as error:
        code, text = error.exit_code, str(error)
    except Exception as error:  # noqa: BLE001  the outermost boundary; the text may hold what nobody should read
        trace = error.__traceback__
        while trace and trace.tb_next:
            trace = trace.tb_next
        place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "?"
        code, text = 1, f"unexpected {type(error).__name__} at {place}"
    text = printable(" ".join(redact(text, env).split()))[:MAX_LINE]
    line = f"{kind or name}: {text}"
    print(line, file=sys.stderr, flush=True)
    with suppress(OSError):  # the exit code and the line are told all the same
        write_outputs(out_of(env), ({"outcome": kind} if kind else {}) | {"failure": line, "explanation": text})
    return code


def redact(text: str, env: Mapping[str, str]) -> str:
    """The text without credentials in URLs and without any secret that the environment holds. Cut it afterwards."""
    for name, value in env.items():
        if _SECRET.search(name) and len(value) >= 6:
            text = text.replace(value, "***")
    return _USERINFO.sub("://***@", text)
