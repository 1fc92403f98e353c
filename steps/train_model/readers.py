"""Files that people have, as rows of numbers and labels: .npz, CSV and CIFAR binary batches, by `parquet` and `images`
also those.

Every size is known and bounded before anything is unpacked, and nothing is ever unpickled. Whatever the bytes are,
the answer is rows or `Permanent` (65). No network, no checks of what the numbers mean.
"""

from __future__ import annotations

import csv
import math
import struct
import warnings
import zipfile
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegis.errors import Permanent

MAX_BYTES = 2 << 30
"""Two GiB of numbers a file, unpacked: the whole set has to fit into the trainer's memory anyway."""
MAX_COLUMNS = 1 << 20
MAX_ROWS = 10_000_000
LABELS = ("label", "labels", "target", "y")
FEATURES = ("X", "x", "data", "images", "features")
SLICES = ("slice", "slices")
IMAGES = (".png", ".jpg", ".jpeg")
CIFAR_PIXELS = 3 * 32 * 32


class NoLabels(Permanent):
    """Data without labels: nothing can be learned until somebody adds them. `reason` is what a ledger keeps."""

    reason = "NoLabels"
    advice = (
        "fresh data often has no labels yet: add the right answer for each row, or let spec.datasetUri name data that "
        "has them"
    )

    def __init__(self, message: str, faults: Mapping[str, str] | None = None) -> None:
        super().__init__(f"{message} ({self.advice})" if self.advice not in message else message, faults)


@dataclass(frozen=True, slots=True)
class Rows:
    """Examples. `features` is n x d (float32 for arrays, float64 for tables), `labels` n whole numbers or texts, or
    float64 of a regression, `slices` n texts ("" where a row belongs to none), `shape` one example's own form,
    `columns` a table's names."""

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
    """How a file would be read, by its name: npz, csv, parquet, image, cifar; None for one that is no data."""
    name = path.rpartition("/")[2].lower()
    for kind, endings in (("npz", ".npz"), ("csv", ".csv"), ("parquet", ".parquet"), ("image", IMAGES)):
        if name.endswith(endings) and not name.startswith((".", "_")):
            return kind
    return "cifar" if name.startswith("data_batch") and name.endswith(".bin") else None


def read(path: Path, kind: str, *, name: str = "", numbers: bool = False) -> Rows:
    """The rows of a file of a `layout` other than image, called `name` in messages; `numbers`: labels of a regression.

    `NoLabels` if it has none, `Permanent` for anything else that it is not.
    """
    from train_model.parquet import parquet

    reader = {"npz": _npz, "csv": _csv, "cifar": _cifar, "parquet": parquet}[kind]
    with told(name or path.name, kind):
        return reader(path, name or path.name, numbers)


@contextmanager
def told(name: str, kind: str) -> Iterator[None]:
    """Whatever the readers of foreign files raise, as `Permanent`."""
    foreign = (
        ValueError,
        LookupError,
        TypeError,
        OverflowError,
        RuntimeError,
        MemoryError,
        SyntaxError,
        EOFError,
        OSError,
        struct.error,
        zlib.error,
        csv.Error,
        zipfile.BadZipFile,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy warns of old headers; the content decides
            yield
    except foreign as error:
        raise Permanent(f"{name} is no readable {kind} file: {str(error)[:200]}") from error


def join(parts: Sequence[Rows]) -> Rows:
    """All rows in order; parts of different form are Permanent."""
    first = parts[0]
    if any((p.shape, p.columns) != (first.shape, first.columns) for p in parts):
        forms = sorted({f"{p.shape} {', '.join(p.columns[:20])}".strip() for p in parts})
        raise Permanent("the files do not have the same columns or shapes", {"found": "; ".join(forms)[:500]})
    if len({p.labels.dtype.kind for p in parts}) > 1:
        raise Permanent("the labels are numbers in one file and texts in another")
    if len(parts) == 1:
        return first  # no copy: numbers are what fills the memory
    return Rows(
        np.concatenate([p.features for p in parts]),
        np.concatenate([p.labels for p in parts]),
        np.concatenate([p.slices for p in parts]),
        first.shape,
        first.columns,
    )


def _npz(path: Path, name: str, numbers: bool) -> Rows:
    with zipfile.ZipFile(path) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        wanted = {names: next((n for n in names if n in members), None) for names in (FEATURES, LABELS, SLICES)}
        if wanted[FEATURES] is None:
            raise ValueError(f"no array {' or '.join(FEATURES)}")
        if wanted[LABELS] is None:
            raise NoLabels(f"{name} has no array {' or '.join(LABELS)}")
        size = sum(members[found].file_size for found in wanted.values() if found)
        if size > MAX_BYTES:
            raise ValueError(f"{size:,} bytes unpacked")
        arrays = {names: _array(archive, members[found]) for names, found in wanted.items() if found}
    features = arrays[FEATURES]
    if features.ndim < 2 or features.dtype.kind not in "buif" or features.size == 0:
        raise ValueError(f"X is {features.dtype} of shape {features.shape}, not rows of numbers")
    if features.size * 4 > MAX_BYTES:
        raise ValueError(f"{features.size:,} numbers")
    return as_rows(
        features.astype(np.float32, copy=False), arrays[LABELS], arrays.get(SLICES), features.shape[1:], numbers=numbers
    )


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


def _csv(path: Path, name: str, numbers: bool) -> Rows:
    if path.stat().st_size > MAX_BYTES // 4:
        raise ValueError("too large")
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, strict=True)
        header = [cell.strip() for cell in next(lines, [])]
        label, group, features = columns_of(header, name)
        table, labels, slices, known = array("d"), list[str](), list[str](), dict[str, str]()
        for line in lines:
            if not line:
                continue
            if len(line) != len(header):
                raise ValueError(f"line {lines.line_num} has {len(line)} cells, the header {len(header)}")
            if len(labels) == MAX_ROWS or len(table) * 8 > MAX_BYTES:
                raise ValueError(f"more than {MAX_ROWS:,} rows or {MAX_BYTES:,} bytes of numbers")
            table.extend([_number(line[index]) for index in features])
            answer = line[label].strip()
            labels.append(known.setdefault(answer, answer))  # one text a class, not one a row
            if group is not None:
                slices.append(line[group].strip())
    columns = tuple(header[index] for index in features)
    found = np.frombuffer(table, dtype=np.float64).reshape(-1, len(columns))
    groups = np.array(slices) if group is not None else None
    return as_rows(found, np.array(labels, dtype=np.str_), groups, (len(columns),), columns, numbers=numbers)


def columns_of(header: Sequence[str], name: str) -> tuple[int, int | None, list[int]]:
    """Which column of a table is the label, which perhaps the slice, and which are features."""
    if not 2 <= len(header) <= MAX_COLUMNS or len(set(header)) < len(header) or "" in header:
        raise ValueError("its columns are not named, each once")
    label = next((header.index(name) for name in LABELS if name in header), None)
    if label is None:
        raise NoLabels(f"{name} has no column {' or '.join(LABELS)}")
    group = next((header.index(name) for name in SLICES if name in header), None)
    features = [index for index in range(len(header)) if index not in (label, group)]
    if not features:
        raise ValueError("no columns of numbers")
    return label, group, features


def _number(cell: str) -> float:
    """A cell's number; an empty one is none, which the checks then report by column."""
    return float(cell) if cell.strip() else math.nan


def _cifar(path: Path, _name: str, numbers: bool) -> Rows:
    size, record = path.stat().st_size, 1 + CIFAR_PIXELS
    if size == 0 or size % record or size > MAX_BYTES // 4:
        raise ValueError(f"{size:,} bytes are not whole records of {record}")
    table = np.fromfile(path, dtype=np.uint8).reshape(-1, record)
    return as_rows(table[:, 1:].astype(np.float32), table[:, 0], None, (3, 32, 32), numbers=numbers)


def as_rows(
    features: NDArray[Any],
    labels: NDArray[Any],
    slices: NDArray[Any] | None,
    shape: tuple[int, ...],
    columns: tuple[str, ...] = (),
    *,
    numbers: bool,
) -> Rows:
    """Rows of what a reader found, checked to fit together."""
    count = len(features)
    if labels.shape not in ((count,), (count, 1)) or labels.size == 0:
        raise ValueError(f"{count} rows but labels of shape {labels.shape}")
    groups = np.full(count, "", dtype="<U1") if slices is None else slices.astype("<U64")
    if groups.shape != (count,):
        raise ValueError(f"{count} rows but slices of shape {groups.shape}")
    return Rows(features.reshape(count, -1), _labels(labels.reshape(count), numbers), groups, shape, columns)


def _labels(labels: NDArray[Any], numbers: bool) -> NDArray[Any]:
    """Whole numbers where every label is one, else texts; 1, 1.0 and "1" are the same label. `numbers`: float64."""
    if labels.dtype.kind in "US":
        texts = labels.astype(np.str_)
        if not np.char.str_len(texts).any():
            raise NoLabels("every label is empty")
        if texts.dtype.itemsize > 4 * 64 or (np.char.str_len(texts) == 0).any():
            raise ValueError("some labels are empty or longer than 64 letters")
        try:
            labels = texts.astype(np.float64)
        except ValueError:
            if numbers:
                raise ValueError("some labels are no numbers, which spec.trainer.task: regression needs") from None
            return texts
    if labels.dtype.kind not in "buif":
        raise ValueError(f"labels of type {labels.dtype}")
    found = labels.astype(np.float64)
    if np.isnan(found).all():
        raise NoLabels("every label is missing")
    if not np.isfinite(found).all():
        raise ValueError("some labels are missing or infinite")
    if numbers:
        return found
    if (found != np.floor(found)).any():
        raise ValueError(
            "some labels are not whole numbers, so they are no classes; if they are quantities, "
            "set spec.trainer.task: regression"
        )
    if (np.abs(found) > 2**53).any():
        raise ValueError("labels beyond 2^53")
    return labels.astype(np.int64)
