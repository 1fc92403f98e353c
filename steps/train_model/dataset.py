"""From URIs to checked rows with a digest: what is fetched, what is held out, what may be trained on.

The same functions serve fetch and gate, so both see the same rows. Downloads go through the storage port; the
decisions below are pure.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegis import datasets
from aegis.errors import NotFound, Permanent
from aegis.pointer import Champion
from aegis.storage import Entry, open_store
from train_model import images
from train_model.readers import MAX_BYTES, NoLabels, Rows, join, layout, read

MAX_SOURCES = 8
"""Data sets a model remembers; the most recent stay. A new one a week is then two months of memory."""
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


def fetch(uri: str, prefixes: Sequence[str], env: Mapping[str, str], tmp: Path, *, numbers: bool = False) -> Fetched:
    """Download a folder or one file below an allowed prefix, by way of the folder `tmp`, and read it. `numbers`: its
    labels are quantities, not classes.

    `Permanent` (65): not allowed, nothing to read, too much, unreadable; `NotFound` if nothing is there at all,
    `NoLabels` if that is what is missing. `Temporary` if it changes meanwhile.
    """
    if wrong := datasets.fault(uri, prefixes):
        raise Permanent(f"{uri[:200]!a} {wrong}", {"AEGIS_DATASET_PREFIXES": ",".join(prefixes)})
    parent, _, name = uri.rstrip("/").rpartition("/")
    alone = layout(name) not in (None, "image")  # an image alone has no folder that would be its label
    store = open_store(parent if alone else uri, env=env)
    entries = [e for e in [store.head(name)] if e] if alone else store.list()
    if not entries:
        raise NotFound(f"nothing is at {uri}")
    data = [entry for entry in entries if layout(entry.path)]
    kinds = {layout(entry.path) for entry in data}
    if len(kinds) != 1:
        found = ", ".join(sorted(entry.path for entry in entries)[:10])
        what = "one kind of data file (.npz, .csv, .parquet, data_batch_*.bin, or .png and .jpg)"
        raise Permanent(f"{uri} does not hold {what}", {"found": found})
    if sum(entry.size for entry in data) > MAX_BYTES:
        raise Permanent(f"{uri} has more than {MAX_BYTES:,} bytes")
    reading = _Reading(uri, kinds.pop() or "", numbers)
    with tempfile.TemporaryDirectory(dir=tmp) as folder:
        wanted = [(entry, Path(folder, str(number))) for number, entry in enumerate(data)]
        with closing(store.bring(wanted, print)) as files:
            for (entry, local), sha256 in zip(wanted, files, strict=True):
                reading.add(entry, local, sha256)
                local.unlink()
    rows = reading.rows()
    lines = sorted(f"{line['path']} {line['size']} {line['sha256']}\n" for line in reading.manifest)
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    used = {entry.path for entry in data}
    ignored = tuple(entry.path for entry in entries if entry.path not in used)
    return Fetched(Source(uri, digest), rows, tuple(reading.manifest), ignored)


@dataclass(slots=True)
class _Reading:
    """The files of one source as they come. A fault in one keeps none of the others from being looked at."""

    uri: str
    kind: str
    numbers: bool
    manifest: list[dict[str, str | int]] = field(default_factory=list)
    parts: list[Rows] = field(default_factory=list)
    pictures: list[tuple[str, images.Pixels]] = field(default_factory=list)
    errors: dict[str, Permanent] = field(default_factory=dict)
    size: int = 0

    def add(self, entry: Entry, local: Path, sha256: str) -> None:
        self.manifest.append(asdict(entry) | {"sha256": sha256})
        try:
            if self.kind == "image":
                self.pictures.append((entry.path, images.pixels(local, entry.path)))
                self.size += 4 * self.pictures[-1][1].size  # as float32, which it becomes
            else:
                self.parts.append(read(local, self.kind, name=entry.path, numbers=self.numbers))
                self.size += self.parts[-1].features.nbytes
        except Permanent as error:
            self.errors[entry.path] = error
        if self.size > MAX_BYTES:
            raise Permanent(f"{self.uri} has more than {MAX_BYTES:,} bytes of numbers, unpacked")

    def rows(self) -> Rows:
        """All of them; else what is wrong with every file, the first twenty by name."""
        if self.errors:
            kind = NoLabels if any(isinstance(error, NoLabels) for error in self.errors.values()) else Permanent
            faults = {path: error.message for path, error in list(self.errors.items())[:20]}
            raise kind(f"{len(self.errors):,} of {len(self.manifest):,} files of {self.uri} cannot be used", faults)
        return images.rows(self.pictures, self.numbers) if self.kind == "image" else join(self.parts)


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


def gather(
    uri: str,
    old: Sequence[Source],
    prefixes: Sequence[str],
    env: Mapping[str, str],
    tmp: Path,
    *,
    numbers: bool = False,
) -> Gathered:
    """Fetch the new source, and of the old ones what is still there and allowed.

    A lost one forbids no training. What it costs, held-out rows cannot show, as they are lost with it: who judges by
    those has to refuse. One that changed is taken as it is now; its digest says so.
    """
    if not uri:
        raise Permanent(
            "no data set to train on",
            {"datasetUri": "set spec.datasetUri, or name it in the alert's dataset label"},
        )
    new = fetch(uri, prefixes, env, tmp, numbers=numbers)
    found = Gathered([], [], [])
    for source in old[-(MAX_SOURCES - 1) :]:
        try:
            again = new if source.uri == uri else fetch(source.uri, prefixes, env, tmp, numbers=numbers)
        except Permanent as error:
            found.lost.append(f"old data left out: {error.message}")
            continue
        if source.digest and again.source.digest != source.digest:
            found.notes.append(f"{source.uri} has changed since the champion was trained on it")
        if again.source.digest != new.source.digest:
            found.fetched.append(again)
    found.fetched.append(new)
    return found


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


def replay(parts: Sequence[tuple[Fetched, Rows]]) -> list[tuple[Fetched, Rows]]:
    """All rows of the new source, the last, and of the old ones equal shares that together are no more than those.

    Which rows of an old source is decided by their keys, which are as good as random: each attempt takes the same.
    """
    *old, new = parts
    left, sampled = len(new[1]), dict[int, Rows]()
    by_size = sorted(range(len(old)), key=lambda index: len(old[index][1]))
    for position, index in enumerate(by_size):  # what a small one leaves of its share, the larger ones get
        rows = old[index][1]
        share = min(left // (len(old) - position), len(rows))
        chosen = np.zeros(len(rows), dtype=np.bool_)
        row_keys = keys(rows)
        chosen[sorted(range(len(rows)), key=lambda row: row_keys[row])[:share]] = True
        sampled[index] = rows.where(chosen)
        left -= share
    return [*((old[index][0], sampled[index]) for index in range(len(old))), new]


def evaluation_rows(fetched: Sequence[Fetched]) -> Rows:
    """The held-out rows of all sources, in the slices `old data` and `new data` where both exist.

    Weaker than an evaluation set of the owner's: if the new data is wrong, so is what judges it.
    """
    parts = []
    for index, item in enumerate(fetched):
        rows = item.rows.where(held_out(keys(item.rows)))
        name = "new data" if index == len(fetched) - 1 else "old data"
        slices = np.full(len(rows), name if len(fetched) > 1 else "")
        parts.append(Rows(rows.features, rows.labels, slices, rows.shape, rows.columns))
    return join(parts)
