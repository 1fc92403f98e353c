"""What the three entry points share: the word for a failure that a ledger reads, and the verified champion."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from aegis import pointer, signature, step
from aegis.errors import TRAINER_FAILED, VERIFICATION_FAILED, Permanent
from aegis.pointer import Champion
from aegis.storage import open_store
from train_model.attempt import Attempt


class TrainerFailed(Permanent):
    """The trainer did not leave a usable model (70). `reason` is a code that a ledger may keep."""

    exit_code = TRAINER_FAILED

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def run(
    name: str, body: Callable[[Attempt, Mapping[str, str]], str], env: Mapping[str, str], required: Sequence[str]
) -> int:
    """Run a step that needs the variables `required`; its exit code."""
    return step.run(name, lambda env: body(Attempt.from_env(env, required), env), env, _outcome)


def _outcome(error: Permanent) -> str:
    if error.exit_code == VERIFICATION_FAILED:
        return "Failed:Unverified"
    kind = "TrainerFailed" if error.exit_code == TRAINER_FAILED else "BadData"
    reason = getattr(error, "reason", "")
    return f"{kind}:{reason}" if reason else kind


def fetch_champion(attempt: Attempt, env: Mapping[str, str], target: Path) -> Champion | None:
    """The verified champion, extracted into `target`; None if there is none yet. Unverifiable is Permanent (76).

    Keys are asked for only if there is something to verify: a first training needs none.
    """
    store = open_store(attempt.models_uri, env=env)
    if store.head(pointer.path_of(attempt.environment, attempt.model)) is None:
        return None
    keys = signature.load_keys(Path(attempt.trusted_keys or os.devnull))
    return pointer.fetch_champion(store, keys, attempt.environment, attempt.model, target)
