"""What the three entry points share: outputs as small files, failures as exit codes, and the verified champion."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from aegis import pointer, signature
from aegis.errors import OK, TRAINER_FAILED, TRANSIENT, VERIFICATION_FAILED, Permanent, Temporary
from aegis.pointer import Champion
from aegis.storage import open_store
from train_model.attempt import Attempt

Step = Callable[[Attempt, Mapping[str, str]], None]


class TrainerFailed(Permanent):
    """The trainer did not leave a usable model (70). `reason` is a code that a ledger may keep."""

    exit_code = TRAINER_FAILED

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def write(out: Path, values: Mapping[str, str]) -> None:
    """Output parameters, one file each."""
    out.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (out / name).write_text(value, encoding="utf-8")


def run(step: Step, env: Mapping[str, str], required: Sequence[str]) -> int:
    """Run a step that needs the variables `required`; its exit code.

    A failure leaves one line on stderr, the same in `failure`, and what the ledger reads. The line begins with the
    outcome: of an init container nothing else is known to a Workflow.
    """
    out = Path(env.get("AEGIS_OUT") or "/aegis/out")
    try:
        step(Attempt.from_env(env, required), env)
    except Temporary as error:
        return _failed(out, str(error), TRANSIENT, "")
    except Permanent as error:
        kind = {TRAINER_FAILED: "TrainerFailed", VERIFICATION_FAILED: "Failed"}.get(error.exit_code, "BadData")
        default = "Unverified" if error.exit_code == VERIFICATION_FAILED else ""
        reason = getattr(error, "reason", default)
        outcome = f"{kind}:{reason}" if reason else kind
        return _failed(out, str(error), error.exit_code, outcome)
    return OK


def _failed(out: Path, text: str, code: int, outcome: str) -> int:
    line = " ".join(text.split())[:2000]
    said = f"{outcome}: {line}" if outcome else line
    print(said, file=sys.stderr)
    write(out, ({"outcome": outcome} if outcome else {}) | {"failure": said, "explanation": line})
    return code


def fetch_champion(attempt: Attempt, env: Mapping[str, str], target: Path) -> Champion | None:
    """The verified champion, extracted into `target`; None if there is none yet. Unverifiable is Permanent (76).

    Keys are asked for only if there is something to verify: a first training needs none.
    """
    store = open_store(attempt.models_uri, env=env)
    if store.head(pointer.path_of(attempt.environment, attempt.model)) is None:
        return None
    keys = signature.load_keys(Path(attempt.trusted_keys or os.devnull))
    return pointer.fetch_champion(store, keys, attempt.environment, attempt.model, target)
