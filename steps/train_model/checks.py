"""What forbids training: every fault of every source, told at once. Pure; what is read is in `dataset`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from aegis.errors import BAD_DATA, Permanent
from train_model.dataset import Fetched
from train_model.readers import NoLabels, Rows

MIN_ROWS = 50
"""Fewer rows are a sample, not a training set; five of a hundred columns would already fit by luck."""
MAX_CLASSES = 1000


@dataclass(slots=True)
class Problems:
    """What forbids training, of all sources, until it is raised at once: `with problems.of("data"): ...`."""

    errors: list[tuple[str, Permanent]] = field(default_factory=list)
    name: str = ""

    def of(self, name: str) -> Problems:
        """What is called so in the message."""
        self.name = name
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> bool:
        if isinstance(error, Permanent) and error.exit_code == BAD_DATA:
            self.errors.append((self.name, error))
            return True
        return False

    def check(self) -> None:
        """One error as it is, several as one."""
        if len(self.errors) == 1:
            raise self.errors[0][1]
        if self.errors:
            kind = NoLabels if any(isinstance(error, NoLabels) for _, error in self.errors) else Permanent
            faults: dict[str, str] = {}
            for name, error in self.errors:
                faults |= {name: error.message} | error.faults
            raise kind("the data cannot be trained on", faults)


def faults(rows: Rows, *, numbers: bool = False, max_missing: float = 0.0) -> dict[str, str]:
    """Everything that forbids training on these rows. `max_missing`: the share of a table's column that may be."""
    found: dict[str, str] = {}
    if len(rows) < MIN_ROWS:
        found["rows"] = f"{len(rows)}, at least {MIN_ROWS} are needed"
    classes = len(np.unique(rows.labels))
    if classes < 2:
        found["labels"] = "all are the same: there is nothing to tell apart"
    if classes > MAX_CLASSES and not numbers:
        found["labels"] = (
            f"{classes:,} different ones, at most {MAX_CLASSES:,} classes can be learned; if they are quantities, set "
            "spec.trainer.task: regression"
        )
    infinite = np.isinf(rows.features).any(axis=0)
    if infinite.any():
        found["values"] = f"infinite in {_named(rows, infinite)}"
    missing = np.isnan(rows.features).mean(axis=0)
    allowed = max_missing if rows.columns else 0.0
    if (missing > allowed).any():
        most = f"up to {missing.max():.2%} of a column"
        found["missing values"] = (
            f"{_named(rows, missing > allowed)}, {most}; spec.trainer.maxMissing allows {allowed:.2%}"
        )
    return found


def _named(rows: Rows, chosen: NDArray[np.bool_]) -> str:
    """At most ten columns by name."""
    columns = np.flatnonzero(chosen)
    named = ", ".join(rows.columns[c] if rows.columns else f"#{c}" for c in columns[:10])
    return f"{len(columns):,} columns ({named}{', ...' if len(columns) > 10 else ''})"


def check(fetched: Sequence[Fetched], *, numbers: bool = False, max_missing: float = 0.0) -> None:
    """All faults of all sources at once; a difference in form from the last one, the new data, is one of them."""
    found = {
        f"{f.source.uri} {name}": what
        for f in fetched
        for name, what in faults(f.rows, numbers=numbers, max_missing=max_missing).items()
    }
    new = fetched[-1].rows
    for other in fetched[:-1]:
        if (other.rows.shape, other.rows.columns) != (new.shape, new.columns):
            found[f"{other.source.uri} form"] = _difference(other.rows, new)
        elif other.rows.labels.dtype.kind != new.labels.dtype.kind:
            found[f"{other.source.uri} labels"] = "numbers in one set, texts in the other"
    if found:
        raise Permanent("the data cannot be trained on", found)


def _difference(other: Rows, new: Rows) -> str:
    gone, more = (sorted(set(a.columns) - set(b.columns))[:10] for a, b in ((other, new), (new, other)))
    if gone or more:
        return f"the new data lacks {', '.join(gone) or 'nothing'} and has {', '.join(more) or 'nothing'} besides"
    if other.columns:
        return "its columns stand in another order than those of the new data"
    return f"{other.shape}, the new data has {new.shape}"


def unjudged(fetched: Sequence[Fetched], evaluation: Fetched) -> list[str]:
    """`Permanent` if the owner's evaluation set has no row of a class that is to be learned; notes on the opposite."""
    known = set(evaluation.rows.labels.tolist())
    found = {}
    for item in fetched:
        if missing := sorted(set(item.rows.labels.tolist()) - known, key=str):
            named = ", ".join(str(label) for label in missing[:10])
            found[item.source.uri] = f"{named}{' ...' if len(missing) > 10 else ''}"
    if found:
        uri = evaluation.source.uri
        raise Permanent(f"labels that no row of {uri} has, so that nobody could judge them: add such rows", found)
    unlearned = sorted(known - {label for item in fetched for label in item.rows.labels.tolist()}, key=str)
    named = ", ".join(str(label) for label in unlearned[:10])
    return [f"labels of the evaluation set that nothing teaches: {named}"] if unlearned else []


def constant_columns(fetched: Sequence[Fetched]) -> list[str]:
    """Notes on columns of a table that hold one value in the new data; `Permanent` for those that did vary before.

    A column counts as dead if the old rows had its value so rarely that the new ones would all have it by chance in
    less than one case of a million. A rare flag that is nowhere set in few rows is none.
    """
    *before, new = (f.rows for f in fetched)
    if not new.columns:
        return []
    values = new.features[0]
    constant = (new.features == values).all(axis=0)
    seen = sum(len(rows) for rows in before)
    same = sum(((rows.features == values).sum(axis=0) for rows in before), np.zeros(len(values)))
    dead = constant & (same < seen) & (len(new) * np.log(np.maximum(same, 0.5) / max(seen, 1)) < np.log(1e-6))
    if dead.any():
        raise Permanent(
            "columns that hold one value in all rows of the new data and varied before look like a dead sensor or a "
            "broken feed",
            {fetched[-1].source.uri: _named(new, dead)},
        )
    return [f"one value in all rows of the new data: {_named(new, constant)}"] if constant.any() else []
