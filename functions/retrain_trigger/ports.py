"""What the trigger needs of the world: a ledger, a budget and Workflows. Every adapter passes one contract suite.

And, where it may read them, the serials of champions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Protocol

from .budget import Budget
from .model import Record, Status

Serials = Callable[[str, str], str | None]
"""environment, model → the champion's serial in the signed pointer, or None where it cannot be had."""


def no_serials(_environment: str, _model: str) -> str | None:
    """What a process that may not read pointers knows."""
    return None


class Ledger(Protocol):
    """ManagedModels. Every call raises Temporary when the store does not answer."""

    def read(self, name: str) -> Record | None:
        """Return the record, or None. Raises Permanent for an invalid spec, Temporary for a newer format."""

    def create(self, environment: str, model: str, status: Status, now: datetime) -> Record:
        """Create a record without a policy of its own; pending if `status` says anything. Raises Conflict if somebody
        was quicker."""

    def write(self, record: Record, status: Status, *, pending: bool) -> Record:
        """Replace the status by compare-and-set. Raises Conflict."""

    def pending(self) -> Iterable[str]:
        """Names of the records that reconcile must look at, requests by label included."""

    def count(self) -> int:
        """How many records there are."""


class Budgets(Protocol):
    """The one document of the submission budget."""

    def read(self) -> tuple[Budget, str]:
        """Return the budget and its version."""

    def write(self, budget: Budget, version: str) -> None:
        """Replace it by compare-and-set. Raises Conflict."""


class Workflows(Protocol):
    """Argo Workflows of one namespace."""

    def create(self, manifest: dict[str, Any], now: datetime) -> str:
        """Create a Workflow and return its uid. Raises AlreadyExists."""

    def get(self, name: str) -> dict[str, Any] | None:
        """Return the Workflow, or None."""

    def of_model(self, managed_model: str) -> list[dict[str, Any]]:
        """Return the Workflows that carry a ManagedModel's label."""
