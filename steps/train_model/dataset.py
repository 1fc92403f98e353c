"""From URIs to checked rows with a digest: what is fetched, what is held out, what may be trained on.

The same functions serve fetch and gate, so both see the same rows. Downloads go through the storage port; the
decisions below are pure.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegis import datasets
from aegis.errors import NotFound, Permanent
from aegis.pointer import Champion
from aegis.storage import Entry, open_store
from train_model.readers import MAX_BYTES, Rows, join, layout, read

MAX_FILES = 256
MAX_SOURCES = 8
"""Data sets a model remembers; the most recent stay. A new one a week is then two months of memory."""
MIN_ROWS = 50
"""Fewer rows are a sample, not a training set; five of a hundred columns would already fit by luck."""
MAX_CLASSES = 1000
HELD_OUT = 5
"""Without an evaluation set, one row of five judges and never trains: 200 rows need 1,000 in all."""
RECORD = "aegis_dataset.json"
"""The file of a model directory that says what the model learned from."""


@dataclass(frozen=True, slots=True)
class Source:
    """One data set: where it is, and the sha256 over its files' sorted `path size sha256` lines.

    Versions and generations stand in the manifest but not in the digest: the same bytes uploaded again are the
    same data, and are not worth another training. An empty digest: nobody noted one.
    """

    uri: str
    digest: str


@dataclass(frozen=True, slots=True)
class Fetched:
    """A source with its rows, one manifest line a file, and the paths that were no data."""

    source: Source
    rows: Rows
    manifest: tuple[Mapping[str, str | int], ...]
    ignored: tuple[str, ...]


def fetch(uri: str, prefixes: Sequence[str], env: Mapping[str, str], tmp: Path) -> Fetched:
    """Download a folder or one file below an allowed prefix into the empty folder `tmp` and read it.

    `Permanent` (65): not allowed, nothing to read, too much, unreadable; `NotFound` if nothing is there at all.
    """
    if wrong := datasets.fault(uri, prefixes):
        raise Permanent(f"{uri[:200]!a} {wrong}", {"AEGIS_DATASET_PREFIXES": ",".join(prefixes)})
    parent, _, name = uri.rstrip("/").rpartition("/")
    store = open_store(parent if layout(name) else uri, env=env)
    entries = [e for e in [store.head(name)] if e] if layout(name) else store.list()
    if not entries:
        raise NotFound(f"nothing is at {uri}")
    files = [(entry, kind) for entry in entries if (kind := layout(entry.path))]
    if not files or len({kind for _, kind in files}) > 1 or len(files) > MAX_FILES:
        found = ", ".join(sorted(entry.path for entry in entries)[:10])
        what = "one kind of data file (.npz, .csv or data_batch_*.bin)"
        raise Permanent(f"{uri} does not hold {what}, at most {MAX_FILES}", {"found": found})
    if sum(entry.size for entry, _ in files) > MAX_BYTES:
        raise Permanent(f"{uri} has more than {MAX_BYTES:,} bytes")
    parts, manifest = [], []
    for number, (entry, kind) in enumerate(files):
        local = tmp / f"{number}.{kind}"
        store.download(entry.path, local, limit=entry.size)
        manifest.append(_line(entry, local))
        parts.append(read(local, kind))
        local.unlink()
    lines = sorted(f"{line['path']} {line['size']} {line['sha256']}\n" for line in manifest)
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    data = {entry.path for entry, _ in files}
    ignored = tuple(entry.path for entry in entries if entry.path not in data)
    return Fetched(Source(uri, digest), join(parts), tuple(manifest), ignored)


def _line(entry: Entry, local: Path) -> dict[str, str | int]:
    with local.open("rb") as file:
        return asdict(entry) | {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def record(model_dir: Path) -> dict[str, Any]:
    """A model's aegis_dataset.json; empty if there is none that can be read."""
    try:
        found = json.loads((model_dir / RECORD).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def remembered(champion: Champion | None) -> list[Source]:
    """What a verified champion learned from, oldest first; without a record, what the person who adopted it said."""
    if champion is None:
        return []
    if not (champion.directory / RECORD).exists():
        told = champion.package.external.get("dataset_uri")
        return [Source(told, "")] if told and isinstance(told, str) else []
    return sources(champion.directory)


def sources(model_dir: Path) -> list[Source]:
    """What a model directory says that it learned from; nothing if it does not say so in a form we know."""
    try:
        found = [Source(item["uri"], item["digest"]) for item in record(model_dir)["sources"]]
    except (KeyError, TypeError):
        return []
    good = [s for s in found if isinstance(s.uri, str) and isinstance(s.digest, str)]
    return good[-MAX_SOURCES:]


@dataclass(frozen=True, slots=True)
class Gathered:
    """The old sources and last the new one, each once. `lost`: which old ones could not be had, and why; `notes`: which
    are not as they were."""

    fetched: list[Fetched]
    lost: list[str]
    notes: list[str]


def gather(uri: str, old: Sequence[Source], prefixes: Sequence[str], env: Mapping[str, str], tmp: Path) -> Gathered:
    """Fetch the new source, and of the old ones what is still there and allowed.

    A lost one forbids no training. What it costs, held-out rows cannot show, as they are lost with it: who judges by
    those has to refuse. One that changed is taken as it is now; its digest says so.
    """
    if not uri:
        raise Permanent(
            "no data set to train on",
            {"datasetUri": "set spec.datasetUri, or name it in the alert's dataset label"},
        )
    new = fetch(uri, prefixes, env, tmp)
    found = Gathered([], [], [])
    for source in old[-(MAX_SOURCES - 1) :]:
        try:
            again = new if source.uri == uri else fetch(source.uri, prefixes, env, tmp)
        except Permanent as error:
            found.lost.append(f"old data left out: {error.message}")
            continue
        if source.digest and again.source.digest != source.digest:
            found.notes.append(f"{source.uri} has changed since the champion was trained on it")
        if again.source.digest != new.source.digest:
            found.fetched.append(again)
    found.fetched.append(new)
    return found


def faults(rows: Rows) -> dict[str, str]:
    """Everything that forbids training on these rows."""
    found: dict[str, str] = {}
    if len(rows) < MIN_ROWS:
        found["rows"] = f"{len(rows)}, at least {MIN_ROWS} are needed"
    classes = len(np.unique(rows.labels))
    if classes < 2:
        found["labels"] = "only one class: there is nothing to tell apart"
    if classes > MAX_CLASSES:
        found["labels"] = f"{classes:,} different ones, at most {MAX_CLASSES:,} classes can be learned"
    bad = ~np.isfinite(rows.features)
    if bad.any():
        columns = np.flatnonzero(bad.any(axis=0))
        named = ", ".join(rows.columns[c] if rows.columns else f"#{c}" for c in columns[:10])
        found["values"] = f"{int(bad.sum()):,} missing or not finite in {len(columns)} columns ({named})"
    return found


def check(fetched: Sequence[Fetched]) -> None:
    """All faults of all sources at once; a difference in form is one of them."""
    found = {f"{f.source.uri} {name}": what for f in fetched for name, what in faults(f.rows).items()}
    new = fetched[-1].rows
    for other in fetched[:-1]:
        if (other.rows.shape, other.rows.columns) != (new.shape, new.columns):
            found[f"{other.source.uri} form"] = f"{other.rows.shape}, the new data has {new.shape} or other columns"
        elif other.rows.labels.dtype.kind != new.labels.dtype.kind:
            found[f"{other.source.uri} labels"] = "numbers in one set, texts in the other"
    if found:
        raise Permanent("the data cannot be trained on", found)


def keys(rows: Rows) -> list[bytes]:
    """One digest a row, over its features alone, so that a row with a second label is still the same row."""
    return [hashlib.blake2b(row, digest_size=16).digest() for row in np.ascontiguousarray(rows.features)]


def held_out(row_keys: Sequence[bytes]) -> NDArray[np.bool_]:
    """Which rows judge instead of train: by the row alone, so every attempt and every copy agrees."""
    return np.array([key[0] % HELD_OUT == 0 for key in row_keys], dtype=np.bool_)


def training_rows(fetched: Sequence[Fetched], evaluation: Rows | None) -> Iterator[tuple[Fetched, Rows]]:
    """Each source with those of its rows that may be trained on: none that will judge."""
    judges = set(keys(evaluation)) if evaluation is not None else set[bytes]()
    for item in fetched:
        row_keys = keys(item.rows)
        judge = np.array([key in judges for key in row_keys]) if evaluation is not None else held_out(row_keys)
        yield item, item.rows.where(~judge)


def evaluation_rows(fetched: Sequence[Fetched]) -> Rows:
    """The held-out rows of all sources, in the slices `old data` and `new data` where both exist.

    Weaker than an evaluation set of the owner's: if the new data is wrong, so is what judges it.
    """
    parts = []
    for index, item in enumerate(fetched):
        rows = item.rows.where(held_out(keys(item.rows)))
        name = "new data" if index == len(fetched) - 1 else "old data"
        slices = np.full(len(rows), name if len(fetched) > 1 else "", dtype="<U64")
        parts.append(Rows(rows.features, rows.labels, slices, rows.shape, rows.columns))
    return join(parts)
