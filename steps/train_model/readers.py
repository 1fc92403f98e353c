"""Files that people have, as rows of numbers and labels: .npz, CSV and CIFAR binary batches.

Every size is known and bounded before anything is unpacked, and nothing is ever unpickled. Whatever the bytes are,
the answer is rows or `Permanent` (65). No network, no checks of what the numbers mean.
"""

from __future__ import annotations

import csv
import math
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegis.errors import Permanent

MAX_BYTES = 2 << 30
"""Two GiB of numbers a file, unpacked: the whole set has to fit into the trainer's memory anyway."""
MAX_COLUMNS = 1 << 20
LABELS = ("label", "labels", "target", "y")
FEATURES = ("X", "x", "data", "images", "features")
SLICES = ("slice", "slices")
CIFAR_PIXELS = 3 * 32 * 32


class NoLabels(Permanent):
    """Data without labels: nothing can be learned until somebody adds them. `reason` is what a ledger keeps."""

    reason = "NoLabels"


@dataclass(frozen=True, slots=True)
class Rows:
    """Examples. `features` is n x d (float32 for arrays, float64 for tables), `labels` n whole numbers or texts,
    `slices` n texts ("" where a row belongs to none), `shape` one example's own form, `columns` a table's names."""

    features: NDArray[Any]
    labels: NDArray[Any]
    slices: NDArray[np.str_]
    shape: tuple[int, ...]
    columns: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, mask: NDArray[np.bool_]) -> Rows:
        """The rows that `mask` selects."""
        return Rows(self.features[mask], self.labels[mask], self.slices[mask], self.shape, self.columns)


def layout(path: str) -> str | None:
    """How a file would be read, by its name: npz, csv, cifar; None for one that is no data."""
    name = path.rpartition("/")[2].lower()
    if name.endswith((".npz", ".csv")):
        return name[-3:]
    return "cifar" if name.startswith("data_batch") and name.endswith(".bin") else None


def read(path: Path, kind: str) -> Rows:
    """The rows of one file of a `layout`. `NoLabels` if it has none, `Permanent` for anything else it is not."""
    reader = {"npz": _npz, "csv": _csv, "cifar": _cifar}[kind]
    foreign = (
        ValueError,
        KeyError,
        TypeError,
        OverflowError,
        RuntimeError,
        MemoryError,
        SyntaxError,
        EOFError,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy warns of old headers; the content decides
            return reader(path)
    except (*foreign, OSError, zlib.error, csv.Error, zipfile.BadZipFile) as error:
        raise Permanent(f"{path.name} is no readable {kind} file: {str(error)[:200]}") from error


def join(parts: Sequence[Rows]) -> Rows:
    """All rows in order; parts of different form are Permanent."""
    first = parts[0]
    if any((p.shape, p.columns) != (first.shape, first.columns) for p in parts):
        forms = sorted({f"{p.shape} {', '.join(p.columns[:20])}".strip() for p in parts})
        raise Permanent("the files do not have the same columns or shapes", {"found": "; ".join(forms)[:500]})
    if len({p.labels.dtype.kind for p in parts}) > 1:
        raise Permanent("the labels are numbers in one file and texts in another")
    return Rows(
        np.concatenate([p.features for p in parts]),
        np.concatenate([p.labels for p in parts]),
        np.concatenate([p.slices for p in parts]),
        first.shape,
        first.columns,
    )


def _npz(path: Path) -> Rows:
    with zipfile.ZipFile(path) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        wanted = {names: next((n for n in names if n in members), None) for names in (FEATURES, LABELS, SLICES)}
        if wanted[FEATURES] is None:
            raise ValueError(f"no array {' or '.join(FEATURES)}")
        if wanted[LABELS] is None:
            raise NoLabels(f"{path.name} has no array {' or '.join(LABELS)}")
        size = sum(members[name].file_size for name in wanted.values() if name)
        if size > MAX_BYTES:
            raise ValueError(f"{size:,} bytes unpacked")
        arrays = {names: _array(archive, members[name]) for names, name in wanted.items() if name}
    features = arrays[FEATURES]
    if features.ndim < 2 or features.dtype.kind not in "buif" or features.size == 0:
        raise ValueError(f"X is {features.dtype} of shape {features.shape}, not rows of numbers")
    return _rows(features.astype(np.float32), arrays[LABELS], arrays.get(SLICES), features.shape[1:])


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    """One .npy member. Its header is checked against its size first: numpy allocates what the header says."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        shape, _, dtype = read_header[version](file)
        left = member.file_size - file.tell()
    if dtype.hasobject or any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != left:
        raise ValueError(f"{member.filename} is not what its header says")
    with archive.open(member) as file:
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))


def _csv(path: Path) -> Rows:
    if path.stat().st_size > MAX_BYTES // 4:
        raise ValueError("too large")
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, strict=True)
        header = [name.strip() for name in next(lines, [])]
        if not 2 <= len(header) <= MAX_COLUMNS or len(set(header)) < len(header) or "" in header:
            raise ValueError("the first line does not name the columns, each once")
        label = next((header.index(name) for name in LABELS if name in header), None)
        if label is None:
            raise NoLabels(f"{path.name} has no column {' or '.join(LABELS)}")
        group = next((header.index(name) for name in SLICES if name in header), None)
        numbers = [index for index in range(len(header)) if index not in (label, group)]
        table, labels, slices = [], [], []
        for line in lines:
            if not line:
                continue
            if len(line) != len(header):
                raise ValueError(f"line {lines.line_num} has {len(line)} cells, the header {len(header)}")
            table.append([_number(line[index]) for index in numbers])
            labels.append(line[label].strip())
            slices.append(line[group].strip() if group is not None else "")
    if not table or not numbers:
        raise ValueError("no rows or no columns of numbers")
    columns = tuple(header[index] for index in numbers)
    features = np.array(table, dtype=np.float64)
    return _rows(features, np.array(labels), np.array(slices), (len(columns),), columns)


def _number(cell: str) -> float:
    """A cell's number; an empty one is none, which the checks then report by column."""
    return float(cell) if cell.strip() else math.nan


def _cifar(path: Path) -> Rows:
    size, record = path.stat().st_size, 1 + CIFAR_PIXELS
    if size == 0 or size % record or size > MAX_BYTES // 4:
        raise ValueError(f"{size:,} bytes are not whole records of {record}")
    table = np.fromfile(path, dtype=np.uint8).reshape(-1, record)
    return _rows(table[:, 1:].astype(np.float32), table[:, 0], None, (3, 32, 32))


def _rows(
    features: NDArray[Any],
    labels: NDArray[Any],
    slices: NDArray[Any] | None,
    shape: tuple[int, ...],
    columns: tuple[str, ...] = (),
) -> Rows:
    count = len(features)
    if labels.shape not in ((count,), (count, 1)) or labels.size == 0:
        raise ValueError(f"{count} rows but labels of shape {labels.shape}")
    groups = np.full(count, "", dtype="<U64") if slices is None else slices.astype("<U64")
    if groups.shape != (count,):
        raise ValueError(f"{count} rows but slices of shape {groups.shape}")
    return Rows(features.reshape(count, -1), _labels(labels.reshape(count)), groups, shape, columns)


def _labels(labels: NDArray[Any]) -> NDArray[Any]:
    """Whole numbers where every label is one, else texts; 1, 1.0 and "1" are the same label."""
    if labels.dtype.kind in "US":
        texts = labels.astype(np.str_)
        if not np.char.str_len(texts).any():
            raise NoLabels("every label is empty")
        if texts.dtype.itemsize > 4 * 64 or (np.char.str_len(texts) == 0).any():
            raise ValueError("some labels are empty or longer than 64 letters")
        try:
            labels = texts.astype(np.float64)
        except ValueError:
            return texts
    if labels.dtype.kind not in "buif":
        raise ValueError(f"labels of type {labels.dtype}")
    if labels.dtype.kind == "f" and np.isnan(labels).all():
        raise NoLabels("every label is missing")
    if labels.dtype.kind == "f" and not (np.isfinite(labels) & (labels == np.floor(labels))).all():
        raise ValueError("some labels are missing or not whole numbers: only classes can be learned")
    if (np.abs(labels.astype(np.float64)) > 2**53).any():
        raise ValueError("labels beyond 2^53")
    return labels.astype(np.int64)
