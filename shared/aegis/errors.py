"""Errors named for the caller's next move: try again, or give up.

Foreign errors are translated into one of these where they enter. `Temporary` becomes HTTP 503 or exit code 75,
`Permanent` HTTP 422 or the exit code that it carries (sysexits; one table for all steps).
"""

from __future__ import annotations

from collections.abc import Mapping

OK = 0
USAGE = 64
BAD_DATA = 65
TRAINER_FAILED = 70
TRANSIENT = 75
VERIFICATION_FAILED = 76
SIGNING_DENIED = 77


class Temporary(Exception):
    """The same call may succeed later."""

    exit_code = TRANSIENT


class Permanent(Exception):
    """The same call will fail again. `faults` names every fault found, by field."""

    exit_code = BAD_DATA

    def __init__(self, message: str, faults: Mapping[str, str] | None = None, *, exit_code: int | None = None) -> None:
        self.message = message
        self.faults = dict(faults or {})
        if exit_code is not None:
            self.exit_code = exit_code
        detail = "; ".join(f"{field}: {what}" for field, what in self.faults.items())
        super().__init__(f"{message}: {detail}" if detail else message)


class Conflict(Temporary):
    """A compare-and-set was lost: somebody else wrote first. Read again, decide again."""


class AlreadyExists(Permanent):
    """A create-only write found something there."""


class NotFound(Permanent):
    """What was asked for is not there."""
