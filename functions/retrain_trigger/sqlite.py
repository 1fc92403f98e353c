"""One SQLite table as the one-machine stand-in for the Kubernetes API server. Knows nothing of what it holds.

Each row is one object: kind, name, version (its resourceVersion), whether work is pending (the selectable field),
and the JSON document that Kubernetes would hold. Writes are compare-and-set on the version. Several processes may
share the file.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from aegis.errors import AlreadyExists, Conflict, Permanent, Temporary

Document = dict[str, Any]

SCHEMA = """CREATE TABLE IF NOT EXISTS objects (
  kind TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL, pending INTEGER NOT NULL, doc TEXT NOT NULL,
  PRIMARY KEY (kind, name)) WITHOUT ROWID"""
INDEX = "CREATE INDEX IF NOT EXISTS pending ON objects (kind, name) WHERE pending = 1"

BUSY_TIMEOUT_S = 5.0
"""How long a writer waits for another: far above any write here, below every caller's deadline."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A document as it was read, with the version that a later `replace` must name."""

    name: str
    version: int
    doc: Document
    pending: bool


class Objects:
    """The table. Thread-safe; one connection a thread, opened on first use."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()

    def get(self, kind: str, name: str) -> Stored | None:
        """Return the object, or None."""
        row = self._run("SELECT version, doc, pending FROM objects WHERE kind = ? AND name = ?", kind, name).fetchone()
        return None if row is None else Stored(name, row[0], _load(kind, name, row[1]), bool(row[2]))

    def names(self, kind: str, *, pending_only: bool = False) -> list[str]:
        """Return the names of all objects of a kind, or only of those with work pending."""
        where = " AND pending = 1" if pending_only else ""
        return [name for (name,) in self._run(f"SELECT name FROM objects WHERE kind = ?{where} ORDER BY name", kind)]  # noqa: S608  # a constant

    def list(self, kind: str, *, pending_only: bool = False) -> list[Stored]:
        """Return all objects of a kind in name order, or only those with work pending."""
        where = " AND pending = 1" if pending_only else ""
        rows = self._run(f"SELECT name, version, doc, pending FROM objects WHERE kind = ?{where} ORDER BY name", kind)  # noqa: S608  # a constant
        return [Stored(name, version, _load(kind, name, doc), bool(flag)) for name, version, doc, flag in rows]

    def create(self, kind: str, name: str, doc: Document, *, pending: bool = False) -> Stored:
        """Store a new object at version 1. Raises AlreadyExists."""
        try:
            self._run("INSERT INTO objects VALUES (?, ?, 1, ?, ?)", kind, name, int(pending), _dump(doc))
        except sqlite3.IntegrityError as exc:
            raise AlreadyExists(f"{kind} {name} exists") from exc
        return Stored(name, 1, doc, pending)

    def replace(self, kind: str, name: str, doc: Document, version: int, *, pending: bool = False) -> Stored:
        """Store a changed object if it still has `version`. Raises Conflict."""
        done = self._run(
            "UPDATE objects SET version = version + 1, pending = ?, doc = ?"
            " WHERE kind = ? AND name = ? AND version = ?",
            int(pending), _dump(doc), kind, name, version,
        )  # fmt: skip
        if done.rowcount != 1:
            raise Conflict(f"{kind} {name} was changed by somebody else")
        return Stored(name, version + 1, doc, pending)

    def delete(self, kind: str, name: str, version: int) -> None:
        """Delete an object if it still has `version`; else leave it."""
        self._run("DELETE FROM objects WHERE kind = ? AND name = ? AND version = ?", kind, name, version)

    def _run(self, statement: str, *values: object) -> sqlite3.Cursor:
        try:
            return self._connection().execute(statement, values)
        except sqlite3.IntegrityError:
            raise
        except (sqlite3.DatabaseError, OSError) as exc:
            # Locked for too long, disk full, no directory, a damaged file: a person can mend each, and until then
            # nothing may count as decided.
            raise Temporary(f"{self._path}: {exc}") from exc

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
            _prepare(connection, monotonic() + BUSY_TIMEOUT_S)
            self._local.connection = connection
        return connection


def _prepare(connection: sqlite3.Connection, until: float) -> None:
    """Set a new connection up. While another one turns a fresh file to WAL, SQLite says `locked` without waiting."""
    while True:
        try:
            # WAL: readers never wait for a writer; FULL: a committed claim survives a power cut.
            for statement in ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", SCHEMA, INDEX):
                connection.execute(statement).close()
        except sqlite3.OperationalError:
            if monotonic() > until:
                raise
            sleep(0.01)
        else:
            return


def _load(kind: str, name: str, text: str) -> Document:
    try:
        doc: Document = json.loads(text)
    except ValueError as exc:
        raise Permanent(f"{kind} {name} is damaged: it holds no JSON") from exc
    return doc


def _dump(doc: Document) -> str:
    return json.dumps(doc, separators=(",", ":"), sort_keys=True)
